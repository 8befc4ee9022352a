"""Static files of earlier releases stay for a while, and then go; nothing else does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightship_agent.boot import assets

DAY = 86400.0


def collected(folder: Path, **files: str) -> None:
    """What collectstatic leaves: each file under its own and its hashed name, and the manifest of this release."""
    for name, hashed in files.items():
        (folder / f"{name}.js").write_text(hashed)
        (folder / f"{name}.{hashed}.js").write_text(hashed)
    paths = {f"{name}.js": f"{name}.{hashed}.js" for name, hashed in files.items()}
    (folder / "staticfiles.json").write_text(json.dumps({"version": "1.1", "paths": paths}))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of day, to be set."""
    now = [1_700_000_000.0]
    monkeypatch.setattr(assets.time, "time", lambda: now[0])
    return now


def there(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.js*") if not path.name.startswith((".", "staticfiles"))}


def test_a_script_of_an_earlier_release_stays_for_its_time_and_then_goes(tmp_path: Path, clock: list[float]) -> None:
    collected(tmp_path, app="a1", menu="m1")
    (tmp_path / "app.a1.js.gz").write_text("")
    assert assets.sweep(str(tmp_path), 7 * DAY)["removed"] == 0
    clock[0] += 30 * DAY
    # A month later comes the next release: until then the first one's scripts were in use.
    collected(tmp_path, app="a2", menu="m1")
    assert assets.sweep(str(tmp_path), 7 * DAY)["removed"] == 0
    clock[0] += 6 * DAY
    assert assets.sweep(str(tmp_path), 7 * DAY)["removed"] == 0
    assert "app.a1.js" in there(tmp_path)
    clock[0] += 2 * DAY
    assert assets.sweep(str(tmp_path), 7 * DAY)["removed"] == 2
    assert there(tmp_path) == {"app.js", "app.a2.js", "menu.js", "menu.m1.js"}


def test_without_a_manifest_nothing_is_removed(tmp_path: Path, clock: list[float]) -> None:
    (tmp_path / "upload.jpg").write_text("")
    clock[0] += 1000 * DAY
    said = assets.sweep(str(tmp_path), 0)
    assert said["removed"] == 0
    assert "no staticfiles.json" in said["problem"]
    assert (tmp_path / "upload.jpg").exists()


def test_what_was_written_down_may_be_anything(tmp_path: Path, clock: list[float]) -> None:
    collected(tmp_path, app="a1")
    for record in ("[]", "{", '{"seen": []}', '{"seen": {"app.a0.js": "x"}}', '{"seen": {"app.a0.js": 1e300}}'):
        (tmp_path / "app.a0.js").write_text("")
        (tmp_path / assets.RECORD).write_text(record)
        assert assets.sweep(str(tmp_path), 7 * DAY)["removed"] == 0
    clock[0] += 8 * DAY
    assert assets.sweep(str(tmp_path), 7 * DAY)["removed"] == 1
