"""A tree brought forward is the tree of a fresh checkout; stale byte code is never left; a kill leaves no half tree."""

# os.* says which system call it is.
# ruff: noqa: PTH115, PTH208

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lightship_agent import release as releases
from lightship_agent import system
from lightship_agent.errors import AgentFailure, ProtocolError, Refused
from lightship_agent.git import Mirror
from lightship_agent.paths import ServicePaths
from lightship_agent.release import Release
from support.repo import ALONE

Tree = dict[bytes, tuple[str, bytes]]
"""path -> (mode as git writes it, content)"""


def build(path: Path, trees: Sequence[Tree]) -> list[str]:
    """A bare repository with one commit for each tree, by git's own import: any name and mode git can hold."""
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(path)], env=ALONE, check=True)
    out = bytearray()
    for number, tree in enumerate(trees, 1):
        out += b"commit refs/heads/main\nmark :%d\ncommitter A <a@b> %d +0000\ndata 1\nx\n" % (number, 1_700_000_000)
        if number > 1:
            out += b"from :%d\n" % (number - 1)
        out += b"deleteall\n"
        for name, (mode, content) in tree.items():
            quoted = b'"' + name.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n") + b'"'
            if mode == "160000":
                out += b"M 160000 %s %s\n" % (b"1" * 40, quoted)
            else:
                out += b"M %s inline %s\ndata %d\n%s\n" % (mode.encode(), quoted, len(content), content)
    command = ["git", f"--git-dir={path}", "fast-import", "--quiet", "--export-marks=marks"]
    subprocess.run(command, input=bytes(out), env=ALONE, check=True, cwd=path)
    marks = dict(line.split() for line in (path / "marks").read_text().splitlines())
    return [marks[f":{number}"] for number in range(1, len(trees) + 1)]


class Server:
    """A service's directories, and a mirror of the repository that was built."""

    def __init__(self, root: Path, trees: Sequence[Tree]) -> None:
        self.paths = ServicePaths.at(str(root), "shop")
        self.paths.releases.mkdir(parents=True)
        self.paths.state.mkdir()
        self.origin = root / "origin.git"
        self.commits = build(self.origin, trees)
        self.mirror = Mirror(self.paths, base_env=ALONE)
        self.mirror.fetch(str(self.origin), "main", self.commits[-1])

    def make(self, number: int, recycle: Sequence[int] = (), **words: object) -> releases.Made:
        made = releases.make(
            self.paths,
            self.mirror,
            self.commits[number],
            guard=lambda: None,
            recycle=[self.commits[n] for n in recycle],
            **words,  # type: ignore[arg-type]
        )
        assert releases.verify_tree(self.paths, self.mirror, self.commits[number]) == []
        assert sorted(os.listdir(self.paths.state)) == ["releases"]
        assert not [name for name in os.listdir(self.paths.releases) if name.startswith(".")]
        return made

    def tree(self, number: int) -> Path:
        return self.paths.release(self.commits[number])


def compile_all(tree: Path) -> None:
    """Byte code as Python leaves it, beside every module."""
    for root, directories, files in os.walk(tree):
        cache = Path(root) / "__pycache__"
        directories[:] = [name for name in directories if name != "__pycache__"]
        if cache.is_symlink() or cache.is_file():
            continue
        for name in files:
            source = Path(root) / name
            code = cache / f"{name[:-3]}.cpython-311.pyc"
            if name.endswith(".py") and source.is_file() and not code.exists():
                cache.mkdir(exist_ok=True)
                code.write_bytes(b"made from " + source.read_bytes())


def stale(tree: Path) -> list[str]:
    """Byte code that was not made from what its source is now."""
    found = []
    for cache in tree.rglob("__pycache__"):
        for code in cache.glob("*.pyc") if cache.is_dir() else ():
            source = cache.parent / (code.name.split(".")[0] + ".py")
            data = code.read_bytes() if code.is_file() else b""
            if data.startswith(b"made from ") and not (
                source.is_file() and data == b"made from " + source.read_bytes()
            ):
                found.append(str(code))
    return found


FILE, PROGRAM, LINK = "100644", "100755", "120000"


