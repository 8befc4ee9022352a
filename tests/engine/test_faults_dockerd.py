"""The Docker engine itself is killed and started again: what serves goes on, and the next deploy works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support import daemon
from support.engine import Engine
from support.packages import need
from support.site import Site


def test_an_engine_that_is_killed_and_started_again_leaves_the_service_whole(engine: Engine, tmp_path: Path) -> None:
    """With live-restore and without it, while nothing happens and in the middle of a deploy; see daemon_scenario."""
    need("for an engine in a network of its own", ip="iproute2", nsenter="util-linux")
    image, image_file = f"{engine.name('inner')}:1", tmp_path / "image.tar"
    site = Site(engine, tmp_path / "outer")
    engine.build(site.repository.tree, image)
    engine.docker("save", "--output", str(image_file), image, timeout=300)
    with daemon.folder(engine.prefix) as folder, daemon.network(engine.name("net")) as enter:
        done = subprocess.run(
            [*enter, sys.executable, "-m", "support.daemon_scenario", str(folder), str(image_file), image],
            cwd=Path(__file__).resolve().parent.parent,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [".", os.environ.get("PYTHONPATH")]))},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-12000:]
