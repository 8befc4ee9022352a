"""The kind of a deploy follows from what differs: a table of cases, each in words."""

from __future__ import annotations

import pytest

from lightship.model import Change, Container, Desired, Facts, FileChange, HistoryEntry, Release, Slot, Worker
from lightship.operations.requests import PlannedShape
from lightship.plan import make_plan, make_rollback_plan
from lightship.plan.planner import Override
from lightship_agent.records import replace

OLD, NEW = "a" * 40, "b" * 40
SHAPE = PlannedShape(True, "lightship/shop:1", ("django",), "swap", True)
DESIRED = Desired("fp-1", "settings-1")
SLOT = Slot(OLD, True, (Worker(1, 10, OLD, "serving"), Worker(2, 11, OLD, "serving")))
LIVE = Facts(
    hostname="h",
    current=OLD,
    stable=OLD,
    releases=(Release(OLD, state="stable", fingerprint="fp-1"),),
    container=Container("shop-1", running=True, status="running", fingerprint="fp-1", settings="settings-1"),
    slots={"0": SLOT},
)
STOPPED = Container("shop-1", status="exited", fingerprint="fp-1", settings="settings-1")
EMPTY = Facts(hostname="h")
INFRA = {"Dockerfile": "1", "requirements.txt": "2"}
CODE = FileChange("M", "shop/views.py")
REQUIREMENTS = FileChange("M", "requirements.txt")


def change(*files: FileChange, commit: str = NEW, infra: dict[str, str] | None = None, env: bool = False) -> Change:
    return Change(
        commit=commit,
        live=OLD,
        files=files,
        files_count=len(files),
        infra=infra or INFRA,
        infra_live=INFRA,
        env_changed=env,
    )


