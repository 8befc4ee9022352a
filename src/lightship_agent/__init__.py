"""The agent: the program that runs on a server for the length of one rollout.

It uses Python's standard library alone (3.9 or later), is sent to the server as one zip application, and imports
nothing of the controller. It speaks JSON lines on its standard streams; ``protocol`` has the words.
"""

__all__ = ["VERSION"]

VERSION = "0.1.0"
