"""No space, no inodes, a disk that cannot be written, files that are not what they should be: nothing breaks."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engine import Engine
from support.packages import find, need
from support.promises import refused, settled, unchanged, works
from support.site import Said, Site

MIB = 1024 * 1024


def command(*words: str | Path) -> None:
    program = find(str(words[0])) or str(words[0])
    done = subprocess.run([program, *(str(word) for word in words[1:])], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stderr)


class SmallDisk:
    """An ext4 file system of its own in a file: few bytes, few inodes."""

    def __init__(self, folder: Path, size: int = 320 * MIB, inodes: int = 6000) -> None:
        self.image, self.mount = folder / "disk.img", folder / "site" / "srv"
        self.mount.mkdir(parents=True)
        with self.image.open("wb") as file:
            file.truncate(size)
        command("mkfs.ext4", "-q", "-F", "-m", "0", "-N", str(inodes), self.image)
        command("mount", "-o", "loop", self.image, self.mount)

    @contextlib.contextmanager
    def filled(self, leave: int) -> Iterator[None]:
        """Only so many bytes are left."""
        path = self.mount / "filling"
        try:
            with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while (more := self.free() - leave) > 0:
                    os.posix_fallocate(file.fileno(), file.tell(), min(more, 4 * MIB))
                    file.seek(0, os.SEEK_END)
            if not leave:
                with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
                    while True:
                        file.write(b"\0" * 4096)
            yield
        finally:
            path.unlink()

    @contextlib.contextmanager
    def without_inodes(self, leave: int) -> Iterator[None]:
        """Only so many files more can be made."""
        folder = self.mount / "many"
        folder.mkdir()
        try:
            with contextlib.suppress(OSError):
                for number in range(max(0, os.statvfs(self.mount).f_favail - leave)):
                    (folder / str(number)).touch()
            yield
        finally:
            shutil.rmtree(folder)

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """The server cannot write there; the container, whose mounts are its own, still can."""
        command("mount", "-o", "remount,ro,bind", self.mount)
        try:
            yield
        finally:
            command("mount", "-o", "remount,rw,bind", self.mount)

    def free(self) -> int:
        """The bytes that are left."""
        found = os.statvfs(self.mount)
        return found.f_bavail * found.f_frsize

    def close(self) -> None:
        """Take it away."""
        subprocess.run(["umount", "--lazy", str(self.mount)], check=False)
        self.image.unlink()


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    """What these tests need beside the engine."""
    need("for the tests", mkfs_ext4="e2fsprogs", chattr="e2fsprogs", mount="mount")


@pytest.fixture(scope="module")
def disk(programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    made = SmallDisk(tmp_path_factory.mktemp("disk"))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def site(engine: Engine, disk: SmallDisk) -> Iterator[Site]:
    made = Site(engine, disk.mount.parent)
    try:
        made.deploy()
        yield made
    finally:
        made.close()


def numbers(said: Said, *names: str) -> None:
    """The refusal says what there is and what is needed."""
    found = [said.error["detail"][name] for name in names]
    assert all(isinstance(number, int) for number in found), said.error
    assert found[0] < found[1], said.error
    assert any(character.isdigit() for character in said.error["message"])
    assert said.error["hint"]


def test_a_disk_that_is_nearly_full_refuses_early_with_the_numbers(site: Site, disk: SmallDisk) -> None:
    site.change("full")
    before = sorted(path.name for path in (site.home / "code/releases").iterdir())
    with unchanged(site), disk.filled(leave=20 * MIB):
        said = site.deploy(expect=None)
        refused(site, said, "no-space")
        numbers(said, "free_bytes", "needed_bytes")
        assert sorted(path.name for path in (site.home / "code/releases").iterdir()) == before
    works(site)


def test_a_release_that_would_not_fit_is_refused_before_any_of_it_is_written(site: Site, disk: SmallDisk) -> None:
    settled(site)
    with unchanged(site), disk.filled(leave=110 * MIB):
        # Zeros: git keeps them in nearly nothing, so the fetch fits. The tree would not.
        site.repository.commit("large", {f"data/{number}.bin": bytes(30 * MIB) for number in range(3)})
        said = site.deploy(expect=None)
        refused(site, said, "no-space")
        numbers(said, "free_bytes", "needed_bytes")
        assert not list((site.home / "code/releases").glob(".making-*"))
    site.repository.commit("small again", {f"data/{number}.bin": None for number in range(3)})
    works(site)


def test_a_disk_without_a_single_free_byte_breaks_nothing(site: Site, disk: SmallDisk) -> None:
    site.change("no byte")
    with unchanged(site), disk.filled(leave=0):
        for _ in range(2):
            said = site.deploy(expect=None)
            refused(site, said, "no-space")
        assert site.run("status", "--json").status == 0
    works(site)


def test_few_inodes_refuse_early_with_the_numbers(site: Site, disk: SmallDisk) -> None:
    site.change("no inodes")
    with unchanged(site), disk.without_inodes(leave=300):
        said = site.deploy(expect=None)
        refused(site, said, "no-inodes")
        numbers(said, "free_inodes", "needed_inodes")
    works(site)


def test_no_inode_at_all_breaks_nothing(site: Site, disk: SmallDisk) -> None:
    site.change("no inode")
    with unchanged(site), disk.without_inodes(leave=0):
        said = site.deploy(expect=None)
        refused(site, said, "no-inodes")
        assert site.run("status", "--json").status == 0
    works(site)


def test_a_disk_that_cannot_be_written_is_told_and_what_serves_stays(site: Site, disk: SmallDisk) -> None:
    site.change("read-only")
    with unchanged(site), disk.read_only():
        said = site.deploy(expect=None)
        refused(site, said, "read-only")
        assert str(disk.mount) in said.error["message"]
        assert said.error["hint"]
        assert site.run("status", "--json").status == 0
    works(site)


@pytest.mark.parametrize(("name", "status"), [("state", 3), ("code/releases", 3), ("code/instances", 3), ("code", 4)])
def test_a_directory_that_may_not_be_changed_is_named_and_what_serves_stays(site: Site, name: str, status: int) -> None:
    place = site.home / name
    site.change(f"not in {name}")
    # What root may not do either: the immutable flag.
    command("chattr", "+i", place)
    try:
        with unchanged(site):
            said = site.deploy(expect=None)
            refused(site, said, "permission", status)
            assert said.error["hint"]
            assert str(place) in said.error["message"]
    finally:
        command("chattr", "-i", place)
    works(site)


def test_current_replaced_by_a_directory_is_told_and_repaired_by_what_the_hint_says(site: Site) -> None:
    before = settled(site)
    current = site.home / "code/current"
    target = current.readlink()
    site.change("directory")
    with site.load() as load:
        current.unlink()
        try:
            current.mkdir()
            (current / "mine.txt").write_text("somebody's")
            assert load.wait_count(20)
            said = site.deploy(expect=None)
            refused(site, said, "state-damaged")
            assert str(current) in said.error["message"]
            assert "ln -s" in said.error["hint"]
            assert (current / "mine.txt").read_text() == "somebody's"
            assert site.run("status", "--json", expect=None).status == 5
        finally:
            shutil.rmtree(current)
            current.symlink_to(target)
        assert load.wait_count(20)
    # What served went on, since nobody said that anything else should.
    assert not load.report.failed, load.report.errors
    assert load.report.releases == [before]
    works(site)


# --- the clock ---------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [3600, -3600])
def test_a_clock_that_was_stepped_an_hour_changes_no_decision(site: Site, seconds: int) -> None:
    """All that was written down lies an hour ahead, as after a step back of the clock; or an hour behind."""
    site.configure(keep=3)
    commits = [works(site) for _ in range(4)]
    before = commits[-1]
    shift_times(site, seconds)
    assert site.deploy().result["outcome"] == "nothing"
    with site.load() as load:
        assert load.wait_count(5)
        later = []
        for number in range(3):
            later.append(site.change(f"clock{number}"))
            site.deploy()
        assert load.wait_for(later[-1])
        assert site.run("rollback", "--json", expect=0).result["commit"] == later[-2]
        assert load.wait_for(later[-2])
    assert not load.report.failed, load.report.errors
    kept = {one["commit"] for one in site.run("releases", "--json").result["servers"][0]["releases"]}
    # What was deployed last is what is kept, whatever its date.
    assert set(later) <= kept
    assert commits[0] not in kept
    assert load.report.releases[0] == before
    site.configure(keep=5)
    works(site)


def shift_times(site: Site, seconds: int) -> None:
    """Move every time that was written down, and those of all files, as if the clock had been another one then."""
    for path in (site.home / "state/releases").glob("*.json"):
        told = json.loads(path.read_text())
        path.write_text(json.dumps({**told, "created": told["created"] + seconds}))
    history = site.home / "state/history.jsonl"
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    history.write_text("".join(json.dumps({**one, "started": one["started"] + seconds}) + "\n" for one in lines))
    for path in [site.home, *site.home.rglob("*")]:
        if not path.is_symlink():
            found = path.stat()
            os.utime(path, (found.st_atime + seconds, found.st_mtime + seconds))
