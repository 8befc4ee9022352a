"""What the tasks of a playbook's rollout decide, each for its own host, from what is known of all."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightship.errors import DegradedError, LightshipError, LockedError, RefusedError, RevertedError, UsageError
from lightship.model import Change, Desired, Facts, Plan, Step
from lightship.operations.context import load_context
from lightship.operations.deploy import Planned
from lightship.operations.export import export_ansible
from lightship.playbook import live
from lightship.playbook import prepare as preparing
from lightship.playbook.job import Job, Source
from lightship.playbook.papers import Paper, Papers
from lightship.playbook.place import Place
from lightship.playbook.task import Task
from lightship.rollout import Order
from lightship.transport.shell import Ran
from lightship_agent.records import replace

NEW, OLD = "b" * 40, "a" * 40
HOSTS = ("web1", "web2", "web3", "web4")
SETTINGS: dict[str, Any] = {"repository": "/srv/git/shop.git", "image": "shop:1", "app": "shop.wsgi:app"}


def job(folder: Path, **more: Any) -> Job:
    source = Source(service="shop", settings=SETTINGS, config=str(folder))
    return replace(Job(source, "code", HOSTS, str(folder), ref="main", commit=NEW), **more)


def nowhere(command: str, data: bytes) -> Ran:
    raise AssertionError("nobody is to be asked")


def task(folder: Path, host: str = "web1", **more: Any) -> Task:
    return Task(job(folder, **more), Place(host, nowhere))


def paper(host: str, state: Any, **more: Any) -> Paper:
    return replace(Paper(host, state, kind="code", commit=NEW, before=OLD, running=OLD), **more)


def write(folder: Path, *states: Any, **special: Paper) -> None:
    """The state of each host, in their order; or a whole paper by the host's name."""
    papers = Papers(str(folder))
    for host, state in zip(HOSTS, states, strict=False):
        if state is not None:
            papers.write(special.get(host) or paper(host, state))


def broken(host: str, **more: Any) -> Paper:
    return paper(host, "back", activated=True, **more).failed(RevertedError(f"{host} does not serve"))


def verified(host: str) -> Paper:
    return paper(host, "live", activated=True, verified=True, running=NEW)


def test_a_job_survives_the_way_through_a_variable_and_nothing_else_passes_for_one(tmp_path: Path) -> None:
    one = job(tmp_path, env={"A": "{{ x }}", "TOKEN": "s"}, secret=("TOKEN",), roles={"web1": ("web",), "web2": None})
    assert Job.unsealed(one.sealed()) == one
    assert "{{" not in one.sealed()
    for wrong in ("", "{}", "e30=", "bnVsbA==", "[" * 1000, "\x00"):
        with pytest.raises(UsageError, match="is not what"):
            Job.unsealed(wrong)


@pytest.mark.parametrize("error", [RefusedError("a"), RevertedError("b"), DegradedError("c"), LockedError("d")])
def test_an_error_is_the_same_for_the_next_task(tmp_path: Path, error: LightshipError) -> None:
    papers = Papers(str(tmp_path))
    papers.write(paper("web/../1", "failed").failed(error))
    found = papers.read("web/../1")
    assert found is not None
    assert type(found.failure) is type(error)
    assert found.failure.message == error.message  # type: ignore[union-attr]
    assert papers.read("web2") is None


@pytest.mark.parametrize("state", ["planned", "failed", "unreachable", None])
def test_no_host_is_activated_unless_all_have_prepared(tmp_path: Path, state: Any) -> None:
    write(tmp_path, "prepared", "prepared", state, "nothing")
    error = live._not_prepared(task(tmp_path))
    assert error is not None
    assert "web3" in error.message
    left_out = live._not_prepared(task(tmp_path, skip_unreachable=True))
    assert (left_out is None) == (state in ("unreachable", None))


def test_all_that_are_prepared_or_have_nothing_to_do_may_go_on(tmp_path: Path) -> None:
    write(tmp_path, "prepared", "nothing", "live", "over")
    assert live._not_prepared(task(tmp_path)) is None


@pytest.mark.parametrize(
    ("failed", "percentage", "goes_back"),
    [
        ((), None, False),
        (("web2",), None, True),  # nobody may fail unless it is configured
        (("web2",), 25.0, False),
        (("web2",), 24.0, True),
        (("web2", "web3"), 25.0, True),
        (("web1",), 100.0, True),  # the canary
    ],
)
def test_the_rollout_goes_back_past_its_budget_or_when_its_canary_fails(
    tmp_path: Path, failed: tuple[str, ...], percentage: float | None, goes_back: bool
) -> None:
    for number, host in enumerate(HOSTS):
        one = broken(host, canary=number == 0) if host in failed else verified(host)
        Papers(str(tmp_path)).write(one)
    at_work = task(tmp_path, "web4", most_failures=percentage)
    assert (live._verdict(at_work) is not None) == goes_back
    assert (live._stopped(at_work) is not None) == goes_back


