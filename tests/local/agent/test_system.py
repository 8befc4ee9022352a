"""Programs are bounded in time and memory; files of the container are read only when they are what they should be."""

# os.* says which system call it is.
# ruff: noqa: PTH115, PTH208

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lightship_agent import failpoints, system
from lightship_agent.errors import AgentFailure


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def test_a_program_says_what_it_did() -> None:
    lines: list[tuple[str, str]] = []
    code = "import sys; print('out'); print('err', file=sys.stderr); print(sys.stdin.read(), end=''); sys.exit(3)"
    done = system.run(python(code), input=b"fed", on_line=lambda stream, text: lines.append((stream, text)))
    assert (done.status, done.stdout, done.err) == (3, b"out\nfed", "err\n")
    assert sorted(lines) == [("stderr", "err"), ("stdout", "fed"), ("stdout", "out")]
    assert not done.ok
    assert not done.timed_out


def test_a_line_ends_before_its_carriage_returns() -> None:
    lines: list[str] = []
    code = r"import os; os.write(1, b'a\r\r\nb\r50 %\r\n')"
    system.run(python(code), on_line=lambda _, text: lines.append(text))
    assert lines == ["a", "b\r50 %"]


def test_words_are_never_read_by_a_shell(tmp_path: Path) -> None:
    done = system.run(["printf", "%s", f"; touch {tmp_path}/x $(touch {tmp_path}/y)"])
    assert done.out.startswith("; touch")
    assert list(tmp_path.iterdir()) == []
    for bad in ("ls", [], ["a\0b"]):
        with pytest.raises(AgentFailure):
            system.run(bad)


def test_standard_input_is_empty_when_none_is_given() -> None:
    assert system.run(["cat"]).stdout == b""


def test_more_input_than_a_program_reads_is_no_error() -> None:
    assert system.run(["true"], input=b"x" * 5_000_000).ok
    assert system.run(["wc", "-c"], input=b"x" * 5_000_000).out.strip() == "5000000"


def test_a_missing_program_is_named() -> None:
    with pytest.raises(AgentFailure) as caught:
        system.run(["lightship-no-such-program"])
    assert caught.value.code == "no-command"


def test_at_the_time_limit_the_whole_group_dies() -> None:
    code = "import subprocess,time; p=subprocess.Popen(['sleep','60']); print(p.pid, flush=True); time.sleep(60)"
    begun = time.monotonic()
    done = system.run(python(code), timeout=0.4)
    assert done.timed_out
    assert done.status == system.TIMED_OUT
    assert time.monotonic() - begun < 2
    child = Path(f"/proc/{int(done.out)}/stat")
    for _ in range(100):
        if not child.exists() or child.read_text().split()[2] == "Z":
            return
        time.sleep(0.01)
    pytest.fail("the child lived on")


def test_a_grandchild_that_keeps_the_pipe_does_not_keep_us() -> None:
    begun = time.monotonic()
    done = system.run(["sh", "-c", "sleep 5 & echo done"])
    assert (done.status, done.out) == (0, "done\n")
    assert time.monotonic() - begun < 2
    subprocess.run(["true"], check=True)


def test_one_line_of_200_mb_is_not_held() -> None:
    code = "import os; b=b'x'*1000000\nfor _ in range(200): os.write(1,b)\nos.write(1,b'\\nlast\\n')"
    lines: list[str] = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = system.run(python(code), on_line=lambda _, text: lines.append(text), max_output=10_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000
    assert done.truncated
    assert len(done.stdout) < 200_000
    assert done.stdout.endswith(b"x\nlast\n")
    assert b"bytes left out" in done.stdout
    assert [len(line) < system.MAX_LINE + 100 for line in lines] == [True, True]
    assert lines[1] == "last"


def test_a_failing_listener_leaves_no_program_behind() -> None:
    def fail(_stream: str, _text: str) -> None:
        raise RuntimeError("no more")

    begun = time.monotonic()
    with pytest.raises(RuntimeError):
        system.run(["sh", "-c", "echo x; sleep 20"], on_line=fail)
    assert time.monotonic() - begun < 5


def test_a_file_is_written_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "env"
    old = os.umask(0o077)
    try:
        system.atomic_write(path, b"one", 0o644)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o644
    system.atomic_write(path, b"two", 0o600, durable=False)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"two", 0o600)
    assert os.listdir(tmp_path) == ["env"]


def test_writing_replaces_a_link_instead_of_following_it(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"safe")
    (tmp_path / "file").symlink_to("victim")
    system.atomic_write(tmp_path / "file", b"new", 0o644)
    assert (tmp_path / "victim").read_bytes() == b"safe"
    with pytest.raises(OSError):
        (tmp_path / "link").symlink_to("victim")
        system.append(tmp_path / "link", b"x")


def test_what_a_killed_write_left_is_removed(tmp_path: Path) -> None:
    for name in (".env.0123abcd.tmp", ".keep", "env", ".x.tmp"):
        (tmp_path / name).touch()
    system.clean_temporaries(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".keep", ".x.tmp", "env"]
    system.clean_temporaries(tmp_path / "none")


def test_a_link_is_swapped_and_stays_below(tmp_path: Path) -> None:
    for name in ("a", "b"):
        system.swap_link(tmp_path / "current", f"releases/{name}")
        assert os.readlink(tmp_path / "current") == f"releases/{name}"
    for bad in ("/etc", "../x"):
        with pytest.raises(AgentFailure):
            system.swap_link(tmp_path / "current", bad)


