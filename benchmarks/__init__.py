"""The measured promises: each a ratio or a difference against something that is run beside it, in the same minutes."""
