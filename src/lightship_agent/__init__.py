"""The agent: the program that runs on a server for the length of one rollout.

It uses Python's standard library alone (3.9 or later), is sent to the server as one zip application, and imports
nothing of the controller. It speaks JSON lines on its standard streams; ``protocol`` has the words.
"""

__all__ = ["TYPE_CHECKING", "VERSION"]

VERSION = "0.1.0"

TYPE_CHECKING = False
"""True for the type checker. As typing's own, but for the milliseconds that ``typing`` takes from each agent's start:
names that only annotations need are imported where this is true, and no annotation is evaluated."""
