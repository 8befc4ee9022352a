"""The image of new containers, in two tasks: on the host that leads, then on the others.

A task sees its own host alone. So what the one that leads has to give away goes through a file here, and to the others
that file looks like the host that leads.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lightship.errors import LightshipError, RefusedError
from lightship.image import Distribution, Look, Ready, Wanted
from lightship.model import Change
from lightship.operations.deploy import build_secrets
from lightship.operations.images import SessionPlace
from lightship.operations.requests import desired_state, inspect_args, wanted_image
from lightship.playbook.job import Job
from lightship.playbook.papers import Paper
from lightship.playbook.place import HeldSession, Place
from lightship.playbook.task import Done, Task

__all__ = ["follow", "lead"]

_PIECE = 3 * 1024 * 1024


async def lead(job: Job, place: Place) -> Done:
    """On the one host that leads: have the image there, and give it away where others cannot pull it."""
    task = Task(job, place)
    paper = task.papers.read(place.name)
    if paper is None or paper.image is None or _leader(task) != place.name:
        return Done(paper or Paper(place.name, "failed"), False, "not here")
    session = await task.session(paper.token).attach(look=True)
    try:
        wanted = await _wanted(task, session)

        async def secrets() -> Mapping[str, str]:
            return await build_secrets(task.context, task.redactor)

        own = SessionPlace(session, task.redactor)
        had = Look.from_json(paper.image["look"])
        ready, look = await Distribution(wanted, [own], secrets=secrets).lead_apart(had)
        others = [one for one in map(task.papers.read, job.hosts) if one is not None and one.image is not None]
        if "@sha256:" not in ready.reference and any(_lacks(one, ready) for one in others if one.host != place.name):
            await _give_away(session, ready, task.papers.spool("leader"))
    except LightshipError as error:
        found = task.clean(error)
        await session.end()
        task.papers.write(paper.failed(found, state="failed"))
        raise found from None
    await session.leave()
    image = {"look": _told(look), "ready": asdict(ready), "leads": True}
    changed = ready.built or ready.pushed or had.id != ready.id
    return Done(task.papers.write(replace(paper, image=image)), changed, f"the image is {ready.reference}")


async def follow(job: Job, place: Place) -> Done:
    """On every other host that needs it: pull it by its digest, or take it from here."""
    task = Task(job, place)
    paper = task.papers.read(place.name)
    if paper is None or paper.image is None or paper.image.get("ready"):
        return Done(paper or Paper(place.name, "failed"), False, "it is there")
    leader = task.papers.read(_leader(task))
    if leader is None or not (leader.image or {}).get("ready"):
        raise RefusedError(
            f"{place.name}: there is no image, since it could not be had on {_leader(task)}", code="no-image"
        )
    given = leader.image or {}
    session = await task.session(paper.token).attach(look=True)
    try:
        wanted = await _wanted(task, session)
        looks = {leader.host: Look.from_json(given["look"]), place.name: Look.from_json(paper.image["look"])}
        spool = _Spool(leader.host, task.papers.spool("leader"))
        mine = SessionPlace(session, task.redactor)
        ready = await Distribution(wanted, [spool, mine]).follow_apart(Ready(**given["ready"]), looks)
    except LightshipError as error:
        found = task.clean(error)
        await session.end()
        task.papers.write(paper.failed(found, state="failed"))
        raise found from None
    await session.leave()
    changed = looks[place.name].id != ready.id
    paper = task.papers.write(replace(paper, image={**paper.image, "ready": asdict(ready)}))
    return Done(paper, changed, f"the image is {ready.reference}", warnings=tuple(session.warnings))


def _leader(task: Task) -> str:
    """The host that has the image already, or else the first: as on the command line."""
    papers = [one for one in map(task.papers.read, task.job.hosts) if one is not None and one.image is not None]
    looks = {one.host: Look.from_json(one.image["look"]) for one in papers if one.image}
    ordered = sorted(papers, key=lambda one: (not looks[one.host].id, not looks[one.host].digest))
    named = next((one.host for one in papers if one.image and one.image.get("leads")), None)
    return named or (ordered[0].host if ordered else "")


def _lacks(paper: Paper, ready: Ready) -> bool:
    return Look.from_json((paper.image or {})["look"]).id != ready.id


async def _wanted(task: Task, session: HeldSession) -> Wanted:
    job = task.job
    answer = await session.call("inspect", inspect_args(task.context.service, job.ref, job.commit, job.env))
    desired = desired_state(task.service, Change.from_json(answer), session.facts)
    return wanted_image(task.service, job.commit, desired)


async def _give_away(session: HeldSession, ready: Ready, spool: Path) -> None:
    """The image's archive, as the agent gives it, into a file."""
    with spool.open("wb") as file:
        answer = await session.call("save", {"image": ready.id, "known": 0}, on_data=lambda part: _write(file, part))
    spool.with_suffix(".sha256").write_text(str(answer.get("sha256")))


def _write(file: Any, part: bytes) -> None:
    file.write(part)


def _told(look: Look) -> dict[str, Any]:
    return {**asdict(look), "layers": list(look.layers)}


class _Spool:
    """A file that stands for the host that leads."""

    def __init__(self, server: str, file: Path) -> None:
        self.server = server
        self._file = file

    async def ask(
        self,
        op: str,
        args: Mapping[str, Any],  # noqa: ARG002 - the whole archive serves whatever layers are there
        on_data: Callable[[bytes], None] | None = None,
    ) -> Mapping[str, Any]:
        """Give the image."""
        if op != "save" or on_data is None or not self._file.exists():
            raise RefusedError(f"{self.server} has not given the image away", code="no-image")
        with self._file.open("rb") as file:
            while part := file.read(_PIECE):
                on_data(part)
        return {"sha256": self._file.with_suffix(".sha256").read_text()}

    def warn(self, text: str) -> None:
        """Nothing goes wrong in a file."""
        raise RefusedError(text, code="no-image")

    @contextlib.asynccontextmanager
    async def sending(self, text: str) -> AsyncIterator[None]:
        """Nothing is sent to it."""
        raise RefusedError(text, code="no-image")
        yield
