"""Where a deploy's time goes: spans from its events, kept, explained, and exported to whoever collects them.

``recorder`` is all that a deploy needs at its start; the rest is imported while the servers are at work.
"""
