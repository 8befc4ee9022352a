"""Where the program starts: with the agent of this machine, if it looks as if one were needed."""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path

_STARTED = time.perf_counter()
# Imports make many objects and no garbage: collecting meanwhile costs 10 ms. ``common.run_async`` turns it on again.
gc.disable()

__all__ = ["run"]


def run() -> None:
    """The program."""
    from lightship.operations.ahead import looks_local, start_agent  # noqa: PLC0415

    if looks_local(sys.argv[1:], Path.cwd()):
        start_agent()
    from lightship.cli import main  # noqa: PLC0415

    main.run(_STARTED)
