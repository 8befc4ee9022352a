"""Which server plays which role, and what a plan, a status and doctor make of the roles."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lightship.config.load import Config, parse
from lightship.errors import ConfigurationError
from lightship.model import Change, Container, Desired, Facts, Release, Role, RoleProcess, Server, Slot, Worker
from lightship.operations.doctor import judge_service
from lightship.operations.drift import drift
from lightship.operations.requests import container_args, planned_shape, settings_text
from lightship.operations.roles import part_services
from lightship.output.words import status_lines
from lightship.plan import make_plan, make_rollback_plan
from lightship.result import ServerStatus, StatusResult
from lightship_agent.records import replace

LIVE, OTHER = "a" * 40, "b" * 40
ROLES: dict[str, Any] = {
    "worker": {"command": ["celery", "worker"], "processes": 2, "patience": 300},
    "beat": {"command": ["celery", "beat"], "once": True},
    "mailer": {"program": "mailer"},
}


def config(**keys: Any) -> Config:
    return parse(json.dumps({"services": {"shop": {"repository": "/srv/git/shop", "ports": ["80:8000"], **keys}}}))


def servers(*roles: tuple[str, ...] | None) -> list[Server]:
    return [Server(f"s{number}", f"s{number}", roles=names) for number, names in enumerate(roles)]


def parts(*roles: tuple[str, ...] | None) -> list[tuple[bool, list[str]]]:
    """For each server whether it has web, and its other roles."""
    found = part_services(config(roles=ROLES).service(), servers(*roles))
    return [(one.reload != "roles", sorted(one.roles)) for one in found.values()]


def test_a_server_that_names_no_roles_plays_all_of_them() -> None:
    assert parts(None) == [(True, ["beat", "mailer", "worker"])]


def test_a_role_for_one_server_is_played_by_the_first_that_may() -> None:
    both, none = ["beat", "mailer", "worker"], ["mailer", "worker"]
    assert parts(None, None, None) == [(True, both), (True, none), (True, none)]
    assert parts(("web",), ("beat", "worker"), ("web", "beat")) == [(True, []), (False, ["beat", "worker"]), (True, [])]


def test_a_server_without_web_publishes_nothing_and_reloads_nothing() -> None:
    service = config(roles=ROLES).service()
    [part] = part_services(service, servers(("worker",))).values()
    assert (part.reload, list(part.ports)) == ("roles", [])
    args = container_args(part, Desired("f", "s"), {})
    assert args["ports"] == []
    assert args["roles"]["worker"] == {
        "command": ["celery", "worker"], "program": "", "processes": 2, "patience": 300.0, "settle": 3.0,
        "signal": "TERM",
    }  # fmt: skip
    # The same service on a server with web is another container.
    assert settings_text(part) != settings_text(service)


def test_a_service_without_roles_has_the_containers_that_it_had() -> None:
    service = config().service()
    assert part_services(service, servers(None))["s0"] is service
    assert "roles" not in json.loads(settings_text(service))


def test_a_role_that_the_service_does_not_have_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="s1 has the role worker"):
        part_services(config().service(), servers(None, ("web", "worker")))
    with pytest.raises(ConfigurationError, match="must not have the role 'worker'"):
        config(servers=[{"host": "a", "roles": ["worker"]}])


@pytest.mark.parametrize(
    ("role", "words"),
    [
        ({}, "exactly one of the keys"),
        ({"command": ["a"], "program": "b"}, "exactly one of the keys"),
        ({"program": "b", "processes": 2}, "beside program"),
        ({"program": "a:b"}, "program or group"),
        ({"command": "celery"}, "must be a list"),
        ({"command": ["a"], "processes": 0}, "greater than or equal to 1"),
        ({"command": ["a"], "signal": "KILL"}, "one of TERM, INT, QUIT"),
        ({"command": ["a"], "proceses": 2}, "did you mean processes?"),
    ],
)
def test_a_role_that_cannot_be_is_an_error(role: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        config(roles={"worker": role})
    assert words in str(caught.value.detail), caught.value.detail


@pytest.mark.parametrize("name", ["web", "Worker", "a b", "-x", "a.b", "x" * 41])
def test_a_name_that_is_none_is_an_error(name: str) -> None:
    with pytest.raises(ConfigurationError, match="web is built in"):
        config(roles={name: {"command": ["a"]}})


# --- plans and status ------------------------------------------------------------------------------------------------


def role(*releases: str, wanted: int = 2, problem: str = "") -> Role:
    processes = [RoleProcess("worker", number, 9 + number, one, "RUNNING") for number, one in enumerate(releases)]
    return Role(LIVE, wanted, tuple(processes), problem)


def facts(found: Role, *, web: bool = True) -> Facts:
    workers = (Worker(1, 7, LIVE, "serving"),)
    service = part_services(config(roles=ROLES).service(), servers(None if web else ("worker",)))["s0"]
    return Facts(
        hostname="h",
        current=LIVE,
        stable=LIVE,
        releases=(Release(LIVE, state="stable"),),
        container=Container("shop-1", running=True, status="running", settings="s", reload=service.reload),
        slots={"0": Slot(LIVE, True, workers)} if web else {},
        roles={"worker": found},
    )


def why(found: Facts, *, web: bool = True) -> tuple[str, str]:
    service = part_services(config(roles=ROLES).service(), servers(None if web else ("worker",)))["s0"]
    change = Change(LIVE, live=LIVE, infra_live={})
    plan = make_plan(planned_shape(service), found, change, Desired("", "s"))
    return plan.kind, "; ".join(plan.why)


WELL = role(LIVE, LIVE)
CASES = {
    "all run it": (WELL, "nothing", "live already"),
    "one runs another": (role(LIVE, OTHER), "code", "the role worker runs bbbbbbb and not aaaaaaa"),
    "one is gone": (role(LIVE, problem="1 of 2 processes of the role worker run"), "code", "1 of 2 processes"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("web", [True, False])
def test_a_role_that_does_not_run_what_is_live_is_a_reason_to_deploy(case: str, web: bool) -> None:
    found, kind, words = CASES[case]
    told = why(facts(found, web=web), web=web)
    assert told[0] == kind
    assert words in told[1]


def test_a_plan_names_the_roles_and_restarts_them_last() -> None:
    service = config(roles=ROLES).service()
    change = Change(OTHER, live=LIVE, infra_live={}, files_count=1)
    plan = make_plan(planned_shape(service), facts(WELL), change, Desired("", "s"))
    names = [step.name for step in plan.steps]
    assert names.index("health") < names.index("roles") < names.index("commit")
    alone = part_services(service, servers(("worker",)))["s0"]
    found = make_plan(planned_shape(alone), facts(WELL, web=False), change, Desired("", "s"))
    assert [step.name for step in found.steps] == ["tree", "boot", "flip", "roles", "commit"]


def test_going_back_to_what_is_live_repairs_its_roles() -> None:
    service = config(roles=ROLES).service()
    assert make_rollback_plan(planned_shape(service), facts(WELL), LIVE).kind == "nothing"
    broken = facts(role(LIVE, problem="1 of 2 run"))
    assert make_rollback_plan(planned_shape(service), broken, LIVE).kind == "code"


def status(found: Facts) -> StatusResult:
    one = ServerStatus("s0", found.stable, found.current, found.loaded, found)
    return StatusResult("shop", "main", LIVE, "", (one,), LIVE, drift((one,)))


@pytest.mark.parametrize("web", [True, False])
def test_status_shows_each_process_and_what_is_wrong(web: bool) -> None:
    well = status(facts(WELL, web=web))
    assert well.exit_status == 0
    text = "\n".join("".join(piece for piece, _ in line) for line in status_lines(well))
    assert "aaaaaaa worker 1, pid 9, running" in text
    assert "aaaaaaa worker 2, pid 10, running" in text
    other = status(facts(role(LIVE, OTHER), web=web))
    assert other.exit_status == 5
    assert [(one.what, one.value) for one in other.drift] == [("loaded", "aaaaaaa and bbbbbbb")]
    gone = status(facts(role(LIVE, problem="1 of 2 run"), web=web))
    assert gone.exit_status == 5
    assert [(one.what, one.value) for one in gone.drift] == [("role worker", "1 of 2 run")]


def test_doctor_judges_each_role() -> None:
    well = {one.name: one.state for one in judge_service(facts(WELL, web=False), "s0")}
    assert well["role worker"] == "ok"
    assert "workers" not in well
    gone = replace(facts(WELL), roles={"worker": role(LIVE, problem="1 of 2 run")})
    found = {one.name: one for one in judge_service(gone, "s0")}
    assert (found["role worker"].state, found["role worker"].message) == ("wrong", "1 of 2 run")