BUMPED = {**INFRA, "requirements.txt": "3"}
SAME = change(commit=OLD)
CASES = {
    "live already": (LIVE, SAME, DESIRED, "nothing", "is live already"),
    "live, but neither ended nor taken back": (replace(LIVE, stable=NEW), SAME, DESIRED, "code", "never written down"),
    "code alone": (LIVE, change(CODE), DESIRED, "code", "1 file changed (shop/views.py)"),
    "an empty commit": (LIVE, change(), DESIRED, "code", "with the same files"),
    "the first deploy": (EMPTY, replace(change(), live=None, infra_live=None), DESIRED, "full", "the first deploy"),
    "requirements alone": (
        LIVE,
        change(REQUIREMENTS, infra=BUMPED),
        Desired("fp-2", "settings-1"),
        "container",
        "requirements.txt changed",
    ),
    "requirements and code": (
        LIVE,
        change(REQUIREMENTS, CODE, infra=BUMPED),
        Desired("fp-2", "settings-1"),
        "full",
        "requirements.txt changed; code changed (shop/views.py)",
    ),
    "a variable": (LIVE, change(commit=OLD, env=True), DESIRED, "container", "environment or secrets changed"),
    "a setting": (
        LIVE,
        SAME,
        Desired("fp-1", "settings-2", ("ports[0]", "ports[1]")),
        "container",
        "ports in lightship.yml changed",
    ),
    "other inputs": (LIVE, SAME, Desired("fp-9", "settings-1"), "container", "made from other files"),
    "a stopped container": (
        replace(
            LIVE, container=Container("shop-1", status="exited", fingerprint="fp-1", settings="settings-1"), slots={}
        ),
        SAME,
        DESIRED,
        "code",
        "does not run (exited)",
    ),
    "workers of another release": (
        replace(LIVE, slots={"0": replace(SLOT, workers=(Worker(1, 10, "c" * 40, "serving"),))}),
        SAME,
        DESIRED,
        "code",
        "workers run ccccccc",
    ),
    "an interrupted first deploy": (
        replace(EMPTY, container=LIVE.container),
        replace(SAME, live=None),
        DESIRED,
        "code",
        "the first release",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_kind_follows_from_what_differs(name: str) -> None:
    facts, found, desired, kind, why = CASES[name]
    plan = make_plan(SHAPE, facts, found, desired)
    assert plan.kind == kind
    assert why in "; ".join(plan.why)
    assert bool(plan.steps) is not plan.nothing_to_do


@pytest.mark.parametrize("kind", ["code", "container", "full"])
def test_the_user_may_decide_the_kind(kind: Override) -> None:
    plan = make_plan(SHAPE, LIVE, SAME, DESIRED, kind)
    assert plan.kind == kind
    assert plan.why[0] == f"asked for with --kind {kind}"


def test_a_container_deploy_tries_the_image_before_the_old_container_stops() -> None:
    names = [step.name for step in make_plan(SHAPE, LIVE, change(CODE), DESIRED, "full").steps]
    assert names[0] == "build"
    assert names.index("try") < names.index("flip") < names.index("workers") < names.index("commit")
    assert names.index("check django") < names.index("flip")


def test_a_named_image_is_pulled() -> None:
    shape = replace(SHAPE, builds_image=False, image_name="shop:1")
    assert make_plan(shape, LIVE, change(CODE), DESIRED, "container").steps[0].name == "pull"


def test_a_failed_release_is_not_tried_again_unasked() -> None:
    facts = replace(LIVE, releases=(Release(NEW, state="failed"), *LIVE.releases))
    assert "failed" in make_plan(SHAPE, facts, change(CODE), DESIRED).blocked
    assert not make_plan(SHAPE, facts, change(CODE), DESIRED, retry=True).blocked


def test_many_files_are_counted() -> None:
    many = change(*(FileChange("M", f"f{number}.py") for number in range(5)))
    assert make_plan(SHAPE, LIVE, many, DESIRED).why == ("5 files changed (f0.py, f1.py, f2.py and 2 more)",)


def test_a_rollback_needs_a_new_container_only_for_another_image() -> None:
    same = replace(LIVE, releases=(Release(NEW, fingerprint="fp-1"),))
    other = replace(LIVE, releases=(Release(NEW, fingerprint="fp-0"),))
    assert make_rollback_plan(SHAPE, same, NEW).kind == "code"
    assert make_rollback_plan(SHAPE, other, NEW).kind == "container"
    assert make_rollback_plan(SHAPE, LIVE, OLD).kind == "nothing"


def test_a_rollback_to_what_is_live_and_was_never_ended_ends_it() -> None:
    plan = make_rollback_plan(SHAPE, replace(LIVE, stable=NEW), OLD)
    assert plan.kind == "code"
    assert plan.why == (f"{OLD[:7]} is live, and was never written down as stable",)


def test_migrations_run_only_where_they_may_be_needed() -> None:
    def names(found: Change, kind: Override | None = None) -> list[str]:
        return [step.name for step in make_plan(SHAPE, LIVE, found, DESIRED, kind).steps]

    assert "migrate" not in names(change(CODE))
    assert "migrate" in names(replace(change(CODE), migrations=("shop/migrations/0002.py",)))
    assert "migrate" in names(change(CODE), "container")
    assert "migrate" in names(replace(change(CODE), files_count=900)), "the list was cut: it is not known what differs"


def test_how_long_it_takes_is_what_it_took_here_before() -> None:
    def past(kind: str, seconds: float, outcome: str = "done") -> HistoryEntry:
        return HistoryEntry("1", kind, OLD, outcome, 1.0, seconds)

    history = (
        past("code", 1.0), past("code", 9.0, "reverted"), past("container", 8.0), past("code", 1.4), past("code", 1.2),
        past("code", 0.9), past("code", 1.1), past("code", 100.0),
    )  # fmt: skip
    facts = replace(LIVE, history=history)
    # The last five that ended well: what failed took another time, and what is long past is another service.
    assert make_plan(SHAPE, facts, change(CODE), DESIRED).expected_seconds == 1.1
    assert make_plan(SHAPE, facts, change(CODE), DESIRED, "container").expected_seconds == 8.0
    assert make_plan(SHAPE, facts, change(CODE), DESIRED, "full").expected_seconds is None, "there was none"
    assert make_plan(SHAPE, LIVE, change(CODE), DESIRED).expected_seconds is None
    assert make_rollback_plan(SHAPE, replace(facts, releases=(Release(NEW),)), NEW).expected_seconds == 1.1


def test_back_to_a_release_that_ran_in_another_image_of_the_same_name_is_a_container_deploy() -> None:
    """`image: name:latest` moved meanwhile: the configuration and the files are the same, the image is not."""
    container = replace(LIVE.container or Container(""), image_id="sha256:2")
    for image, kind in (("sha256:1", "container"), ("sha256:2", "code"), ("", "code")):
        facts = replace(LIVE, container=container, releases=(Release(NEW, fingerprint="fp-1", image_id=image),))
        assert make_rollback_plan(SHAPE, facts, NEW).kind == kind
    unknown = replace(LIVE, releases=(Release(NEW, fingerprint="fp-1", image_id="sha256:1"),))
    assert make_rollback_plan(SHAPE, unknown, NEW).kind == "code", "of a container that does not say"
