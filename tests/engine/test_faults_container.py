"""What runs the service is killed, taken away or in the way: it heals by itself, or the old one goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engine import Engine
from support.promises import refused, settled, until, works
from support.site import Site


@pytest.fixture(scope="module")
def site(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(engine, tmp_path_factory.mktemp("container"))
    try:
        made.deploy()
        yield made
    finally:
        made.close()


def processes(site: Site) -> dict[int, tuple[int, str]]:
    """The processes of the container as this machine numbers them: number -> (parent, command line)."""
    listed = site.engine.docker("top", site.container(), "-eo", "pid,ppid,args").splitlines()[1:]
    rows = (line.split(None, 2) for line in listed)
    return {int(pid): (int(parent), command) for pid, parent, command in rows}


def first_process(site: Site) -> int:
    """The container's own first process: supervisord."""
    return int(site.engine.docker("inspect", "--format", "{{.State.Pid}}", site.container()))


def uwsgi(site: Site) -> tuple[int, list[int]]:
    """uWSGI's master and its workers."""
    found = {pid: parent for pid, (parent, command) in processes(site).items() if "uwsgi" in command}
    masters = [pid for pid, parent in found.items() if parent not in found]
    assert len(masters) == 1, processes(site)
    return masters[0], [pid for pid, parent in found.items() if parent == masters[0]]


def slots(site: Site) -> int:
    """How many slots have a uWSGI with workers now."""
    found = {pid: parent for pid, (parent, command) in processes(site).items() if "uwsgi" in command}
    return len({parent for parent in found.values() if parent in found})


def serves(site: Site, commit: str) -> bool:
    """The service answers, with this release."""
    try:
        return site.get(timeout=5)[2] == commit
    except OSError:
        return False


def test_a_worker_that_is_killed_is_replaced_and_nobody_notices(site: Site) -> None:
    live = settled(site)
    master, workers = uwsgi(site)
    with site.load() as load:
        assert load.wait_count(10)
        os.kill(workers[0], signal.SIGKILL)
        until(lambda: len(set(uwsgi(site)[1]) - set(workers)) == 1, what="a new worker")
        assert load.wait_count(50)
    # What that very worker was just answering is lost with it; nothing else is.
    assert len(load.report.failed) <= 1, load.report.errors
    assert load.report.releases == [live]
    assert uwsgi(site)[0] == master
    works(site)


def test_a_uwsgi_master_that_is_killed_comes_back_while_requests_wait_at_the_held_socket(site: Site) -> None:
    live = settled(site)
    master, workers = uwsgi(site)
    with site.load() as load:
        assert load.wait_count(20)
        os.kill(master, signal.SIGKILL)
        until(lambda: master not in processes(site) and slots(site) == 1, what="a new master")
        assert load.wait_count(100)
    report = load.report
    # Requests that its workers were in the middle of end with them. All the others waited, and were answered.
    assert len(report.failed) <= len(workers), report.errors
    assert report.gap() < 1.0
    assert report.worst < 10
    assert report.releases == [live]
    assert not set(workers) & set(processes(site)), "no worker outlives its master"
    works(site)


def test_a_slot_that_is_killed_with_all_its_processes_comes_back(site: Site) -> None:
    live = settled(site)
    master, workers = uwsgi(site)
    with site.load() as load:
        assert load.wait_count(20)
        for pid in (master, *workers):
            with contextlib.suppress(ProcessLookupError):  # the master took it along
                os.kill(pid, signal.SIGKILL)
        until(lambda: serves(site, live))
        assert load.wait_count(100)
    assert len(load.report.failed) <= len(workers), load.report.errors
    works(site)


def test_a_keeper_that_is_killed_comes_back_and_the_next_deploy_works(site: Site) -> None:
    settled(site)
    keeper = next(pid for pid, (_, command) in processes(site).items() if "keeper.py" in command)
    with site.load() as load:
        os.kill(keeper, signal.SIGKILL)
        assert load.wait_count(50)
    assert not load.report.failed
    works(site)


@pytest.mark.parametrize("way", ["supervisord", "keeper and slots too"])
def test_a_container_whose_first_process_is_killed_heals_by_itself(site: Site, way: str) -> None:
    live = settled(site)
    first = first_process(site)
    if way != "supervisord":
        for pid in processes(site):
            if pid != first:
                os.kill(pid, signal.SIGSTOP)
    with site.load() as load:
        assert load.wait_count(10)
        os.kill(first, signal.SIGKILL)
        until(lambda: first_process(site) not in (0, first), what="the engine starts it again")
        until(lambda: serves(site, live))
        healed = time.monotonic()
        assert load.wait_count(100)
    report = load.report
    assert not report.window(healed, healed + 60).failed
    assert report.releases == [live]
    assert first_process(site) != first
    assert site.run("status", "--json").status == 0
    works(site)


def test_a_container_that_somebody_stopped_is_told_and_started_by_the_next_deploy(site: Site) -> None:
    live = settled(site)
    for how in (("kill",), ("stop", "-t", "5")):
        site.engine.docker(*how, site.container())
        until(lambda commit=live: not serves(site, commit))  # type: ignore[misc]
        status = site.run("status", "--json")
        assert status.status == 5
        said = site.deploy()
        assert said.result["outcome"] == "done", said.result
        assert serves(site, live)
        live = works_from_stopped(site)


