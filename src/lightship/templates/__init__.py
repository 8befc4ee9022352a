"""The files that ``lightship init`` writes. ``{{name}}`` in them is filled in by ``lightship.operations.init``."""
