"""What takes longest begins first, by the names that the files have."""

from __future__ import annotations

from support.engine import PROJECT
from support.order import LONGEST, place, scope


def test_what_begins_first_is_there() -> None:
    assert [name for name in LONGEST if not (PROJECT / name).exists()] == []


def test_the_longest_come_first_and_the_shortest_last() -> None:
    torture, fleet = "tests/engine/test_torture.py::test_x[a::b]", "tests/fleet/test_push.py::test_y"
    other, unit = "tests/engine/test_doctor.py::test_z", "tests/unit/test_order.py::test_it"
    assert sorted([unit, other, fleet, torture], key=place) == [torture, fleet, other, unit]
    assert scope(fleet) == scope("tests/fleet/test_ansible.py::test_x") == "tests/fleet"
    assert scope(torture) == "tests/engine/test_torture.py"