def test_a_fresh_tree_is_the_commit_byte_for_byte(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    tree: Tree = {
        b"a.py": (FILE, b"x = 1\n"),
        b"run.sh": (PROGRAM, b"#!/bin/sh\n"),
        b"link": (LINK, b"/etc/passwd"),
        b"d/\xff\n\"x'": (FILE, b"odd name"),
        b"crlf.txt": (FILE, b"a\r\nb\r\n"),
        b"lf.txt": (FILE, b"a\nb\n"),
        b"id.txt": (FILE, b"$Id$ $Format:%H$\n"),
        b"filtered.bin": (FILE, b"pointer\n"),
        b"empty": (FILE, b""),
        b".gitattributes": (
            FILE,
            b"* text=auto eol=crlf\nid.txt ident export-subst\nlf.txt export-ignore\nfiltered.bin filter=evil\n"
            b"crlf.txt working-tree-encoding=UTF-16\n",
        ),
    }
    server = Server(tmp_path, [tree])
    with (server.paths.repo / "config").open("a") as file:
        file.write(f'[filter "evil"]\n\tsmudge = touch {proof}\n\trequired = true\n[core]\n\tautocrlf = true\n')
    old = os.umask(0o077)
    try:
        made = server.make(0)
    finally:
        os.umask(old)
    assert made.tree == "fresh"
    assert not proof.exists()
    assert (server.tree(0) / "crlf.txt").read_bytes() == b"a\r\nb\r\n"
    for path in (server.tree(0), server.tree(0) / "d", server.tree(0) / "run.sh"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert stat.S_IMODE((server.tree(0) / "a.py").stat().st_mode) == 0o644
    assert made.release.state == "prepared"
    assert server.make(0).tree == "there"


def random_tree(chance: random.Random, last: Tree) -> Tree:
    """Another tree: contents, modes, kinds and places change, files become directories and the other way round."""
    tree = dict(last)
    for _ in range(chance.randint(1, 8)):
        name = random_name(chance)
        action = chance.random()
        if action < 0.3 and tree:
            tree.pop(chance.choice(sorted(tree)))
        elif action < 0.4 and tree:
            path = chance.choice(sorted(tree))
            mode, content = tree[path]
            if mode != LINK:
                tree[path] = (PROGRAM if mode == FILE else FILE, content)
        elif action < 0.5 and tree:
            old = chance.choice(sorted(tree))
            put(tree, name, tree.pop(old))
        elif action < 0.6:
            put(tree, name, (LINK, chance.choice([b"a", b"pkg", b"/etc", b"../x", b"b.py"])))
        else:
            # Few contents of one size: what Python tells byte code from, time and size, is often the same.
            put(tree, name, (chance.choice([FILE, FILE, PROGRAM]), b"x = %d\n" % chance.randint(0, 3)))
    return tree


def random_name(chance: random.Random) -> bytes:
    parts = [b"a", b"b", b"pkg", b"deep", b"a.py", b"b.py", b"__init__.py", b"odd\n\xfe.py", b"cr\r", b".github"]
    parts += [b"__pycache__", b"__pycache__/a.cpython-311.pyc"]
    return b"/".join(chance.choice(parts) for _ in range(chance.randint(1, 4)))


def put(tree: Tree, name: bytes, entry: tuple[str, bytes]) -> None:
    for other in list(tree):
        if other.startswith(name + b"/") or name.startswith(other + b"/"):
            del tree[other]
    tree[name] = entry


@pytest.mark.parametrize("seed", range(4))
def test_a_tree_brought_forward_is_a_fresh_one(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    trees: list[Tree] = [{b"a.py": (FILE, b"x = 0\n"), b"pkg/b.py": (FILE, b"x = 0\n")}]
    while len(trees) < 12:
        trees.append(random_tree(chance, trees[-1]))
    server = Server(tmp_path, trees)
    server.make(0)
    ways = set()
    at = 0
    for _ in range(14):
        compile_all(server.tree(at))
        to = chance.choice([number for number in range(len(trees)) if number != at])
        made = server.make(to, [at])
        ways.add(made.tree)
        assert stale(server.tree(to)) == []
        for number in range(len(trees)):
            if number != to and server.tree(number).exists():
                releases.discard(server.paths, server.commits[number])
        at = to
    assert "moved" in ways


def test_unchanged_files_keep_their_byte_code_and_inode(tmp_path: Path) -> None:
    first: Tree = {b"a.py": (FILE, b"x = 1\n"), b"b.py": (FILE, b"x = 1\n"), b"gone/c.py": (FILE, b"")}
    second: Tree = {b"a.py": (FILE, b"x = 2\n"), b"b.py": (FILE, b"x = 1\n")}
    server = Server(tmp_path, [first, second])
    server.make(0)
    compile_all(server.tree(0))
    inode = (server.tree(0) / "b.py").stat().st_ino
    before = int((server.tree(0) / "a.py").stat().st_mtime)
    made = server.make(1, [0])
    assert (made.tree, made.changed) == ("moved", 2)
    assert not server.tree(0).exists()
    assert (server.tree(1) / "b.py").stat().st_ino == inode
    assert os.listdir(server.tree(1) / "__pycache__") == ["b.cpython-311.pyc"]
    assert not (server.tree(1) / "gone").exists()
    # The same size: only the time, in whole seconds, tells Python that it is another file.
    assert int((server.tree(1) / "a.py").stat().st_mtime) > before


def test_python_itself_never_loads_stale_code_through_links(tmp_path: Path) -> None:
    def tree(value: int, target: bytes) -> Tree:
        return {
            b"real.py": (FILE, b"x = %d\n" % value),
            b"alias.py": (LINK, b"real.py"),
            b"one/m.py": (FILE, b"x = 7\n"),
            b"two/m.py": (FILE, b"x = 8\n"),
            b"which": (LINK, target),
            b"through.py": (LINK, b"which/m.py"),
        }

    server = Server(tmp_path, [tree(1, b"one"), tree(2, b"one"), tree(3, b"two")])
    server.make(0)
    code = "import real, alias, through; print(real.x, alias.x, through.x)"
    for number, expected in enumerate(["1 1 7", "2 2 7", "3 3 8"]):
        if number:
            assert server.make(number, [number - 1]).tree == "moved"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=server.tree(number),
            env={"PATH": ALONE["PATH"]},
            check=True,
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == expected
        assert (server.tree(number) / "__pycache__").is_dir()


def test_a_package_that_becomes_a_module_leaves_no_namespace(tmp_path: Path) -> None:
    package: Tree = {b"m/__init__.py": (FILE, b"x = 1\n"), b"m/deep/y.py": (FILE, b""), b"k": (FILE, b"")}
    module: Tree = {b"m.py": (FILE, b"x = 2\n"), b"k": (FILE, b"")}
    server = Server(tmp_path, [package, module])
    server.make(0)
    compile_all(server.tree(0))
    assert server.make(1, [0]).tree == "moved"
    assert sorted(os.listdir(server.tree(1))) == ["k", "m.py"]


def test_a_commits_own_byte_code_is_left_alone(tmp_path: Path) -> None:
    first: Tree = {
        b"a.py": (FILE, b"x = 1\n"),
        b"__pycache__/a.cpython-311.pyc": (FILE, b"tracked"),
        b"pkg/sub/b.py": (FILE, b""),
        b"pkg/__pycache__/old.cpython-311.pyc": (FILE, b"tracked too"),
    }
    second = {**first, b"a.py": (FILE, b"x = 2\n")}
    del second[b"pkg/sub/b.py"]
    server = Server(tmp_path, [first, second])
    server.make(0)
    assert server.make(1, [0]).tree == "moved"


ODD_DIRECTORIES = [
    b"plain", b"a b", b"x missing", b"o tree 1", b"cr\r", b"nl\nx", b"\xfe\xff", b"d:e", b"^{tree}", b"@{0}",
]  # fmt: skip


def test_directories_that_hold_byte_code_are_found_whatever_they_are_called(tmp_path: Path) -> None:
    code = b"/__pycache__/a.pyc"
    tree: Tree = {name + b"/a.py": (FILE, b"") for name in ODD_DIRECTORIES}
    tree |= {name + b"/holds" + code: (FILE, b"") for name in ODD_DIRECTORIES}
    tree |= {b"file": (FILE, b" __pycache__\0"), b"named/__pycache__.py": (FILE, b""), b"lib/x": (FILE, b"")}
    server = Server(tmp_path, [tree])
    without = [*ODD_DIRECTORIES, b"", b"file", b"named", b"not/there", b"lib/inside"]
    holding = [name + b"/holds" for name in ODD_DIRECTORIES]
    with server.mirror.objects() as objects:
        found = list(objects.holding(server.commits[0], [*without, *holding], b"__pycache__"))
    unsure = {b"cr\r", b"nl\nx", b"not/there", b"lib/inside"}
    assert set(found) == {*holding, *unsure}, "and those that git cannot be asked for in a line, or does not know"


def test_many_long_questions_are_answered(tmp_path: Path) -> None:
    names = [b"%03d" % number + b"x" * 200 for number in range(300)]
    server = Server(tmp_path, [{name + b"/__pycache__/a.pyc": (FILE, b"") for name in names}])
    with server.mirror.objects() as objects:
        assert list(objects.holding(server.commits[0], names, b"__pycache__")) == names
        assert list(objects.holding(server.commits[0], [names[0] + b"/" + b"y" * 100_000, names[0]], b"__pycache__"))


def loose(server: Server) -> Path:
    """Have each object of the mirror in a file of its own; the folder of those."""
    objects = server.paths.repo / "objects"
    for pack in sorted((objects / "pack").glob("*.pack")):
        content = pack.read_bytes()
        for path in (objects / "pack").glob(f"{pack.stem}.*"):
            path.unlink()
        subprocess.run(
            ["git", f"--git-dir={server.paths.repo}", "unpack-objects", "-q"], input=content, env=ALONE, check=True
        )
    return objects


@pytest.mark.parametrize("path", ["pkg/__pycache__", "pkg"])
@pytest.mark.parametrize("damage", ["missing", "broken"])
def test_a_mirror_that_lacks_a_directory_has_no_byte_code_removed(tmp_path: Path, path: str, damage: str) -> None:
    first: Tree = {b"pkg/a.py": (FILE, b"1"), b"pkg/__pycache__/a.cpython-311.pyc": (FILE, b"tracked")}
    server = Server(tmp_path, [first, {**first, b"pkg/a.py": (FILE, b"2")}])
    server.make(0)
    oid = server.mirror.read("rev-parse", f"{server.commits[1]}:{path}").out.strip()
    lost = loose(server) / oid[:2] / oid[2:]
    server.mirror.differences(*server.commits)  # as a deploy has asked for them, before the damage
    lost.unlink()
    if damage == "broken":
        lost.write_bytes(b"")
    with pytest.raises(AgentFailure):
        releases.make(server.paths, server.mirror, server.commits[1], guard=lambda: None, recycle=[server.commits[0]])
    assert (server.tree(0) / "pkg/__pycache__/a.cpython-311.pyc").read_bytes() == b"tracked"
    assert [one.commit for one in releases.load_all(server.paths)] == [server.commits[0]]


def test_a_change_of_a_file_takes_two_processes_of_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first: Tree = {b"a.py": (FILE, b"1"), b"pkg/sub/b.py": (FILE, b"1")}
    second = {**first, b"pkg/sub/b.py": (FILE, b"2")}
    third = {**second, b"pkg/__pycache__/c.pyc": (FILE, b"tracked")}
    server = Server(tmp_path, [first, second, third, {**third, b"pkg/sub/b.py": (FILE, b"4")}])
    server.make(0)
    started: list[str] = []
    start = system._start

    def counted(argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        started.extend(word for word in argv if word in ("diff-tree", "ls-tree", "cat-file", "read-tree", "log"))
        return start(argv, **options)

    monkeypatch.setattr(system, "_start", counted)
    asked = []
    for number in (1, 2, 3):
        recycle = [server.commits[number - 1]]
        made = releases.make(server.paths, server.mirror, server.commits[number], guard=lambda: None, recycle=recycle)
        assert made.tree == "moved"
        asked.append([*started])
        started.clear()
    two = ["diff-tree", "cat-file"]
    assert asked == [two, [*two, "ls-tree"], [*two, "ls-tree"]], "one more where the commit holds byte code"


def test_many_changes_and_a_big_file(tmp_path: Path) -> None:
    first: Tree = {b"d%d/f%d" % (n % 7, n): (FILE, b"1") for n in range(520)}
    second: Tree = {b"e%d/f%d" % (n % 7, n): (FILE, b"2" * n) for n in range(520)} | {b"big": (FILE, b"x" * 5_000_000)}
    server = Server(tmp_path, [first, second])
    server.make(0)
    assert server.make(1, [0]).tree == "moved"


def test_a_submodule_is_refused_clearly(tmp_path: Path) -> None:
    first: Tree = {b"a": (FILE, b"")}
    server = Server(tmp_path, [first, {**first, b"lib": ("160000", b"")}])
    with pytest.raises(Refused) as caught:
        server.make(1)
    assert caught.value.code == "submodule"
    server.make(0)
    with pytest.raises(Refused):
        server.make(1, [0])
    assert releases.verify_tree(server.paths, server.mirror, server.commits[0]) == []


def test_a_tampered_tree_is_made_fresh(tmp_path: Path) -> None:
    server = Server(tmp_path, [{b"d/a": (FILE, b"1")}, {b"d/a": (FILE, b"2")}, {b"d/a": (FILE, b"3")}])
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a").write_text("safe")
    server.make(0)
    (server.tree(0) / "d" / "a").unlink()
    (server.tree(0) / "d").rmdir()
    (server.tree(0) / "d").symlink_to(outside)
    made = server.make(1, [0])
    assert made.tree == "fresh"
    assert made.note
    assert (outside / "a").read_text() == "safe"
    (server.tree(1) / "d" / "a").unlink()
    assert server.make(2, [1]).tree == "fresh"


def test_shared_paths_are_links_and_stay_so(tmp_path: Path) -> None:
    first: Tree = {b"media/keep": (FILE, b""), b"a": (FILE, b"1"), b"var/x": (FILE, b"1")}
    second: Tree = {b"media/keep": (FILE, b"2"), b"media/more": (FILE, b""), b"a": (FILE, b"2")}
    third: Tree = {b"a": (FILE, b"3"), b"var": (FILE, b"a file where a directory should be")}
    server = Server(tmp_path, [first, second, third])
    shared = ["media", "var/uploads"]
    server.make(0, shared=shared)
    assert os.readlink(server.tree(0) / "media") == "/srv/lightship/shared/media"
    assert os.readlink(server.tree(0) / "var" / "uploads") == "/srv/lightship/shared/var/uploads"
    assert server.make(1, [0], shared=shared).tree == "moved"
    for recycle in ([1], []):
        with pytest.raises(Refused) as caught:
            server.make(2, recycle, shared=shared)
        assert caught.value.code == "shared-conflict"
    made = server.make(2, [1], shared=["media"])
    assert (made.tree, bool(made.note)) == ("fresh", True)
    server.make(2, shared=["media", "logs"])
    releases.flip(server.paths, server.commits[2], lambda: None)
    with pytest.raises(Refused) as caught:
        server.make(2, shared=[])
    assert caught.value.code == "shared-changed"


@pytest.mark.parametrize("values", [["../x"], ["/x"], ["a", "a/b"], [""], ["a\n"], [3]])
def test_hostile_shared_paths_are_refused(values: list[object]) -> None:
    with pytest.raises(ProtocolError):
        releases.shared_paths(values)


def test_protected_releases_are_not_taken(tmp_path: Path) -> None:
    server = Server(tmp_path, [{b"a": (FILE, b"%d" % n)} for n in range(3)])
    server.make(0)
    server.make(1)
    releases.flip(server.paths, server.commits[0], lambda: None)
    assert server.make(2, [0, 1], protected=[server.commits[1]]).tree == "fresh"
    assert server.tree(0).exists()
    assert server.tree(1).exists()
    with pytest.raises(AgentFailure):
        releases.discard(server.paths, server.commits[0])


def test_the_guard_stops_before_anything_is_touched(tmp_path: Path) -> None:
    server = Server(tmp_path, [{b"a": (FILE, b"1")}, {b"a": (FILE, b"2")}])
    server.make(0)

    def fenced() -> None:
        raise Refused("fenced", "overtaken")

    for call in (
        lambda: releases.flip(server.paths, server.commits[0], fenced),
        lambda: releases.make(
            server.paths, server.mirror, server.commits[1], guard=fenced, recycle=[server.commits[0]]
        ),
    ):
        with pytest.raises(Refused):
            call()
    assert releases.current_commit(server.paths) is None
    assert [one.commit for one in releases.load_all(server.paths)] == [server.commits[0]]
    assert releases.verify_tree(server.paths, server.mirror, server.commits[0]) == []


def test_current_is_flipped_only_to_a_complete_release(tmp_path: Path) -> None:
    server = Server(tmp_path, [{b"a": (FILE, b"1")}])
    with pytest.raises(Refused):
        releases.flip(server.paths, server.commits[0], lambda: None)
    server.make(0)
    releases.flip(server.paths, server.commits[0], lambda: None)
    assert os.readlink(server.paths.current) == f"releases/{server.commits[0]}"
    assert releases.current_commit(server.paths) == server.commits[0]
    server.paths.current.unlink()
    server.paths.current.symlink_to("/etc")
    with pytest.raises(AgentFailure):
        releases.current_commit(server.paths)


def test_states_are_written_down(tmp_path: Path) -> None:
    server = Server(tmp_path, [{b"a": (FILE, b"1")}, {b"a": (FILE, b"2")}])
    server.make(0, why="deploy", subject="s", fingerprint="f")
    time.sleep(0.01)
    server.make(1)
    releases.mark(server.paths, server.commits[0], "stable")
    found = releases.load_all(server.paths)
    assert [(one.commit, one.state) for one in found] == [
        (server.commits[1], "prepared"),
        (server.commits[0], "stable"),
    ]
    assert found[1].as_dict()["subject"] == "s"
    with pytest.raises(Refused):
        releases.mark(server.paths, "1" * 40, "stable")
    with pytest.raises(ValueError, match="unknown state"):
        releases.mark(server.paths, server.commits[0], "great")
    server.paths.release_file(server.commits[0]).write_text("{")
    assert [one.commit for one in releases.load_all(server.paths)] == [server.commits[1]]
    assert releases.clean_unfinished(server.paths) == [server.commits[0]]


def test_what_may_be_pruned() -> None:
    def one(number: int, state: str) -> Release:
        return Release(f"{number:040x}", float(number), state)

    known = [one(n, "retired") for n in range(6)] + [one(6, "failed"), one(7, "stable"), one(8, "prepared")]

    def pruned(keep: int, *protected: int, spare: int = 0) -> list[int]:
        found = releases.prunable(known, keep, {f"{n:040x}" for n in protected}, spare)
        return [int(release.commit, 16) for release in found]

    assert pruned(3, 7, 8) == [0, 1, 2, 3, 6]
    assert pruned(3, 7, 8, spare=1) == [0, 1, 2, 3]
    assert pruned(3, 0, 7, 8) == [1, 2, 3, 6]
    assert pruned(100, 7, 8) == [6]
    assert pruned(0, 7, 8) == [0, 1, 2, 3, 4, 5, 6]
    assert pruned(3, *range(9)) == []
    assert pruned(100, 7, 8, spare=2) == []
    assert releases.recyclable(known, 3, {f"{n:040x}" for n in (7, 8)})[0] == f"{6:040x}"


KILLED = """
import sys
from lightship_agent import release
from lightship_agent.git import Mirror
from lightship_agent.paths import ServicePaths
paths = ServicePaths.at(sys.argv[1], "shop")
recycle = [sys.argv[3]] if sys.argv[3] else []
release.make(paths, Mirror(paths), sys.argv[2], guard=lambda: None, recycle=recycle, shared=["media"])
release.flip(paths, sys.argv[2], lambda: None)
release.discard(paths, sys.argv[4])
"""

POINTS = [
    "release.forget",
    "release.take",
    "release.write",
    "release.fresh",
    "release.link",
    "release.save",
    "release.rename",
    "release.made",
    "release.remove",
    "release.removing",
    "current.flip",
    "current.flipped",
]


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_point_leaves_whole_releases(tmp_path: Path, point: str) -> None:
    server = Server(tmp_path, [{b"a.py": (FILE, b"%d" % n), b"b/c": (FILE, b"%d" % n)} for n in range(3)])
    for number in (0, 1):
        server.make(number, shared=["media"])
    releases.flip(server.paths, server.commits[1], lambda: None)
    fresh = point in ("release.fresh", "release.link")
    env = {**os.environ, **ALONE, "LIGHTSHIP_TESTING": "1", "LIGHTSHIP_FAILPOINTS": f"{point}=kill"}
    old, new = server.commits[0], server.commits[2]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(server.paths.root), new, "" if fresh else old, server.commits[1]],
        env=env,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    current = releases.current_commit(server.paths)
    assert current == (new if point in ("current.flipped", "release.remove", "release.removing") else server.commits[1])
    releases.clean_unfinished(server.paths)
    for name in os.listdir(server.paths.releases):
        assert releases.verify_tree(server.paths, server.mirror, name) == []
        assert releases.load(server.paths, name) is not None
    assert current in os.listdir(server.paths.releases)
    assert len(os.listdir(server.paths.release_files)) == len(os.listdir(server.paths.releases))
    server.make(2, [0], shared=["media"])


def test_every_fail_point_of_releases_is_tried() -> None:
    from lightship_agent.failpoints import FAIL_POINTS

    mine = {name for name in FAIL_POINTS if name.startswith(("release.", "current."))}
    # The other two are one file that is written whole; tests/engine/test_torture.py has them.
    assert mine - set(POINTS) == {"release.mark", "release.marked"}


# --- on the disk before it has its name -----------------------------------------


class Synced:
    """What was asked to be on the disk: single files and directories, and whole file systems."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.single: list[tuple[str, bytes]] = []
        self.whole: list[str] = []
        fsync = os.fsync

        def one(fd: int) -> None:
            path = os.readlink(f"/proc/self/fd/{fd}")
            content = Path(path).read_bytes() if stat.S_ISREG(os.fstat(fd).st_mode) else b""
            self.single.append((path, content))
            fsync(fd)

        monkeypatch.setattr(os, "fsync", one)
        monkeypatch.setattr(releases.system, "sync_tree", lambda path: self.whole.append(path.name))

    def inside(self, tree: str) -> dict[str, bytes]:
        """What was synced below this name, the tree itself as ``.``."""
        found = {}
        for path, content in self.single:
            before, mark, name = path.partition(tree)
            if mark and before.endswith("/releases/"):
                found[name.strip("/") or "."] = content
        return found


def test_a_moved_tree_waits_for_what_it_wrote_and_for_nobody_elses_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old: Tree = {
        b"a/b/same.py": (FILE, b"same"),
        b"a/b/changed.py": (FILE, b"old"),
        b"gone/deep/only.py": (FILE, b"x"),
        b"top.py": (FILE, b"top"),
    }
    new: Tree = {
        b"a/b/same.py": (FILE, b"same"),
        b"a/b/changed.py": (FILE, b"new"),
        b"fresh/deep/added.py": (FILE, b"added"),
        b"top.py": (FILE, b"top"),
    }
    server = Server(tmp_path, [old, new])
    server.make(0)
    synced = Synced(monkeypatch)
    assert server.make(1, recycle=[0]).tree == "moved"
    assert synced.whole == []
    # Under the name of what is being made: all of it was on the disk before the tree got its own name.
    assert synced.inside(f".making-{server.commits[1]}") == {
        "a/b/changed.py": b"new",
        "fresh/deep/added.py": b"added",
        "a/b": b"",
        "fresh/deep": b"",
        "fresh": b"",
        ".": b"",
    }
    assert synced.inside(server.commits[1]) == {}


def test_a_fresh_tree_a_changed_link_and_many_changes_are_synced_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many: Tree = {b"%d.py" % number: (FILE, b"%d" % number) for number in range(201)}
    trees: list[Tree] = [
        {b"x.py": (FILE, b"1")},
        {b"x.py": (FILE, b"1"), b"link": (LINK, b"x.py")},
        {b"x.py": (FILE, b"1"), b"link": (LINK, b"x.py"), **many},
    ]
    server = Server(tmp_path, trees)
    synced = Synced(monkeypatch)
    assert server.make(0).tree == "fresh"
    assert server.make(1, recycle=[0]).tree == "moved"
    assert server.make(2, recycle=[1]).tree == "moved"
    assert synced.whole == [f".making-{commit}" for commit in server.commits]
