"""What a plan says of the proxy: who takes whose place, whether visitors notice, what needs no other container."""

from __future__ import annotations

import pytest

from lightship.model import Change, Container, Desired, Facts, ProxyClaim, ProxyFacts, Release
from lightship.operations.requests import PlannedShape
from lightship.plan import make_plan
from lightship_agent.records import replace

OLD, NEW = "a" * 40, "b" * 40
CLAIM = ProxyClaim(hosts=("shop.example",), http=80, port=8000, image="haproxy:2.6")
PROXY = ProxyFacts("lightship-proxy", running=True, current=True, leads=True, leads_to=1, claim=CLAIM)
NONE = PlannedShape(True, "lightship/shop:1", (), "swap", False)
BEHIND = replace(NONE, proxy=CLAIM)
FACTS = Facts(
    hostname="web1",
    current=OLD,
    stable=OLD,
    releases=(Release(OLD, state="stable"),),
    container=Container("shop-1", running=True, fingerprint="old", settings="s"),
)
DESIRED = Desired(fingerprint="new", settings="s")


def flip(shape: PlannedShape, facts: Facts) -> tuple[str, str]:
    """The step in which one container takes the place of the other."""
    plan = make_plan(shape, facts, Change(commit=NEW, live=OLD), DESIRED)
    step = next(step for step in plan.steps if step.name == "flip")
    return step.title, step.detail


@pytest.mark.parametrize(
    ("shape", "proxy", "title", "detail"),
    [
        (NONE, None, "stop shop-1, start the new container", "the site does not answer"),
        (
            BEHIND,
            None,
            "stop shop-1, and let the proxy take its ports",
            "once, for a second or two, the site does not answer",
        ),
        (BEHIND, PROXY, "let the proxy lead to the new container", "shop-1 finishes its requests"),
        (NONE, PROXY, "take the ports from the proxy", "the site does not answer"),
    ],
)
def test_it_says_who_takes_whose_place_and_whether_there_is_a_gap(
    shape: PlannedShape, proxy: ProxyFacts | None, title: str, detail: str
) -> None:
    found = flip(shape, replace(FACTS, proxy=proxy))
    assert title in found[0]
    assert detail in found[1]


def test_the_first_deploy_leads_the_proxy_to_the_service() -> None:
    title, detail = flip(BEHIND, Facts(hostname="web1"))
    assert title.startswith("let the proxy lead")
    assert not detail


def test_a_change_of_names_needs_no_other_container() -> None:
    facts = replace(FACTS, proxy=replace(PROXY, claim=replace(CLAIM, hosts=("old.example",))))
    same = Desired(fingerprint="old", settings="s")
    plan = make_plan(BEHIND, facts, Change(commit=OLD, live=OLD), same)
    assert plan.kind == "code"
    assert "proxy in lightship.yml changed" in plan.why


def test_a_proxy_that_knows_nothing_of_the_service_is_a_reason() -> None:
    plan = make_plan(BEHIND, FACTS, Change(commit=OLD, live=OLD), Desired(fingerprint="old", settings="s"))
    assert "the proxy does not serve it yet" in plan.why
