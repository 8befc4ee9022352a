"""The engine is killed and started again under a service that serves. Run within a network of its own:

``python -m support.daemon_scenario FOLDER IMAGE_FILE IMAGE``, exit status 0 when all was as it should be.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from support.daemon import Daemon
from support.engine import Engine
from support.load import LoadReport
from support.promises import until, works
from support.site import Site


def serves(site: Site, commit: str | None) -> bool:
    """It answers, with this release."""
    try:
        return site.get(timeout=5)[2] == commit
    except OSError:
        return False


def refused_while_it_is_away(site: Site) -> None:
    """A deploy says what is wrong, quickly, and changes nothing."""
    before = site.current
    site.change("away")
    said = site.deploy(expect=None)
    assert said.status == 3, said.stdout[-3000:]
    assert said.error["code"] == "engine-unreachable", said.error
    assert "start" in said.error["hint"]
    assert said.seconds < 30
    assert site.current == before


def only_refused_between(begun: float, ended: float, report: LoadReport) -> None:
    """No request failed but those that the engine's own start had refused."""
    outside = [one for one in report.failed if not begun <= one.due <= ended or one.error != "refused"]
    assert not outside, (begun, ended, outside[:3])


def without_live_restore(daemon: Daemon, site: Site) -> None:
    """The container is started again by the new engine, with nobody's help, and the next deploy works."""
    live = works(site)
    with site.load(seconds=120) as load:
        assert load.wait_count(10)
        daemon.kill()
        assert load.wait_count(50)
        refused_while_it_is_away(site)
        away = load.so_far()
        daemon.start(live_restore=False)
        until(lambda: serves(site, live), 60)
        assert load.wait_for(live)
    # While only the engine was away, its containers served.
    assert not away.failed, away.errors
    sys.stderr.write(
        f"{json.dumps({'without live-restore': load.report.as_dict()['errors'], 'gap': load.report.gap()})}\n"
    )
    works(site)


def with_live_restore(daemon: Daemon, site: Site) -> None:
    """While the engine is away nobody notices. When it starts it makes its port forwarding anew, and there is none for
    a moment: that is its own."""
    daemon.kill()
    daemon.start(live_restore=True)
    until(lambda: serves(site, site.current), 60)
    live = works(site)
    with site.load(seconds=120) as load:
        assert load.wait_count(10)
        daemon.kill()
        refused_while_it_is_away(site)
        begun = time.monotonic()
        daemon.start(live_restore=True)
        ended = time.monotonic()
        assert load.wait_count(50)
    only_refused_between(begun, ended, load.report)
    assert load.report.releases == [live]
    works(site)


def killed_in_the_middle(daemon: Daemon, site: Site) -> None:
    """A release that boots just then serves or is refused, and the next deploy works."""
    live = works(site)
    new = site.change("in the middle", import_seconds=3)
    with site.load(seconds=120) as load:
        running = site.start("deploy", "--json")
        until((site.home / "code/releases" / new).exists, 60)
        daemon.kill()
        out, err = running.communicate(timeout=120)
        assert running.returncode in (0, 3), (out, err)
        assert site.current == (new if running.returncode == 0 else live)
        begun = time.monotonic()
        daemon.start(live_restore=True)
        ended = time.monotonic()
        until(lambda: serves(site, site.current), 60)
    only_refused_between(begun, ended, load.report)
    works(site)


def evidence(daemon: Daemon, site: Site | None) -> str:
    """What the engine and the service's container said last."""
    commands = [["docker", "ps", "--all", "--no-trunc"], ["ss", "-ltnp"]]
    commands += [["docker", "logs", "--timestamps", "--tail", "40", site.container()]] if site else []
    said = [(daemon.folder / "log").read_text()[-4000:]]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        said += [" ".join(command), done.stdout, done.stderr]
    return "\n".join(said)


def main() -> None:
    """Run them all."""
    folder, image_file, image = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    daemon = Daemon(folder)
    os.environ["DOCKER_HOST"] = f"unix://{daemon.socket}"
    site = None
    try:
        daemon.start(live_restore=False)
        subprocess.run(["docker", "load", "--quiet", "--input", image_file], check=True, capture_output=True)
        engine = Engine(prefix="inner", worker=0, base_image=image)
        site = Site(engine, folder / "site", settings={"image": image})
        site.deploy()
        without_live_restore(daemon, site)
        with_live_restore(daemon, site)
        killed_in_the_middle(daemon, site)
    except BaseException:
        sys.stderr.write(evidence(daemon, site))
        raise
    finally:
        if site is not None and daemon.answers():
            site.close()
        daemon.close()


if __name__ == "__main__":
    main()