def test_only_a_regular_file_is_read(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "good").write_bytes(b"data")
    (run / "link").symlink_to("/etc/passwd")
    (run / "inner").symlink_to("good")
    os.mkfifo(run / "fifo")
    (run / "directory").mkdir()
    (run / "socket").touch()
    with (run / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    assert system.read_untrusted(run, "good", 4) == b"data"
    assert system.read_untrusted(run, "none", 10) is None
    assert system.read_untrusted(run / "none", "x", 10) is None
    for name, code in {
        "link": "wrong-kind",
        "inner": "wrong-kind",
        "fifo": "wrong-kind",
        "directory": "wrong-kind",
        "sparse": "too-big",
        "../run/good": "bad-path",
        "..": "bad-path",
    }.items():
        with pytest.raises(AgentFailure) as caught:
            system.read_untrusted(run, name, 1000)
        assert caught.value.code == code, name
    with pytest.raises(AgentFailure):
        system.read_untrusted(run, "good", 3)


def test_a_link_anywhere_on_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real" / "slots").mkdir(parents=True)
    (tmp_path / "real" / "slots" / "x").write_bytes(b"1")
    (tmp_path / "run").symlink_to("real")
    assert system.read_untrusted(tmp_path / "real" / "slots", "x", 10) == b"1"
    for call in (
        lambda: system.read_untrusted(tmp_path / "run" / "slots", "x", 10),
        lambda: system.list_untrusted(tmp_path / "run" / "slots"),
        lambda: system.list_untrusted(tmp_path / "real" / "slots" / "x"),
    ):
        with pytest.raises(AgentFailure) as caught:
            call()
        assert caught.value.code == "wrong-kind"


def test_a_directory_is_listed_within_a_limit(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / str(number)).touch()
    assert system.list_untrusted(tmp_path) == ["0", "1", "2", "3", "4"]
    assert system.list_untrusted(tmp_path / "none") == []
    with pytest.raises(AgentFailure):
        system.list_untrusted(tmp_path, 4)


def test_removing_a_tree_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "keep").touch()
    (tmp_path / "tree" / "a").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "out").symlink_to(tmp_path / "out")
    system.remove_tree(tmp_path / "tree")
    system.remove_tree(tmp_path / "tree")
    assert (tmp_path / "out" / "keep").exists()
    (tmp_path / "link").symlink_to("out")
    with pytest.raises(AgentFailure):
        system.remove_tree(tmp_path / "link")


def test_a_directory_is_put_right(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        system.make_directory(tmp_path / "d", 0o755, os.geteuid(), os.getegid())
        (tmp_path / "d").chmod(0o700)
        system.make_directory(tmp_path / "d", 0o755, os.geteuid(), os.getegid())
    finally:
        os.umask(old)
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o755
    (tmp_path / "link").symlink_to("d")
    with pytest.raises(AgentFailure):
        system.make_directory(tmp_path / "link", 0o700)


def test_what_is_free_is_known(tmp_path: Path) -> None:
    free = system.disk_free(tmp_path)
    assert free.bytes > 0
    assert free.inodes is None or free.inodes > 0


def test_fail_points_do_nothing_in_earnest(monkeypatch: pytest.MonkeyPatch) -> None:
    failpoints.register(test__here="in this test")
    monkeypatch.setenv("LIGHTSHIP_FAILPOINTS", "test.here=error*1")
    monkeypatch.delenv("LIGHTSHIP_TESTING", raising=False)
    failpoints.fail_point("test.here")
    failpoints.fail_point("never.registered")
    monkeypatch.setenv("LIGHTSHIP_TESTING", "1")
    with pytest.raises(AgentFailure):
        failpoints.fail_point("test.here")
    failpoints.fail_point("test.here")
    with pytest.raises(LookupError):
        failpoints.fail_point("never.registered")


def test_what_is_no_regular_file_is_not_even_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    stop = time.monotonic() + 0.5
    opened = []

    def try_to_write() -> None:
        # Opening a pipe for writing without waiting succeeds while somebody has it open for reading.
        while time.monotonic() < stop:
            try:
                os.close(os.open(tmp_path / "pipe", os.O_WRONLY | os.O_NONBLOCK))
                opened.append(True)
            except OSError:
                continue

    thread = threading.Thread(target=try_to_write)
    thread.start()
    while time.monotonic() < stop:
        for read in (system.read_untrusted, lambda folder, name, most: system.read_trusted(folder / name, most)):
            with pytest.raises(AgentFailure) as caught:
                read(tmp_path, "pipe", 100)
            assert caught.value.code == "wrong-kind"
    thread.join()
    assert not opened


def test_a_tree_is_removed_however_deep_it_is(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").touch()
    top = tmp_path / "tree"
    top.mkdir()
    descriptor = os.open(top, os.O_RDONLY)
    for _ in range(1500):
        os.symlink(tmp_path / "outside", "link", dir_fd=descriptor)
        os.mkdir("deeper", dir_fd=descriptor)
        inner = os.open("deeper", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    system.remove_tree(top)
    assert not top.exists()
    assert (tmp_path / "outside" / "kept").exists()
