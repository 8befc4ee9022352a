"""A deploy may be cut off anywhere: at each of its side effects, and at any time. Nobody has to help afterwards.

``support.torture`` says what must hold, and does it. Here is a sample; ``make torture N=1000`` does as many as wanted.
Other ways to reload, and roles, are in test_torture_ways.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

import pytest

from lightship.failpoints import FAIL_POINTS as CONTROLLERS
from support.agent_modules import all_fail_points
from support.engine import Engine
from support.torture import CONTROLLERS as CONTROLLERS_OWN
from support.torture import GAP, IN_CONTAINER, OPERATIONS, ROLES, Draw, Torture, draw

pytestmark = pytest.mark.timeout(900)

EARLY = ("mirror.", "runtime.", "env.", "build.", "pull.", "instance.remove", "instance.create", "instance.start")
# Operations that change nothing: looking needs no lock, and what it asks is asked by a deploy too.
LOOKS = ("status", "logs", "exec", "traces")
# Where a cut-off hurts most, tried in every kind although other kinds have these points as well.
DELICATE = {
    "rollback": ["order.written", "current.flip", "current.flipped", "commit.stable"],
    "full": ["instance.stopped", "current.flipped", "commit.stable"],
}
# What depends on what was there before: no earlier tree fits new shared paths, and an image is left by a new one.
WHERE = dict.fromkeys(("release.fresh", "release.link", "release.remove", "release.removing"), "shared")
WHERE |= dict.fromkeys(("release.forget", "release.take", "release.write"), "refused") | {"prune.image": "image"}
SEED = 20261123


@pytest.fixture(scope="module")
def torture(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Torture]:
    made = Torture.begin(engine, tmp_path_factory.mktemp("torture") / "site")
    try:
        made.record()
        with made.load():
            yield made
    finally:
        made.site.close()


def sample(points: dict[str, list[str]], operation: str) -> list[Draw]:
    """A kill at each point that no operation has which takes a shorter time."""
    first = {point: name for name in reversed(OPERATIONS) for point in points.get(name, ())} | WHERE
    mine = [point for point, name in first.items() if name == operation]
    mine += [point for point in DELICATE.get(operation, ()) if point not in mine]
    early = [point for point in mine if point.startswith(EARLY)] if operation in GAP else []
    draws = [Draw(operation, killed_at(point)) for point in mine if point not in early]
    # What is cut off before it is live is done once more anyway: the second time it is cut off a bit later.
    return draws + [
        Draw(operation, killed_at(one), second=killed_at(other) if other else "")
        for one, other in zip_longest(early[::2], early[1::2])
    ]


def killed_at(point: str) -> str:
    """One process is killed there; the controller's own points are passed once anyway."""
    return f"{point}=kill" if point.startswith(CONTROLLERS_OWN) else f"{point}=kill*1"


def named(one: Draw) -> set[str]:
    """The points that a draw kills at."""
    return {word.partition("=")[0] for word in f"{one.points},{one.second}".split(",") if "=kill" in word}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_kill_at_any_side_effect_leaves_one_whole_release_and_the_next_deploy_works(
    torture: Torture, operation: str
) -> None:
    torture.carry_out(sample(torture.points, operation))
    # What is removed is there only when an earlier run has left it to be removed.
    for _ in range(2):
        torture.carry_out([one for one in sample(torture.points, operation) if not named(one) <= torture.killed])
    assert {point for one in sample(torture.points, operation) for point in named(one)} <= torture.killed


def test_a_kill_while_another_kill_is_made_good_changes_nothing(torture: Torture) -> None:
    torture.carry_out(
        [
            Draw("code", "rollout.prepared=kill", second="recover.begin=kill*1"),
            Draw("code", "rollout.prepared=kill", second="abort.end=kill*1"),
            Draw("code", "current.flipped=kill,ask.hello=kill@2", second="recover.end=kill*1"),
            Draw("code", "rollout.verified=kill,ask.hello=kill@2", second="commit.stable=kill*1"),
            Draw("code", "commit.stable=kill,ask.hello=kill@2", second="commit.stable=kill*1"),
            Draw("code", "answered.prepare=kill,finish.begin=kill"),
            Draw("code", "answered.activate=kill,finish.end=kill"),
            Draw("sick", "revert.begin=kill,ask.hello=kill@2", second="revert.end=kill*1"),
            Draw("container", "instance.stopped=kill*1,switch.end=kill-child"),
        ],
    )


def test_one_container_takes_the_place_of_the_other_even_when_agent_and_controller_are_both_killed_in_the_gap(
    torture: Torture,
) -> None:
    points = ("instance.stopped", "current.flipped")
    # The controller would ask again what the server runs, and that would help: it is killed when it is about to.
    torture.carry_out([Draw("container", f"{point}=kill,ask.hello=kill@2") for point in points])


def test_a_side_effect_that_fails_once_or_for_ever_leaves_one_whole_release(torture: Torture) -> None:
    ever = [
        "fetch.start",
        "release.save",
        "journal.doing",
        "current.flip",
        "commit.state",
        "commit.stable",
        "ask.verify",
    ]
    once = ["order.write", "current.flip", "rollout.activated", "commit.state", "journal.end"]
    draws = [Draw("code", f"{point}=error") for point in ever]
    draws += [Draw("code", f"{point}=error*1") for point in once]
    draws += [Draw("container", f"{point}=error*1") for point in ("instance.start", "instance.stopped")]
    # For ever, once the new pointers were written: not even going back works, and the next deploy finds what serves.
    draws += [Draw("container", "state.saved=error@2", second="adopt.begin=kill")]
    torture.carry_out(draws)


@pytest.mark.parametrize("victim", IN_CONTAINER)
def test_what_is_killed_in_the_container_during_a_deploy_comes_up_again(torture: Torture, victim: str) -> None:
    delays = (0.35, 0.5) if victim != "docker kill" else (0.35,)
    torture.carry_out([Draw("code", victim=victim, delay=delay) for delay in delays])


def test_a_kill_at_any_time_is_as_harmless(torture: Torture) -> None:
    quick = ("code", "rollback", "refused")
    torture.carry_out([draw(SEED + number, torture.points, quick) for number in range(12)])


def test_the_sample_has_killed_at_every_fail_point_that_there_is(torture: Torture) -> None:
    # A mirror is packed after many fetches only: see test_faults_git.py.
    # What only the proxy has is in test_torture_proxy.py.
    elsewhere = ("candidate.", "touch.", "test.", "mirror.maintain", "proxy.", "handover.", "instance.open", *ROLES)
    # What needs a registry or a second server: see test_registry.py and test_image_transfer.py.
    elsewhere += ("push.", "pull.done", "save.", "load.", "image.tag", "image.note")
    # What keeps static files removes none of a release that may be gone back to: see test_assets.py.
    elsewhere += ("assets.",)
    ours = {name for name in all_fail_points() if not name.startswith(elsewhere)}
    # A rollback of several servers is what asks for a revert or an abort; looking changes nothing.
    asked = (*LOOKS, "revert", "abort", "proxy", "maintenance", "push", "save", "load")
    ours |= {name for name in CONTROLLERS if name.partition(".")[2] not in asked} - {"answered.pull"}
    assert ours - torture.killed == set()
