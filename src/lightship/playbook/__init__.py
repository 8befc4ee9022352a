"""A rollout as the tasks of a playbook: what the modules of the collection ``lightship.deploy`` call.

Each task is a process of its own, for one host. What one has to tell the next lies in ``papers``; what the rollout is
about comes to each as a ``Job``. Everything that is done to a server is done by the operations and the rollout that the
command line uses, over a held agent.
"""

from __future__ import annotations

import contextlib
import gc
import importlib

from lightship.errors import LightshipError

__all__ = ["warm"]

_PARTS = (
    *("lightship.playbook.resolve", "lightship.playbook.prepare", "lightship.playbook.live", "lightship.playbook.look"),
    *("lightship.config.load", "lightship.config.secrets", "lightship.transport.zipapp"),
)


def warm() -> None:
    """Import all that tasks need: each is a copy of the process that does this, and need not do it again."""
    for name in _PARTS:
        importlib.import_module(name)
    importlib.import_module("lightship.config.load").service_model()
    # Where it cannot be kept the task says so, and not the import.
    with contextlib.suppress(LightshipError):
        importlib.import_module("lightship.playbook.place").agent()
    # Nothing of this is garbage: a copy that looks whether it is has to copy the memory it lies in.
    gc.freeze()
