"""The image of new containers, in four tasks: on the host that leads, and on the others.

    built (leads) -> wanted (the others: pull it, or say what they lack) -> given (leads) -> present (the others)

A task sees its own host alone. So what the one that leads has to give away goes through a file here, and to the others
that file looks like the host that leads.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from lightship.errors import LightshipError, RefusedError
from lightship.image import Distribution, Look, Ready, Wanted
from lightship.image import Place as Server
from lightship.model import Change
from lightship.operations.deploy import build_secrets
from lightship.operations.images import SessionPlace
from lightship.operations.requests import desired_state, inspect_args, wanted_image
from lightship.playbook.job import Job
from lightship.playbook.papers import Paper
from lightship.playbook.place import HeldSession, Place
from lightship.playbook.task import Done, Task
from lightship_agent.records import asdict, replace

__all__ = ["work"]

_PIECE = 3 * 1024 * 1024


async def work(state: str, job: Job, place: Place) -> Done:
    """One of the four tasks."""
    task = Task(job, place)
    paper = task.papers.read(place.name)
    leads = paper is not None and paper.image is not None and _leader(task) == place.name
    if paper is None or paper.image is None or leads != (state in ("built", "given")):
        return Done(paper or Paper(place.name, "failed"), False, "nothing to do here")
    if not leads and paper.image.get("ready"):
        return Done(paper, False, "the image is there")
    if state == "given" and not _lacking(task):
        return Done(paper, False, "all have the image")
    session = await task.session(paper.token).attach(look=True)
    step = {"built": _build, "given": _give, "wanted": _want, "present": _take}[state]
    try:
        done = await step(task, session, paper)
    except LightshipError as error:
        found = task.clean(error)
        await session.end()
        task.papers.write(paper.failed(found, state="failed"))
        raise found from None
    await session.leave()
    task.papers.write(done.paper)
    return done


async def _build(task: Task, session: HeldSession, paper: Paper) -> Done:
    """Have the image on the host that leads."""

    async def secrets() -> Mapping[str, str]:
        return await build_secrets(task.context, task.redactor)

    wanted = await _wanted(task, session)
    had = _look(paper)
    own = SessionPlace(session, task.redactor)
    ready, look = await Distribution(wanted, [own], secrets=secrets).lead_apart(had)
    image = {"look": _told(look), "ready": asdict(ready), "leads": True}
    changed = ready.built or ready.pushed or had.id != ready.id
    return Done(replace(paper, image=image), changed, f"the image is {ready.reference}")


async def _want(task: Task, session: HeldSession, paper: Paper) -> Done:
    """On another host: pull it by its digest, or say what is lacking of it."""
    leader, ready = _led(task)
    places: list[Server] = [_Spool(leader.host, task.papers.spool()), SessionPlace(session, task.redactor)]
    distribution = Distribution(await _wanted(task, session), places)
    found = await distribution.bring_apart(ready, {leader.host: _look(leader), paper.host: _look(paper)})
    if isinstance(found, int):
        known = 0 if task.job.whole_image else found
        return Done(replace(paper, image={**(paper.image or {}), "known": known}), False, "the image is to be sent")
    return _has(paper, found, tuple(session.warnings))


async def _give(task: Task, session: HeldSession, paper: Paper) -> Done:
    """On the host that leads: what the others lack of the image, into a file here."""
    _, ready = _led(task)
    known, spool = min(_lacking(task)), task.papers.spool()
    with spool.open("wb") as file:

        def take(part: bytes) -> None:
            file.write(part)

        answer = await session.call("save", {"image": ready.id, "known": known}, on_data=take)
    about = {"sha256": answer.get("sha256"), "known": known}
    return Done(replace(paper, image={**(paper.image or {}), "spooled": about}), False, "the image is given away")


async def _take(task: Task, session: HeldSession, paper: Paper) -> Done:
    """On another host: take it from here."""
    leader, ready = _led(task)
    about = (leader.image or {}).get("spooled") or {}
    spool = _Spool(leader.host, task.papers.spool(), str(about.get("sha256")))
    places: list[Server] = [spool, SessionPlace(session, task.redactor)]
    distribution = Distribution(await _wanted(task, session), places)
    try:
        found = await distribution.send_apart(ready, int(about.get("known") or 0))
    except LightshipError as error:
        if error.code == "layers-missing":
            error.hint = "keep images in a registry, or send all layers: -e lightship_whole_image=true"
        raise
    return _has(paper, found, tuple(session.warnings))


def _has(paper: Paper, ready: Ready, warnings: tuple[str, ...]) -> Done:
    changed = _look(paper).id != ready.id
    paper = replace(paper, image={**(paper.image or {}), "ready": asdict(ready)})
    return Done(paper, changed, f"the image is {ready.reference}", warnings=warnings)


def _look(paper: Paper) -> Look:
    """What a host had under the image's name."""
    return Look.from_json((paper.image or {})["look"])


def _led(task: Task) -> tuple[Paper, Ready]:
    """The host that leads, and the image that it has."""
    name = _leader(task)
    leader = task.papers.read(name)
    ready = (leader.image or {}).get("ready") if leader is not None else None
    if leader is None or not ready:
        raise RefusedError(f"there is no image, since it could not be had on {name or 'any host'}", code="no-image")
    return leader, Ready(**ready)


def _lacking(task: Task) -> list[int]:
    """Of each host that the image has to be sent to, how many of its layers are there."""
    images = [paper.image for paper in map(task.papers.read, task.job.hosts) if paper is not None and paper.image]
    return [int(image["known"]) for image in images if "known" in image and not image.get("ready")]


def _leader(task: Task) -> str:
    """The host that has the image already, or else the first: as on the command line."""
    papers = [one for one in map(task.papers.read, task.job.hosts) if one is not None and one.image is not None]
    looks = {one.host: Look.from_json(one.image["look"]) for one in papers if one.image}
    ordered = sorted(papers, key=lambda one: (not looks[one.host].id, not looks[one.host].digest))
    named = next((one.host for one in papers if one.image and one.image.get("leads")), None)
    return named or (ordered[0].host if ordered else "")


async def _wanted(task: Task, session: HeldSession) -> Wanted:
    job = task.job
    answer = await session.call("inspect", inspect_args(task.context.service, job.ref, job.commit, job.env))
    desired = desired_state(task.service, Change.from_json(answer), session.facts)
    return wanted_image(task.service, job.commit, desired)


def _told(look: Look) -> dict[str, Any]:
    return {**asdict(look), "layers": list(look.layers)}


class _Spool:
    """A file that stands for the host that leads."""

    def __init__(self, server: str, file: Path, sha256: str = "") -> None:
        self.server = server
        self._file = file
        self._sha256 = sha256

    async def ask(
        self,
        op: str,
        args: Mapping[str, Any],  # noqa: ARG002 - it was saved for these very hosts
        on_data: Callable[[bytes], None] | None = None,
    ) -> Mapping[str, Any]:
        """Give the image."""
        if op != "save" or on_data is None or not self._file.exists():
            raise RefusedError(f"{self.server} has not given the image away", code="no-image")
        with self._file.open("rb") as file:
            while part := file.read(_PIECE):
                on_data(part)
        return {"sha256": self._sha256}

    def warn(self, text: str) -> None:
        """Nothing goes wrong in a file."""
        raise RefusedError(text, code="no-image")

    @contextlib.asynccontextmanager
    async def sending(self, text: str) -> AsyncIterator[None]:
        """Nothing is sent to it."""
        raise RefusedError(text, code="no-image")
        yield
