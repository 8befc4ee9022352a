"""Shows results: to people (``human``), to programs (``json``). All text from outside passes ``text.printable``."""
