"""Runs one command inside the container, and ends it when its time is over or nobody waits for it any more.

``command.py SECONDS NICENESS COMMAND [ARG ...]``

A program that ``docker exec`` started goes on when ``docker exec`` is killed. This one gives its command a process
group of its own, and ends that group (SIGTERM, then SIGKILL) after ``SECONDS`` or when its standard input is closed,
which is what happens when the agent dies. ``NICENESS`` is how far the command stands back for the processes that
answer visitors. Exit status 124 says that the time was over, as timeout(1) has it.
"""

import os
import select
import signal
import subprocess
import sys
import time

GRACE = 4.0
# As timeout(1) and shells have them.
TIMED_OUT, NOT_RUNNABLE, NOT_FOUND = 124, 126, 127
LOOK = 0.02


def end(process):
    """End the whole group, politely first.

    A client that is only gone is noticed by a database when it answers, which a statement that waits for a lock never
    does; then it would go on behind everybody's back. SIGINT makes Python's drivers cancel the statement.
    """
    for number, seconds in ((signal.SIGINT, GRACE), (signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            time.sleep(LOOK)


def input_closed():
    """Whether the other end of standard input is gone."""
    readable, _, _ = select.select([0], [], [], 0)
    return bool(readable) and not os.read(0, 4096)


def main():
    deadline = time.monotonic() + float(sys.argv[1])
    try:
        process = subprocess.Popen(
            sys.argv[3:],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: os.nice(int(sys.argv[2])),  # noqa: PLW1509 - there are no threads here
        )
    except OSError as error:
        sys.stderr.write("cannot run %s: %s\n" % (sys.argv[3], error.strerror))
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_RUNNABLE
    while process.poll() is None:
        if time.monotonic() > deadline or input_closed():
            end(process)
            return TIMED_OUT
        time.sleep(LOOK)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


if __name__ == "__main__":
    sys.exit(main())
