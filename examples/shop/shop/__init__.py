"""The example service of lightship: a small shop."""
