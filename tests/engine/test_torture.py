"""A deploy may be cut off anywhere: at each of its side effects, and at any time. Nobody has to help afterwards.

``support.torture`` says what must hold, and does it. Here is a sample; ``make torture N=1000`` does as many as wanted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from lightship.transport.failpoints import FAIL_POINTS as CONTROLLERS
from lightship_agent import actions
from lightship_agent.failpoints import FAIL_POINTS
from support.engine import Engine
from support.torture import IN_CONTAINER, OPERATIONS, Draw, Torture, draw

pytestmark = pytest.mark.timeout(900)

CONTAINER_KINDS = ("container", "full", "image", "pulled", "first")
# Operations that change nothing: looking needs no lock, and what it asks is asked by a deploy too.
LOOKS = ("status", "logs", "exec")
# Where a cut-off hurts most, tried in every kind although other kinds have these points as well.
DELICATE = {
    "rollback": ["order.written", "current.flip", "current.flipped", "commit.stable", "commit.released"],
    "full": ["switch.begin", "instance.stopped", "current.flipped", "commit.stable", "instance.removed"],
}
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


def sample(points: dict[str, list[str]], operations: tuple[str, ...]) -> list[Draw]:
    """A kill at each point, in the operation that takes the shortest time of those that have it."""
    first = {point: name for name in reversed(OPERATIONS) for point in points.get(name, ())}
    draws = [Draw(name, f"{point}=kill") for point, name in first.items() if name in operations]
    draws += [Draw(name, f"{point}=kill") for name in operations for point in DELICATE.get(name, ())]
    return list(dict.fromkeys(draws))


def carry_out(torture: Torture, draws: list[Draw]) -> None:
    for number, one in enumerate(draws):
        print(one, "->", torture.run(replace(one, seed=one.seed or number)))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_kill_at_any_side_effect_leaves_one_whole_release_and_the_next_deploy_works(
    torture: Torture, operation: str
) -> None:
    draws = sample(torture.points, (operation,))
    carry_out(torture, draws)


def test_a_kill_while_another_kill_is_made_good_changes_nothing(torture: Torture) -> None:
    carry_out(
        torture,
        [
            Draw("code", "rollout.prepared=kill", second="recover.begin=kill"),
            Draw("code", "rollout.prepared=kill", second="abort.end=kill"),
            Draw("code", "current.flipped=kill", second="recover.end=kill"),
            Draw("code", "commit.stable=kill", second="commit.stable=kill"),
            Draw("code", "answered.prepare=kill,finish.begin=kill"),
            Draw("code", "answered.activate=kill,finish.end=kill"),
            Draw("sick", "revert.begin=kill", second="revert.end=kill"),
            Draw("container", "instance.stopped=kill,switch.end=kill-child"),
        ],
    )


def test_a_side_effect_that_fails_once_or_for_ever_leaves_one_whole_release(torture: Torture) -> None:
    points = ["fetch.start", "release.save", "order.write", "journal.doing", "current.flip", "rollout.activated"]
    points += ["commit.state", "commit.stable", "journal.end", "ask.verify", "answered.activate"]
    draws = [Draw("code", f"{point}=error") for point in points]
    draws += [Draw("code", f"{point}=error*1") for point in points if "." in point and point not in CONTROLLERS]
    draws += [
        Draw("container", f"{point}=error*1") for point in ("instance.start", "instance.stopped", "commit.stable")
    ]
    carry_out(torture, draws)


@pytest.mark.parametrize("victim", IN_CONTAINER)
def test_what_is_killed_in_the_container_during_a_deploy_comes_up_again(torture: Torture, victim: str) -> None:
    delays = (0.35, 0.45, 0.6) if victim != "docker kill" else (0.35,)
    carry_out(torture, [Draw("code", victim=victim, delay=delay) for delay in delays])


def test_a_kill_at_any_time_is_as_harmless(torture: Torture) -> None:
    quick = ("code", "rollback", "refused")
    carry_out(torture, [draw(SEED + number, torture.points, quick) for number in range(20)])


def test_where_uwsgi_reloads_itself_a_kill_leaves_one_whole_release_too(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    torture = Torture.begin(engine, tmp_path_factory.mktemp("touch") / "site", variant="touch")
    try:
        points = torture.record(("code",))["code"]
        own = [point for point in points if point.startswith(("candidate.", "touch.", "current."))]
        assert {"candidate.start", "candidate.done", "touch.before", "touch.after"} <= set(own)
        with torture.load():
            carry_out(torture, [Draw("code", f"{point}=kill") for point in own])
            carry_out(torture, [Draw("code", "touch.before=kill-child")])
    finally:
        torture.site.close()


def test_the_sample_has_killed_at_every_fail_point_that_there_is(torture: Torture) -> None:
    assert actions is not None  # and with it every module that registers points
    ours = {name for name in FAIL_POINTS if not name.startswith(("candidate.", "touch.", "test."))}
    # A rollback of several servers is what asks for a revert or an abort; looking changes nothing.
    ours |= {name for name in CONTROLLERS if name.partition(".")[2] not in (*LOOKS, "revert", "abort")}
    assert ours - torture.killed == set()
