"""The observer sees what is wrong with a link, and nothing where nothing is."""

from __future__ import annotations

import time
from pathlib import Path

from support.observer import Observer


def release(folder: Path, name: str, *files: str) -> None:
    for file in files:
        path = folder / "releases" / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def point(folder: Path, name: str) -> None:
    new = folder / "new"
    new.symlink_to(f"releases/{name}")
    new.rename(folder / "current")


def test_whole_releases_behind_a_renamed_link_are_all_it_sees(tmp_path: Path) -> None:
    for name in ("a", "b"):
        release(tmp_path, name, "app.py", "pages/index.html")
    point(tmp_path, "a")
    trees = {name: ["app.py", "pages/index.html"] for name in ("a", "b")}
    with Observer(tmp_path / "current", require=["app.py"], trees=trees) as observer:
        for name in "ba" * 100:
            point(tmp_path, name)
            time.sleep(0.001)
    seen = observer.seen
    assert seen.samples >= 100
    assert seen.missing_count == 0
    assert seen.incomplete == ()
    assert sorted(seen.distinct) == ["a", "b"]
    assert len(seen.targets) > 2


def test_a_missing_link_and_a_half_written_release_are_seen(tmp_path: Path) -> None:
    release(tmp_path, "a", "app.py")
    release(tmp_path, "b", "other.py")
    point(tmp_path, "a")
    with Observer(tmp_path / "current", require=["app.py"], trees={"b": ["app.py", "other.py"]}) as observer:
        time.sleep(0.05)
        (tmp_path / "current").unlink()
        time.sleep(0.05)
        point(tmp_path, "b")
        time.sleep(0.05)
    seen = observer.seen
    assert seen.missing_count > 0
    assert seen.missing
    assert {(name, what) for _, name, what in seen.incomplete} == {("b", "missing app.py")}
    assert seen.distinct == ["a", "b"]