def test_a_host_that_was_lost_on_its_way_counts_as_failed(tmp_path: Path) -> None:
    for host in HOSTS[:3]:
        Papers(str(tmp_path)).write(verified(host))
    Papers(str(tmp_path)).write(paper("web4", "live", activated=True))
    assert live._verdict(task(tmp_path)) is not None
    assert live._verdict(task(tmp_path, most_failures=50.0)) is None


def test_one_whose_commit_failed_changes_no_judgement_on_the_others(tmp_path: Path) -> None:
    """They commit at the same time, and all of them have to come to the same."""
    for host in HOSTS[:3]:
        Papers(str(tmp_path)).write(verified(host))
    lost = replace(verified("web4"), state="over").failed(DegradedError("the disk is full"))
    Papers(str(tmp_path)).write(lost)
    assert live._verdict(task(tmp_path)) is None


def test_the_inventory_of_a_service_and_what_is_not_overwritten(tmp_path: Path) -> None:
    servers = [
        "deploy@web1.example:2222",
        {"name": "job", "host": "10.0.0.2", "user": "root", "roles": ["web"]},
        "local",
    ]
    file = tmp_path / "lightship.yml"
    file.write_text(json.dumps({"services": {"my-shop": {**SETTINGS, "servers": servers}}}))
    context = load_context(None, file, lambda _: None)
    found = export_ansible(context, tmp_path / "ansible")
    assert len(found.written) == 2
    hosts = (tmp_path / "ansible" / "hosts.yml").read_text()

    read = yaml.safe_load(hosts)["all"]["children"]["my_shop"]["hosts"]
    assert read["web1.example:2222"] == {
        "ansible_host": "web1.example",
        "ansible_user": "deploy",
        "ansible_port": 2222,
    }
    assert read["job"] == {
        "ansible_host": "10.0.0.2",
        "ansible_user": "root",
        "lightship_become": False,
        "lightship_roles": ["web"],
    }
    assert read["local"] == {"ansible_connection": "local"}
    assert export_ansible(context, tmp_path / "ansible").written == ()
    (tmp_path / "ansible" / "hosts.yml").write_text("mine")
    with pytest.raises(RefusedError, match="other content"):
        export_ansible(context, tmp_path / "ansible")
    assert len(export_ansible(context, tmp_path / "ansible", force=True).written) == 1


# --- the migrations ---------------------------------------------------------------------


class _Session:
    """As much of a conversation as an order needs."""

    def __init__(self, server: str) -> None:
        self.server = server
        self.facts = Facts(server, current=OLD)


def _migrating(folder: Path, host: str) -> tuple[Order, Task]:
    """What a host is to do where migrations are configured and new ones come."""
    at_work = task(folder, host)
    plan = Plan("code", NEW, (), (Step("migrate", "run"), Step("boot", "boot")), Change(NEW, live=OLD))
    found = Planned(_Session(host), plan, Desired("", ""))  # type: ignore[arg-type]
    order = Order(found.session, plan, {"commit": NEW, "migrate": {"command": ["migrate"]}})
    return asyncio.run(preparing._migrating_once(at_work, order, found)), at_work


@pytest.mark.parametrize(
    ("before", "runs"),
    [
        (paper("web1", "nothing"), True),
        (paper("web1", "unreachable"), True),
        (paper("web1", "prepared"), True),  # it had none to run
        (paper("web1", "prepared", migrates=True), False),
    ],
    ids=["nothing to do there", "not reached", "none to run there", "run there"],
)
def test_migrations_run_on_one_host(tmp_path: Path, before: Paper, runs: bool) -> None:
    Papers(str(tmp_path)).write(before)
    order, _ = _migrating(tmp_path, "web2")
    assert order.migrates == runs
    assert [step.name for step in order.plan.steps] == (["migrate", "boot"] if runs else ["boot"])


def test_a_host_waits_for_the_migrations_and_is_not_prepared_when_they_fail(tmp_path: Path) -> None:
    papers = Papers(str(tmp_path))

    def later() -> None:
        time.sleep(0.3)
        papers.write(paper("web1", "failed").failed(RefusedError("they failed")))

    thread = threading.Thread(target=later)
    thread.start()
    with pytest.raises(RefusedError, match="since web1 failed"):
        _migrating(tmp_path, "web2")
    thread.join()