def works_from_stopped(site: Site) -> str:
    """A deploy of a change when the container is down: it starts it, and the new release serves."""
    site.engine.docker("kill", site.container())
    commit = site.change("started", files=site.code("started"))
    site.deploy()
    assert serves(site, commit)
    return works(site)


def test_a_container_killed_while_a_release_boots_refuses_and_heals(site: Site) -> None:
    live = settled(site)
    first = first_process(site)
    site.change("boots slowly", import_seconds=3)
    running = site.start("deploy", "--json")
    try:
        until(
            lambda: sum("uwsgi" in command for _, command in processes(site).values()) > 5, what="the second slot boots"
        )
        os.kill(first, signal.SIGKILL)
        out, _ = running.communicate(timeout=120)
        assert running.returncode in (0, 3), out
        until(lambda: serves(site, str(site.current)))
        assert site.current == live or running.returncode == 0
    finally:
        running.kill()
        running.communicate()
    works(site)


def test_a_container_killed_in_the_soak_reverts_and_the_old_release_serves(site: Site) -> None:
    live = settled(site)
    first = first_process(site)
    site.configure(soak=8)
    try:
        new = site.change("killed in its soak")
        running = site.start("deploy", "--json")
        until(lambda: site.current == new)
        time.sleep(1)
        os.kill(first, signal.SIGKILL)
        out, _ = running.communicate(timeout=120)
        assert running.returncode == 4, out
        assert site.current == live
        until(lambda: serves(site, live))
    finally:
        site.configure(soak=0)
        running.kill()
        running.communicate()
    works(site)


def test_a_container_that_was_removed_is_made_again(site: Site) -> None:
    live = settled(site)
    site.engine.docker("rm", "--force", site.container())
    assert site.run("status", "--json").status == 5
    said = site.deploy()
    assert said.result["kind"] in ("full", "container")
    assert serves(site, live)
    works(site)


# --- ports and images --------------------------------------------------------------


def test_a_port_that_is_taken_when_the_first_container_starts_leaves_nothing_behind(
    engine: Engine, tmp_path: Path
) -> None:
    site = Site(engine, tmp_path)
    try:
        with socket.create_server(("127.0.0.1", site.port)):
            said = site.deploy(expect=None)
            refused(site, said, "docker-failed", status=4)
            assert "port" in said.error["hint"]
            assert site.current is None
            assert site.containers() == []
            assert site.run("status", "--json").status == 0
        site.deploy("--retry")
        assert serves(site, site.repository.head)
        works(site)
    finally:
        site.close()


def test_a_port_that_is_taken_at_a_container_deploy_brings_the_old_container_back(site: Site) -> None:
    live = settled(site)
    old = site.container()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        site.configure(ports=[f"127.0.0.1:{port}:8000"])
        try:
            said = site.deploy(expect=None)
        finally:
            site.configure(ports=[f"127.0.0.1:{site.port}:8000"])
    refused(site, said, "docker-failed", status=4)
    assert "port" in said.error["hint"]
    assert serves(site, live)
    assert site.container() == old
    assert site.containers() == [old]
    works(site)


def test_an_image_that_is_missing_refuses_before_the_old_container_is_touched(site: Site) -> None:
    live = settled(site)
    old, first = site.container(), first_process(site)
    built = site.settings.get("image")
    site.configure(image=f"lightship-no-such-image-{os.getpid()}:1")
    try:
        with site.load() as load:
            said = site.deploy(expect=None)
            assert said.status == 3, said.stdout
            assert "no-such-image" in said.error["message"]
        assert not load.report.failed
        assert load.report.releases == [live]
        assert (site.container(), first_process(site)) == (old, first)
    finally:
        site.configure()
        site.settings = {name: value for name, value in site.settings.items() if name != "image"}
        if built is not None:
            site.configure(image=built)
        site.configure()
    works(site)


def test_an_image_that_was_removed_from_the_server_is_built_again(site: Site) -> None:
    settled(site)
    image = site.engine.docker("inspect", "--format", "{{.Config.Image}}", site.container())
    site.engine.docker("image", "rm", "--force", image)
    works(site)  # a code deploy needs no image
    site.configure(env={"COLOUR": "green"})
    site.deploy()
    assert site.engine.docker("image", "ls", "--quiet", image)
    works(site)


def test_an_image_whose_application_cannot_start_never_replaces_the_old_container(site: Site) -> None:
    live = settled(site)
    old, first = site.container(), first_process(site)
    dockerfile = site.infrastructure()["Dockerfile"]
    for broken in ("RUN false\n", 'CMD ["sleep", "0"]\n'):
        site.repository.commit("broken image", {"Dockerfile": dockerfile + broken})
        with site.load() as load:
            said = site.deploy(expect=None)
        assert said.status == 3, said.stdout[-3000:]
        assert not load.report.failed
        assert load.report.releases == [live]
        assert (site.containers(), first_process(site)) == ([old], first)
    site.repository.write({"Dockerfile": dockerfile})
    works(site)
