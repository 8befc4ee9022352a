"""The configuration: ``load`` reads it, ``schema`` describes it. Import from the modules, each costs its own time."""
