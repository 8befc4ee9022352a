"""What a user is promised of `swap`: each command on a real service, under 100 requests/s where something changes."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from support.engine import Engine
from support.load import Load, LoadReport
from support.observer import Observation, Observer
from support.repo import git
from support.site import Said, Site

KEEP = 3
BODY = "(v[0-9]+)"
numbers = itertools.count(2)


def fresh() -> str:
    """A version that no test has used yet."""
    return f"v{next(numbers)}"


def until(true: Callable[[], Any], seconds: float = 30) -> Any:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def first(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Said]]:
    """A service, and what its first deploy said."""
    made = Site(engine, tmp_path_factory.mktemp("deploy"), settings={"keep": KEEP, "health": {"path": "/health/"}})
    try:
        yield made, made.deploy(expect=None)
    finally:
        made.close()


@pytest.fixture
def site(first: tuple[Site, Said]) -> Site:
    """The service, live with the newest commit of its repository."""
    made = first[0]
    if made.current != made.repository.head or not made.answers():
        made.deploy("--retry")
    return made


@dataclass
class Seen:
    """What the load and the observer saw; there after the block."""

    load: LoadReport
    current: Observation


@contextmanager
def watched(site: Site, **options: Any) -> Iterator[tuple[Load, Observer, list[Seen]]]:
    """A load and an observer, from before the block until every answer to it is in."""
    head = site.repository.head
    files = {head: site.repository.files}
    seen: list[Seen] = []
    with (
        site.load(capture=BODY, **options) as load,
        site.observer(trees=files, require=["service/wsgi.py"]) as observer,
    ):
        assert load.wait_count(20)
        yield load, observer, seen
        assert load.wait_sent(time.monotonic(), 20)
    seen.append(Seen(load.report, observer.seen))


def nothing_failed(report: LoadReport) -> None:
    assert not report.failed, report.errors
    assert report.count > 50


@contextmanager
def docker_commands(site: Site) -> Iterator[list[str]]:
    """What docker is asked to do in the block: first words of its commands, as a program in its place notes them."""
    folder = site.folder / "shim"
    folder.mkdir(exist_ok=True)
    log, program = folder / "log", folder / "docker"
    log.write_text("")
    program.write_text(f'#!/bin/sh\necho "$1 $2" >> {log}\nexec {shutil.which("docker")} "$@"\n')
    program.chmod(0o755)
    found: list[str] = []
    site.environment["PATH"] = f"{folder}:{os.environ['PATH']}"
    try:
        yield found
    finally:
        del site.environment["PATH"]
        found += [line.split()[0] for line in log.read_text().splitlines()]
        program.unlink()


def image_of(site: Site) -> tuple[str, str]:
    """Name and id of the image that serves."""
    name, identity = site.engine.docker("inspect", "--format", "{{.Config.Image}} {{.Image}}", site.container()).split()
    return name, identity


def steps(said: Said) -> list[str]:
    """The steps that were done on the server."""
    return [step["name"] for step in said.result["servers"][0]["steps"]]


# --- the first one, and code ------------------------------------------------------------------------------------------


def test_the_first_deploy_builds_starts_and_serves(first: tuple[Site, Said]) -> None:
    site, said = first
    assert said.status == 0, said.shown
    assert said.result["kind"] == "full"
    assert said.result["outcome"] == "done"
    assert {"build", "tree", "try", "flip", "workers", "health", "commit"} <= set(steps(said))
    head = site.repository.head
    assert site.current == head
    assert site.get() == (200, "v1", head)
    workers = said.result["servers"][0]["workers"]
    assert len(workers) == 4
    assert {(worker["release"], worker["state"]) for worker in workers} == {(head, "serving")}


def test_a_code_deploy_is_one_rename_that_nobody_notices(site: Site) -> None:
    old, version = site.current, fresh()
    commit = site.change(version)
    with watched(site) as (_, _, seen):
        said = site.deploy()
        done = time.monotonic()
    report, current = seen[0].load, seen[0].current
    nothing_failed(report)
    assert said.result["kind"] == "code"
    assert [target for _, target in current.targets] == [old, commit]
    assert current.missing_count == 0
    assert not current.incomplete
    assert current.samples > 200
    # Each response is wholly of the old or of the new release, in its header and in its body.
    assert {(record.release, record.mark == version) for record in report.records} == {(old, False), (commit, True)}
    since = report.all_new_after(commit)
    assert since is not None
    assert since < done
    assert {record.release for record in report.window(done, done + 60).records} == {commit}
    assert report.worst < 2


def test_every_response_says_its_release(site: Site) -> None:
    commit = site.change(fresh(), fail_pages=True)
    site.deploy()
    assert site.get("/")[::2] == (500, commit)
    assert site.get("/health/")[::2] == (200, commit)
    commit = site.change(fresh())
    site.deploy()
    assert site.get("/nothing/here?x=%00")[2] == commit


def test_a_release_is_byte_for_byte_the_commit(site: Site) -> None:
    files = {"data/a b.bin": bytes(range(256)), "run.sh": "#!/bin/sh\n", "crlf.txt": "a\r\nb\r\n", "empty": ""}
    site.repository.write(files)
    (site.repository.tree / "run.sh").chmod(0o755)
    (site.repository.tree / "link").symlink_to("crlf.txt")
    site.change(fresh())
    site.deploy()
    commit = site.change(fresh(), {"empty": None, "crlf.txt": "a\r\nc\r\n"})
    site.deploy()
    tree = site.home / "code" / "releases" / commit
    found = {
        str(path.relative_to(tree)) for path in tree.rglob("*")
        if (path.is_symlink() or path.is_file()) and "__pycache__" not in path.parts
    }  # fmt: skip
    assert found == set(site.repository.files)
    for name in found:
        there, wanted = tree / name, site.repository.tree / name
        if wanted.is_symlink():
            assert there.readlink() == wanted.readlink()
            continue
        assert there.read_bytes() == wanted.read_bytes()
        assert there.stat().st_mode & 0o777 == (0o755 if wanted.stat().st_mode & 0o100 else 0o644)


def test_a_slow_request_in_flight_completes(site: Site) -> None:
    old = site.current
    answers: list[tuple[int, str, str]] = []
    request = threading.Thread(target=lambda: answers.append(site.get("/slow?seconds=12", timeout=60)))
    request.start()
    time.sleep(0.3)
    commit = site.change(fresh())
    said = site.deploy()
    assert site.get()[2] == commit
    assert request.is_alive(), f"the deploy waited for the request ({said.seconds:.1f} s)"
    request.join()
    assert [(status, release) for status, _, release in answers] == [(200, old)]


def test_connections_that_are_kept_alive_make_no_difference(site: Site) -> None:
    commit = site.change(fresh())
    with watched(site, keep_alive=True) as (_, _, seen):
        site.deploy()
    nothing_failed(seen[0].load)
    assert seen[0].load.releases[-1] == commit
    assert seen[0].load.all_new_after(commit) is not None


def test_ten_deploys_back_to_back(site: Site) -> None:
    commits = [site.current]
    with watched(site) as (load, _, seen):
        for _ in range(10):
            commits.append(site.change(fresh()))
            site.deploy()
            assert load.wait_for(str(commits[-1]), 10)
    nothing_failed(seen[0].load)
    assert seen[0].load.releases == commits
    assert [target for _, target in seen[0].current.targets] == commits
    assert seen[0].current.missing_count == 0
    # Nothing of the old ones is left: four workers and a master, in one container.
    until(lambda: site.engine.docker("top", site.container(), "-eo", "pid,args").count("uwsgi --ini") == 5)
    assert site.containers() == [site.container()]


# --- what must change nothing -----------------------------------------------------------------------------------------


def test_a_release_that_does_not_import_is_refused(site: Site) -> None:
    old, before = site.current, site.workers()
    commit = site.change(fresh(), more="import missing_package_of_mine")
    try:
        with watched(site) as (_, _, seen):
            human = site.run("deploy", expect=3)
            machine = site.deploy("--retry", expect=3)
    finally:
        repaired = site.change(fresh())
    report = seen[0].load
    nothing_failed(report)
    assert {(record.status, record.release) for record in report.records} == {(200, old)}
    assert len({record.mark for record in report.records}) == 1
    assert [target for _, target in seen[0].current.targets] == [old]
    assert site.workers() == before
    last = "ModuleNotFoundError: No module named 'missing_package_of_mine'"
    assert last in human.stderr
    assert "Traceback" not in human.stderr
    assert f"{commit[:7]} was refused, nothing was changed" in human.stdout
    error = machine.error
    assert (error["code"], machine.json["exit_status"]) == ("boot-failed", 3)
    assert last in error["message"]
    assert error["detail"]["traceback"].rstrip().endswith(last)
    assert 'service/version.py", line' in error["detail"]["traceback"]
    # It is not tried again unasked; what repairs it goes through at once.
    state = {one["commit"]: one["state"] for one in site.run("releases", "--json").result["servers"][0]["releases"]}
    assert state[commit] == "failed"
    site.deploy()
    assert site.current == repaired


def test_a_release_that_failed_is_not_tried_again_unasked(site: Site) -> None:
    commit = site.change(fresh(), health="500 Internal Server Error")
    try:
        said = site.deploy(expect=3)
        assert "500" in said.error["message"]
        again = site.deploy(expect=3)
        assert (again.error["code"], "--retry" in again.error["hint"]) == ("failed-before", True)
        assert site.run("plan", "--json").result["plans"][0][1]["blocked"]
        assert site.deploy("--retry", expect=3).error["code"] == "boot-failed"
        assert site.current != commit
    finally:
        site.change(fresh())


def test_deploying_what_is_live_changes_nothing_and_says_so(site: Site) -> None:
    before = site.snapshot()
    said = site.run("deploy", expect=0)
    assert "is live already, nothing to do" in said.stdout
    machine = site.deploy()
    assert (machine.result["kind"], machine.result["outcome"]) == ("nothing", "nothing")
    assert site.run("deploy", "--commit", str(site.current), expect=0).stdout == said.stdout
    assert site.snapshot() == before


def test_a_plan_tells_all_and_changes_nothing(site: Site) -> None:
    commits = [site.change(fresh()), site.change(fresh(), {"service/new.py": "", "requirements.txt": "# changed\n"})]
    before = site.snapshot()
    with watched(site) as (_, _, seen):
        human = site.run("plan", expect=0).stdout
        dry = site.run("deploy", "--dry-run", expect=0).stdout
        plan = site.run("plan", "--json", expect=0).result["plans"][0][1]
        code = site.run("plan", "--kind", "code", "--json", expect=0).result
    assert site.snapshot() == before
    assert {record.release for record in seen[0].load.records} == {site.current}
    assert human == dry
    for text in (
        *(commit[:7] for commit in commits),
        "service/new.py",
        "requirements.txt (infrastructure)",
        "full deploy",
    ):
        assert text in human
    assert plan["kind"] == "full"
    assert plan["why"][0] == "requirements.txt changed"
    assert [one["commit"] for one in plan["change"]["commits"]] == commits[::-1]
    assert plan["steps"][0]["name"] == "build"
    assert code["kind"] == "code"
    site.repository.replace("requirements.txt", "# changed\n", "# nothing but uWSGI\n")


# --- going back, and what is kept -------------------------------------------------------------------------------------


@contextmanager
def without_git_server(site: Site) -> Iterator[None]:
    """The repository cannot be reached."""
    away = site.repository.remote.with_suffix(".away")
    site.repository.remote.rename(away)
    try:
        yield
    finally:
        away.rename(site.repository.remote)


def test_a_rollback_needs_no_git_server_and_drops_no_request(site: Site) -> None:
    commits = [site.change(fresh()) for _ in range(1)]
    site.deploy()
    commits.append(site.change(fresh()))
    site.deploy()
    with watched(site) as (_, _, seen), without_git_server(site):
        said = site.run("rollback", "--json", expect=0)
    nothing_failed(seen[0].load)
    assert said.result["commit"] == commits[0] == site.current
    assert said.result["kind"] == "code"
    assert [target for _, target in seen[0].current.targets] == commits[::-1]
    assert seen[0].load.all_new_after(commits[0]) is not None
    # Back and forth: what was gone back from is the next one to go to.
    assert site.run("rollback", "--json", expect=0).result["commit"] == commits[1]
    assert site.run("rollback", "--to", commits[0][:8], expect=0).status == 0
    assert site.current == commits[0]
    assert "is live already, nothing to do" in site.run("rollback", "--to", commits[0], expect=0).stdout
    site.deploy()
    assert site.current == commits[1]


def test_a_rollback_to_what_is_not_here_says_what_to_do(site: Site) -> None:
    before = site.snapshot()
    for unknown, status in (("0" * 40, 2), ("../../etc", 2), ("--help", 0)):
        said = site.run("rollback", f"--to={unknown}" if status else unknown)
        assert said.status == status
    assert "lightship releases" in site.run("rollback", "--to", "0" * 40).stderr
    assert site.snapshot() == before


def test_old_releases_go_but_never_what_is_needed(site: Site) -> None:
    first = site.change(fresh())
    site.deploy()
    inodes = set()
    for _ in range(KEEP + 3):
        site.change(fresh())
        said = site.deploy()
        inodes.add((site.home / "code" / "releases" / str(site.current)).stat().st_ino)
        listed = site.run("releases", "--json").result["servers"][0]
        there = {path.name for path in (site.home / "code" / "releases").iterdir()}
        assert there == {one["commit"] for one in listed["releases"]}
        assert {listed["current"], listed["stable"], listed["previous"]} <= there
        # One more than are kept: its tree is what the next release is made from.
        assert len(there) <= KEEP + 1
        assert said.result["outcome"] == "done"
    assert first not in there
    # The trees take turns: each release is an old one brought forward, and not a fresh one.
    assert len(inodes) <= KEEP + 1
    assert len(list((site.home / "state" / "releases").iterdir())) == len(there)


# --- the container ----------------------------------------------------------------------------------------------------


def test_a_container_that_was_stopped_is_started(site: Site) -> None:
    name, identity = site.container(), site.snapshot()["container"].split()[0]
    site.engine.docker("stop", "-t", "1", name)
    status = site.run("status", expect=5)
    assert "does not run" in status.stdout
    said = site.deploy()
    assert (said.result["kind"], "start" in steps(said)) == ("code", True)
    assert site.get()[::2] == (200, site.current)
    assert site.snapshot()["container"].split()[0] == identity
    # The same when there is new code as well.
    site.engine.docker("stop", "-t", "1", name)
    commit = site.change(fresh())
    site.deploy()
    assert site.get()[::2] == (200, commit)
    assert site.container() == name


def test_a_slot_that_does_not_serve_is_replaced_by_the_same_release(site: Site) -> None:
    """Somebody stopped uWSGI by hand: what is on disk is right, and still there is something to do."""
    (before,) = {worker["pid"] for worker in site.workers() if worker["id"] == 1}
    name, slot = site.container(), next(iter(site.run("status", "--json").result["servers"][0]["facts"]["slots"]))
    control = ("exec", name, "supervisorctl", "-c", "/etc/lightship/supervisord.conf")
    site.engine.docker(*control, "stop", f"slot:slot_{slot}")
    assert "no worker" in site.run("status", expect=5).stdout
    said = site.deploy()
    assert said.result["why"] == [f"no worker serves {str(site.current)[:7]}"]
    assert site.get()[::2] == (200, site.current)
    assert before not in {worker["pid"] for worker in site.workers()}
    assert site.container() == name


def test_a_container_that_was_removed_comes_back_without_a_build(site: Site) -> None:
    image = image_of(site)
    site.engine.docker("rm", "--force", site.container())
    assert "there is no container" in site.run("status", expect=5).stdout
    with docker_commands(site) as asked:
        said = site.deploy()
    assert said.result["kind"] in ("container", "full")
    assert "create" in asked
    assert "build" not in steps(said)
    assert image_of(site) == image
    assert site.get()[::2] == (200, site.current)
    assert len(site.containers()) == 1


def test_a_change_of_infrastructure_is_a_container_deploy(site: Site) -> None:
    old, image = site.container(), image_of(site)
    known = (site.repository.tree / "requirements.txt").read_text()
    site.repository.commit("Another package", {"requirements.txt": f"{known}# another\n"})
    said = site.deploy()
    assert said.result["kind"] == "container"
    assert said.result["why"] == ["requirements.txt changed"]
    assert "build" in steps(said)
    assert site.containers() == [site.container()] != [old]
    assert image_of(site)[0] != image[0]
    assert site.get()[::2] == (200, site.current)
    # Back to files that are known: the image of that fingerprint is there, and not built again.
    site.repository.commit("Not after all", {"requirements.txt": known})
    with docker_commands(site) as asked:
        said = site.deploy()
    assert said.result["kind"] == "container"
    assert "create" in asked
    assert "build" not in steps(said)
    assert image_of(site) == image
    # Together with code it is a full deploy.
    version = fresh()
    commit = site.change(version, {"requirements.txt": f"{known}# another\n"})
    assert site.deploy().result["kind"] == "full"
    assert site.get() == (200, version, commit)


def test_a_rollback_across_containers_needs_no_git_server_and_no_build(site: Site) -> None:
    image, before = image_of(site), site.current
    text = (site.repository.tree / "requirements.txt").read_text()
    site.change(fresh(), {"requirements.txt": f"{text}# one more\n"})
    site.deploy()
    assert image_of(site)[0] != image[0]
    with without_git_server(site), docker_commands(site) as asked:
        said = site.run("rollback", "--json", expect=0)
    assert said.result["kind"] == "container"
    assert "create" in asked
    assert not {"build", "pull", "push", "load"} & {*asked, *steps(said)}
    assert image_of(site) == image
    assert site.get()[::2] == (200, before)


def test_a_change_of_variables_is_a_container_deploy(site: Site) -> None:
    settings = dict(site.settings)
    try:
        site.configure(env={"COLOUR": "green and blue"})
        said = site.deploy()
        assert said.result["kind"] == "container"
        assert "build" not in steps(said)
        assert said.result["why"] == ["environment or secrets changed"]
        assert site.run("exec", "--", "printenv", "COLOUR").stdout == "green and blue\n"
        assert site.deploy().result["kind"] == "nothing"
        assert (site.home / "env").stat().st_mode & 0o777 == 0o600
    finally:
        site.settings = settings
        site.configure()
        last = site.deploy()
    assert last.result["kind"] == "container"
    assert site.run("exec", "--", "printenv", "COLOUR").status == 1


def test_kind_overrides_what_lightship_would_choose(site: Site) -> None:
    name = site.container()
    text = (site.repository.tree / "requirements.txt").read_text()
    commit = site.change(fresh(), {"requirements.txt": f"{text}# later\n"})
    said = site.deploy("--kind", "code")
    assert (said.result["kind"], site.container()) == ("code", name)
    assert said.result["why"][:2] == ["asked for with --kind code", "requirements.txt changed"]
    assert site.get()[::2] == (200, commit)
    site.repository.commit("As it was", {"requirements.txt": text})
    assert site.deploy().result["kind"] == "code"
    for kind in ("container", "full"):
        said = site.deploy("--kind", kind)
        assert said.result["kind"] == kind
        assert site.containers() == [site.container()] != [name]
        name = site.container()
    assert site.run("deploy", "--kind", "none").status == 2


# --- looking ----------------------------------------------------------------------------------------------------------


def test_status_tells_expected_on_disk_and_loaded(site: Site) -> None:
    said = site.run("status", expect=0)
    short = str(site.current)[:7]
    lines = [line.split() for line in said.stdout.splitlines()]
    assert [line[1] for line in lines if line[0] in ("expected", "loaded")] == [short] * 5
    assert [line[2] for line in lines if line[:2] == ["on", "disk"]] == [short]
    server = site.run("status", "--json", expect=0).result["servers"][0]
    assert (server["expected"], server["on_disk"], server["loaded"]) == (site.current, site.current, [site.current])
    running = site.engine.docker("top", site.container(), "-eo", "pid").split()[1:]
    assert len(server["facts"]["slots"]) == 1
    workers = site.workers()
    assert sorted(worker["id"] for worker in workers) == [1, 2, 3, 4]
    # The pids are those of the container; the engine shows each with its number outside of it.
    inside = (
        site.engine.docker("exec", site.container(), "sh", "-c", "ls -d /proc/[0-9]*").replace("/proc/", "").split()
    )
    assert {str(worker["pid"]) for worker in workers} <= set(inside)
    assert len(running) >= 5


def test_status_ends_with_5_when_another_release_is_on_disk_than_was_deployed(site: Site) -> None:
    link = site.home / "code" / "current"
    now, other = link.readlink(), next(
        path for path in (site.home / "code" / "releases").iterdir() if path.name != site.current
    )  # fmt: skip
    (site.home / "code" / "next").symlink_to(f"releases/{other.name}")
    (site.home / "code" / "next").rename(link)
    try:
        server = site.run("status", "--json", expect=5).result["servers"][0]
        assert (server["expected"], server["on_disk"]) == (now.name, other.name)
        said = site.run("status", expect=5)
        assert f"{other.name[:7]}" in said.stdout
        assert "live" not in said.stdout.splitlines()[0]
    finally:
        site.deploy()
    assert (site.current, site.run("status").status) == (now.name, 0)


def test_releases_are_listed_newest_first(site: Site) -> None:
    version = fresh()
    commit = site.change(version)
    before = site.current
    site.deploy()
    lines = site.run("releases", expect=0).stdout.splitlines()
    assert lines[0].startswith(commit[:7])
    assert f"Version {version} [current]" in lines[0]
    assert [line.split()[0] for line in lines if "rollback goes here" in line] == [str(before)[:7]]
    times = [one["created"] for one in site.run("releases", "--json").result["servers"][0]["releases"]]
    assert times == sorted(times, reverse=True)


def test_logs_show_what_the_service_wrote_and_follow_it(site: Site) -> None:
    # A name that changes with each run: what is waited for cannot be an old line.
    commit = site.change(fresh(), more="print('hello from', VERSION, '\\x1b[31mred', flush=True)")
    following = site.start("logs", "--follow", "--lines", "1")
    try:
        site.deploy()
        lines = []
        deadline = time.monotonic() + 20
        assert following.stdout is not None
        for line in following.stdout:
            lines.append(line)
            if "hello from" in line or time.monotonic() > deadline:
                break
        assert "hello from v" in lines[-1]
        following.send_signal(signal.SIGINT)
        assert following.wait(20) == 130
    finally:
        following.kill()
        following.wait()
        for pipe in (following.stdout, following.stderr):
            if pipe is not None:
                pipe.close()
    said = site.run("logs", "--lines", "300", expect=0)
    assert "hello from v" in said.stdout
    assert len(site.run("logs", "--lines", "2", expect=0).stdout.splitlines()) <= 2
    machine = site.run("logs", "--json", expect=0).result
    assert any("hello from v" in line["text"] for line in machine["lines"])
    assert site.current == commit


def test_exec_runs_in_the_release_and_passes_its_status_on(site: Site) -> None:
    said = site.run("exec", "--", "sh", "-c", "pwd; id -un; echo wrong >&2; exit 7")
    assert said.status == 7
    assert said.stdout == f"/srv/lightship/code/releases/{site.current}\napp\n"
    assert said.stderr == "wrong\n"
    version = site.run("exec", "--", "python", "-c", "from service import version; print(version.VERSION)", expect=0)
    assert version.stdout.splitlines()[-1] == site.get()[1]
    assert site.run("exec", "--", "touch", "new-file").status != 0
    unknown = site.run("exec", "--", "/no/such/program", expect=127)
    assert unknown.stderr == "cannot run /no/such/program: No such file or directory\n"


def test_commands_work_from_a_folder_below_the_configuration(site: Site) -> None:
    below = site.folder / "some" / "where"
    below.mkdir(parents=True)
    commit = site.change(fresh())
    site.run("deploy", folder=below, expect=0)
    assert site.current == commit
    shutil.rmtree(below)


def test_a_branch_a_tag_and_a_commit_can_be_deployed(site: Site) -> None:
    tree = site.repository.tree
    commits = [site.change(fresh()) for _ in range(3)]
    git(tree, "tag", "some-tag", commits[0])
    git(tree, "push", "--quiet", "origin", "some-tag", f"{commits[1]}:refs/heads/other")
    for arguments, commit in (
        (("--ref", "some-tag"), commits[0]),
        (("--ref", "other"), commits[1]),
        (("--commit", commits[0]), commits[0]),
        (("--commit", commits[1][:9]), commits[1]),
        ((), commits[2]),
    ):
        site.deploy(*arguments)
        assert site.current == commit
    said = site.deploy("--ref", "no-such-branch", expect=None)
    assert said.status in (2, 3)
    assert "no-such-branch" in said.error["message"]
    assert site.current == commits[2]


COMMANDS: tuple[tuple[tuple[str, ...], str, int], ...] = (
    (("deploy",), "deploy", 0),
    (("deploy", "--dry-run"), "deploy", 0),
    (("deploy", "nobody"), "deploy", 2),
    (("deploy", "--ref", "-x"), "deploy", 2),
    (("deploy", "--commit", "zzz"), "deploy", 2),
    (("plan",), "plan", 0),
    (("rollback", "--dry-run"), "rollback", 0),
    (("rollback", "--to", "0" * 40), "rollback", 2),
    (("status",), "status", 0),
    (("releases",), "releases", 0),
    (("logs",), "logs", 0),
    (("exec", "--", "sh", "-c", "exit 3"), "exec", 3),
    (("config", "check"), "config check", 0),
    (("config", "show"), "config show", 0),
)


@pytest.mark.parametrize(("arguments", "name", "status"), COMMANDS, ids=[" ".join(one[0]) for one in COMMANDS])
def test_json_is_one_envelope_whatever_happens(site: Site, arguments: tuple[str, ...], name: str, status: int) -> None:
    command, *rest = arguments
    place = 1 if command == "config" else 0
    said = site.run(command, *rest[:place], "--json", *rest[place:])
    assert said.status == status, said.stdout + said.stderr
    document = json.loads(said.stdout)
    assert said.stdout.isascii()
    assert set(document) == {"version", "command", "ok", "exit_status", "result", "error"}
    assert (document["version"], document["command"]) == (1, name)
    assert (document["exit_status"], document["ok"]) == (status, status == 0)
    if document["error"] is not None:
        assert set(document["error"]) == {"code", "message", "hint", "detail"}
        assert document["error"]["message"]
    elif not status:
        assert document["result"] is not None
    assert said.stderr == ""


def test_the_schema_is_json_too(site: Site) -> None:
    assert "Service" in site.run("config", "schema", expect=0).json["$defs"]


def test_a_reader_that_goes_away_ends_nothing_halfway(site: Site) -> None:
    """`lightship deploy | head -1`: the deploy goes on to its end, and its status is its own."""
    commit = site.change(fresh())
    running = site.start("deploy")
    assert running.stdout is not None
    assert running.stderr is not None
    try:
        running.stdout.close()
        assert running.stderr.read() == ""
        assert running.wait(60) == 0
    finally:
        running.kill()
        running.wait()
        running.stderr.close()
    assert site.current == commit
    assert {worker["release"] for worker in site.workers()} == {commit}
