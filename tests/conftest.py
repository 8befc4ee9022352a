"""What holds for all tests: the folder a test lies in says what it needs, how long it may take and where it runs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from xdist.scheduler import LoadFileScheduling

from support import order

pytest_plugins = ["support.engine", "support.paths", "support.proxy", "support.servers"]

HERE = Path(__file__).resolve().parent
# Seconds a single test may take before it is ended as hanging.
LIMITS = {"unit": 60, "contract": 60, "local": 60, "ansible": 300, "engine": 300, "fleet": 600, "browser": 300}

# How long an example takes says how busy the machine is, and nothing about the code.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("few", hypothesis.settings.get_profile("any machine"), max_examples=20)
hypothesis.settings.load_profile("any machine")

# pytest keeps what it makes of the tests' asserts; else each process of each run makes it anew, which is half of the
# time that gathering the tests takes. PYTHONDONTWRITEBYTECODE, which many build machines set, forbids it.
sys.dont_write_bytecode = False

# A script that starts this in the background has Ctrl-C ignored for all below it, and commands would ignore it too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by its folder, and begin with what takes longest."""
    items.sort(key=lambda item: order.place(item.nodeid))
    for item in items:
        kind = item.path.resolve().relative_to(HERE).parts[0]
        if kind not in LIMITS:
            continue
        item.add_marker(kind)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LIMITS[kind]))


class ByFile(LoadFileScheduling):
    """The tests of a file run in one process, and all that need the servers, which are started once, in one."""

    def _split_scope(self, nodeid: str) -> str:
        return order.scope(super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFile | None:
    """Take turns by file where that is asked for (`--dist loadfile`)."""
    return ByFile(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session", autouse=True)
def state_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What deploys of the tests keep on this machine is gone with them, and none is exported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        for name in [one for one in os.environ if one.startswith("OTEL_") or one == "TRACEPARENT"]:
            patch.delenv(name)
        yield


@pytest.fixture(autouse=True)
def untouched_by_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the user's or the machine's git and terminal change no test."""
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "GIT_DIR", "GIT_WORK_TREE"):
        monkeypatch.delenv(name, raising=False)
