"""The agent's own data classes do what those of the standard library do."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import pytest

from lightship_agent import records

BOTH = pytest.mark.parametrize("module", [records, dataclasses], ids=["ours", "theirs"])


def classes(module: ModuleType) -> tuple[Any, Any, Any]:
    @module.dataclass(frozen=True)
    class Point:
        x: int
        y: int = 2

        @property
        def sum(self) -> int:
            return self.x + self.y

    @module.dataclass(frozen=True)
    class Named(Point):
        """A point with a name."""

        name: str = "here"
        secret: dict[str, Any] = module.field(default_factory=dict, repr=False)

    @module.dataclass(frozen=True)
    class Checked:
        word: str

        def __post_init__(self) -> None:
            if not self.word:
                raise ValueError("no word")

        def __repr__(self) -> str:
            return f"<{self.word}>"

    return Point, Named, Checked


@BOTH
def test_they_are_made_compared_and_shown(module: ModuleType) -> None:
    point, named, checked = classes(module)
    made = named(1, name="there")
    assert (made.x, made.y, made.name, made.secret, made.sum) == (1, 2, "there", {}, 3)
    assert named(1).secret is not named(1).secret
    assert point(1) == point(x=1, y=2) != point(2)
    assert point(1) != named(1)
    assert len({point(1), point(1, 2), point(3)}) == 2
    assert repr(made).endswith("Named(x=1, y=2, name='there')")
    assert repr(checked("word")) == "<word>"
    assert point.y == 2
    with pytest.raises(ValueError, match="no word"):
        checked("")


@BOTH
@pytest.mark.parametrize(("args", "given"), [((), {}), ((1, 2, 3), {}), ((1,), {"x": 1}), ((1,), {"z": 1})])
def test_wrong_arguments_are_refused(module: ModuleType, args: tuple[int, ...], given: dict[str, int]) -> None:
    with pytest.raises(TypeError):
        classes(module)[0](*args, **given)


@BOTH
def test_they_do_not_change(module: ModuleType) -> None:
    made = classes(module)[0](1)
    with pytest.raises(module.FrozenInstanceError):
        made.x = 2
    with pytest.raises(module.FrozenInstanceError):
        del made.x
    with pytest.raises(AttributeError):
        made.other = 2
    assert made.x == 1


@BOTH
def test_they_are_taken_apart_and_put_together(module: ModuleType) -> None:
    point, named, _ = classes(module)
    assert [one.name for one in module.fields(named)] == ["x", "y", "name", "secret"]
    deep = named(1, secret={"points": [point(1), (point(2),)], "plain": {3}})
    told = module.asdict(deep)
    assert told["secret"] == {"points": [{"x": 1, "y": 2}, ({"x": 2, "y": 2},)], "plain": {3}}
    assert told["secret"] is not deep.secret
    assert module.replace(deep, x=5) == named(5, secret=deep.secret)
    with pytest.raises(TypeError):
        module.replace(deep, z=5)


@BOTH
def test_with_slots_they_have_a_place_for_their_fields_and_for_nothing_else(module: ModuleType) -> None:
    @module.dataclass(frozen=True, slots=True)
    class Point:
        x: int
        y: int = 2

        @property
        def sum(self) -> int:
            return self.x + self.y

    @module.dataclass(frozen=True, slots=True)
    class Named(Point):
        name: str = "here"
        tags: list[str] = module.field(default_factory=list)

    made = Named(1, name="there")
    assert (made.x, made.y, made.name, made.tags, made.sum) == (1, 2, "there", [], 3)
    assert not hasattr(made, "__dict__")
    assert made == Named(1, 2, "there")
    assert made != Named(2, 2, "there")
    assert module.replace(made, y=5).sum == 6
    assert module.asdict(made) == {"x": 1, "y": 2, "name": "there", "tags": []}
    assert [one.name for one in module.fields(Named)] == ["x", "y", "name", "tags"]
    assert Named.__qualname__.endswith("Named")
    with pytest.raises(AttributeError):
        made.x = 3
    match made:
        case Named(1, 2, name=name):
            assert name == "there"
        case _:
            raise AssertionError("it does not match")


def test_what_is_a_record_and_what_is_not() -> None:
    point, _, _ = classes(records)
    assert records.is_record(point(1))
    assert not records.is_record(point)
    assert not records.is_record({"x": 1})


@BOTH
def test_one_that_is_not_frozen_changes_and_has_no_hash(module: ModuleType) -> None:
    @module.dataclass
    class Bare:
        x: int = 1

    @module.dataclass(slots=True)
    class Slotted:
        x: int = 1

    for kind in (Bare, Slotted):
        made = kind()
        made.x = 2
        assert made == kind(2)
        with pytest.raises(TypeError):
            hash(made)
