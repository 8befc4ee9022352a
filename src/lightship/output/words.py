"""Results as lines of text. Pure: what is shown and how it is worded, but not where or in which colour.

A line is a list of pieces, each a text with a style of ``STYLES``. Every text from outside goes through ``printable``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from lightship.errors import LightshipError
from lightship.model import Kind, Plan, ProxyFacts, ServerResult, StepTiming, short
from lightship.output.text import last_line, printable, printable_lines
from lightship.result import BuildResult, PlanResult, ReleasesResult, ServerReleases, ServerStatus, StatusResult, Timing
from lightship.rollout.result import RolloutResult

__all__ = [
    "Line",
    "Piece",
    "Style",
    "build_lines",
    "error_lines",
    "kind_words",
    "plan_lines",
    "releases_lines",
    "rollout_lines",
    "status_lines",
    "step_words",
    "timing_lines",
]

Style = Literal["", "bold", "dim", "good", "bad", "warn", "name"]
Piece = tuple[str, Style]
Line = Sequence[Piece]

_FILES_SHOWN = 20
_COMMITS_SHOWN = 20
_TRACEBACK_LINES = 60
_DIGITS = 12
_SERVERS_SHOWN = 40
#: Of where the time of a quicker deploy went nothing is said.
_WORTH_A_LINE = 0.5
_WAITS_SHOWN = 4
_LEAST_SHARE, _TINY = 0.03, 0.005
_KINDS: Mapping[Kind, str] = {
    "nothing": "nothing to do",
    "code": "code deploy",
    "container": "container deploy",
    "full": "full deploy",
}
#: Details of an error that hold output of a program, in the order in which they are worth showing.
_OUTPUTS = ("traceback", "output", "stderr", "log")


def kind_words(kind: Kind) -> str:
    """A kind of deploy in words."""
    return _KINDS[kind]


def step_words(steps: Iterable[StepTiming]) -> str:
    """The steps with their seconds, as ``tree 0.05, boot 0.31``."""
    return ", ".join(f"{printable(step.name, 40)} {step.seconds:.2f}" for step in steps)


def error_lines(error: LightshipError, *, verbose: bool = False) -> list[Line]:
    """``error: ...``, the line that says most of what a program printed, and ``hint: ...``."""
    first, *more = printable_lines(error.message)
    lines: list[Line] = [[("error", "bad"), (": ", "bold"), (first, "bold")]]
    lines += [[(line, "")] for line in more]
    output = next((error.detail[key] for key in _OUTPUTS if isinstance(error.detail.get(key), str)), "")
    words = last_line(output)
    if output and verbose:
        lines += [[("  " + line, "dim")] for line in printable_lines(output, most=_TRACEBACK_LINES)]
    elif words and words not in first:
        lines.append([("  " + words, "bad")])
    if error.hint:
        hints = printable_lines(error.hint)
        lines.append([("hint", "name"), (": ", "bold"), (hints[0], "")])
        lines += [[("      " + line, "")] for line in hints[1:]]
    if output and not verbose and "\n" in str(output).strip():
        lines.append([("      more with --verbose", "dim")])
    return lines


def plan_lines(result: PlanResult) -> list[Line]:
    """What a deploy would do: commit, kind and why, commits, files, steps."""
    head: Line = [
        (result.service, "name"),
        (": ", ""),
        (f"{printable(result.ref, 200)} is " if result.ref != result.commit else "", ""),
        (short(result.commit), "bold"),
        (f" {printable(result.subject, 100)}" if result.subject else "", "dim"),
    ]
    lines: list[Line] = [head]
    if result.source == "push":
        lines.append([("the code is sent from here; the servers do not ask the git host (source: push)", "dim")])
    # Servers with the same plan share it.
    groups: list[tuple[list[str], list[Line]]] = []
    for server, plan in result.plans:
        shown = _one_plan(plan)
        same = next((names for names, others in groups if others == shown), None)
        if same is None:
            groups.append(([server], shown))
        else:
            same.append(server)
    for names, shown in groups:
        if len(result.plans) > 1:
            lines += [[], _servers_line(names)]
        lines += shown
    return lines


def build_lines(result: BuildResult) -> list[Line]:
    """The image, and what was done for it."""
    done = [word for word, is_so in (("built", result.built), ("pushed", result.pushed)) if is_so]
    words = f" {' and '.join(done)}" if done else " is there already, nothing to build"
    where = f" on {printable(result.server, 100)} in {result.seconds:.2f} s"
    lines: list[Line] = [
        [
            (result.service, "name"),
            (": the image of ", ""),
            (short(result.commit), "bold"),
            (words, "good"),
            (where, "dim"),
        ],
        [("  image   ", "dim"), (printable(result.image, 300), "")],
    ]
    return [*lines, [("  digest  ", "dim"), (printable(result.digest, 300), "")]] if result.digest else lines


def _servers_line(names: Sequence[str]) -> Line:
    """The servers that what follows is about."""
    from lightship.output.fleet import names_words  # noqa: PLC0415

    count = f" ({len(names)} servers)" if len(names) > 1 else ""
    return [(names_words(names), "name"), (count, "dim")]


def _one_plan(plan: Plan) -> list[Line]:
    lines: list[Line] = [[(kind_words(plan.kind), "bold"), (": ", ""), ("; ".join(map(printable, plan.why)), "")]]
    if plan.blocked:
        lines.append([("not again without --retry", "warn"), (": ", ""), (printable(plan.blocked), "")])
    if plan.nothing_to_do:
        return lines
    change = plan.change
    if change.commits:
        lines += [[], [("commits", "name"), ("" if change.ahead else " (not a fast-forward of what is live)", "warn")]]
        lines += [
            [("  ", ""), (short(one.commit), "bold"), (f" {printable(one.subject, 100)}", "")]
            for one in change.commits[:_COMMITS_SHOWN]
        ]
        lines += _more(change.count, min(len(change.commits), _COMMITS_SHOWN))
    if change.files:
        infra = set(change.infra) | set(change.infra_live or {})
        lines += [[], [("files", "name")]]
        lines += [
            [
                (f"  {printable(one.status, 4):<2}", "dim"),
                (f" {printable(one.path, 200)}", ""),
                (" (infrastructure)" if one.path in infra else "", "warn"),
            ]
            for one in change.files[:_FILES_SHOWN]
        ]
        lines += _more(change.files_count, min(len(change.files), _FILES_SHOWN))
    lines += [[], [("steps", "name")]]
    lines += [
        [(f"  {number}. ", "dim"), (printable(step.title), ""), (f" ({step.detail})" if step.detail else "", "dim")]
        for number, step in enumerate(plan.steps, 1)
    ]
    if plan.expected_seconds is not None:
        words = f"{plan.expected_seconds:.1f} s, as {kind_words(plan.kind)}s took here before"
        lines += [[], [("expected", "name"), (f" {words}", "")]]
    return lines


def _more(count: int, shown: int) -> list[Line]:
    return [[(f"  and {count - shown} more", "dim")]] if count > shown else []


def rollout_lines(result: RolloutResult) -> list[Line]:
    """The last line of a deploy or rollback; before it, servers that ended differently from the rest."""
    lines: list[Line] = []
    if len(result.servers) > 1 and len({one.outcome for one in result.servers}) > 1:
        lines += _servers_lines(result.servers)
    name: Piece = (result.service, "name")
    if result.outcome == "nothing":
        lines.append([name, (": ", ""), (short(result.commit), "bold"), (" is live already, nothing to do", "")])
    elif result.outcome == "done":
        done = [one for one in result.servers if one.outcome == "done"]
        count = len(result.servers)
        slowest = max(done, key=lambda one: one.seconds) if done else None
        steps = step_words(slowest.steps) if slowest else ""
        lines.append(
            [
                name,
                (": ", ""),
                (short(result.commit), "bold"),
                (" live", "good"),
                (f" on {count} server{'' if count == 1 else 's'} in ", ""),
                (f"{result.seconds:.2f} s", "bold"),
                (f" ({kind_words(result.kind)}{'; ' if steps else ''}{steps})", "dim"),
            ]
        )
    else:
        lines.append([name, (": ", ""), (_ended(result), "bold")])
    return lines


def timing_lines(timing: Timing) -> list[Line]:
    """Where the time of a deploy went and what would shorten it, in one line; none when it was quick anyway."""
    if timing.seconds < _WORTH_A_LINE:
        return []
    from lightship.trace.waits import WAITS  # noqa: PLC0415

    least = _LEAST_SHARE * timing.seconds
    told = [one for one in timing.waits if one.seconds >= least and one.what != "other"][:_WAITS_SHOWN]
    rest = timing.seconds - sum(one.seconds for one in told)
    words = [f"{WAITS.get(one.what, one.what)} {one.seconds:.2f}" for one in told]
    words += [f"other {rest:.2f}"] if rest >= _TINY else []
    hint = f"; to shorten it: {', '.join(timing.shorter)}" if timing.shorter else ""
    return [[(f"{timing.seconds:.2f} s in all: {', '.join(words)}{hint}", "dim")]]


def _ended(result: RolloutResult) -> str:
    running = sorted({short(one.running) for one in result.servers if one.running})
    runs = f"; {' and '.join(running)} serve{'' if len(running) > 1 else 's'}" if running else "; nothing serves yet"
    if result.outcome == "reverted":
        return f"{short(result.commit)} was reverted{runs}"
    if result.outcome == "skipped":
        return f"{short(result.commit)} was not deployed: no server could be reached"
    if (result.outcome == "degraded" and len(running) > 1) or any(one.outcome == "skipped" for one in result.servers):
        return f"{short(result.commit)} is not on all servers{runs}"
    if result.outcome == "degraded":
        return f"{short(result.commit)} left the service in need of a person{runs}"
    if result.outcome == "aborted":
        return f"{short(result.commit)} was stopped, nothing was changed{runs}"
    return f"{short(result.commit)} was refused, nothing was changed{runs}"


def _servers_lines(servers: Sequence[ServerResult]) -> list[Line]:
    """A line for each; of very many, one for all that ended alike, and one for each that failed."""
    if len(servers) <= _SERVERS_SHOWN:
        return [_server_line(one) for one in servers]
    groups: dict[tuple[str, str | None], list[str]] = {}
    for one in servers:
        groups.setdefault((one.outcome, one.running), []).append(one.server)
    lines: list[Line] = [
        [
            (f"  {len(names)} servers: ", "name"),
            (outcome, "good" if outcome in ("done", "nothing") else "bad"),
            (f", run {short(running)}" if running else ", what they run is not known", ""),
        ]
        for (outcome, running), names in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
    failed = [one for one in servers if one.error is not None]
    return lines + [_server_line(one) for one in failed[:_SERVERS_SHOWN]] + _more(len(failed), _SERVERS_SHOWN)


def _server_line(one: ServerResult) -> Line:
    return [
        (f"  {printable(one.server, 100)}: ", "name"),
        (one.outcome, "good" if one.outcome in ("done", "nothing") else "bad"),
        (f", runs {short(one.running)}" if one.running else ", what it runs is not known", ""),
        (f": {printable(one.error.message, 300)}" if one.error else "", ""),
    ]


def status_lines(result: StatusResult) -> list[Line]:
    """What is expected, on disk, and loaded by each worker, for each server."""
    lines: list[Line] = []
    if len(result.servers) > 1:
        from lightship.output.fleet import fleet_status_lines  # noqa: PLC0415

        lines += fleet_status_lines(result)
    for one in result.servers if len(result.servers) == 1 else ():
        lines += _one_status(result, one)
    head = short(result.head) if result.head else printable(result.head_error or "not asked", 300)
    lines.append([(f"  {'branch':<10}", "dim"), (f"{printable(result.branch, 200)} is {head}", "")])
    return lines


def _one_status(result: StatusResult, one: ServerStatus) -> list[Line]:
    title: list[Piece] = [(result.service, "name"), (f" on {printable(one.server, 100)}: ", "")]
    facts = one.facts
    if facts is None:
        return [[*title, (printable(one.problem), "bad")]]
    if one.on_disk is None:
        return [[*title, ("nothing is deployed yet", "warn")]]
    state: Piece = (printable(one.problem), "bad") if one.problem else (f"{short(one.on_disk)} live", "good")
    lines: list[Line] = [[*title, state]]
    release = facts.release(one.on_disk)
    subject = f" {printable(release.subject, 100)}" if release and release.subject else ""
    lines.append([(f"  {'expected':<10}", "dim"), (short(one.expected), "bold"), (" deployed last", "dim")])
    lines.append([(f"  {'on disk':<10}", "dim"), (short(one.on_disk), "bold"), (subject, "dim")])
    for slot, found in sorted(facts.slots.items()):
        for worker in found.workers if found.running else ():
            lines.append(
                [
                    (f"  {'loaded':<10}", "dim"),
                    (short(worker.release), "bold"),
                    (f" worker {worker.id} of slot {printable(slot, 10)}, pid {worker.pid}, ", "dim"),
                    (printable(worker.state, 20), "good" if worker.state == "serving" else "warn"),
                ]
            )
    for name, role in sorted(facts.roles.items()):
        for process in role.processes:
            lines.append(
                [
                    (f"  {'loaded':<10}", "dim"),
                    (short(process.release), "bold"),
                    (f" {printable(name, 40)} {process.process + 1}, pid {process.pid}, ", "dim"),
                    (printable(process.state, 20).lower(), "good" if process.state == "RUNNING" else "warn"),
                ]
            )
        if role.problem:
            lines.append([(f"  {'role':<10}", "dim"), (printable(role.problem), "bad")])
    if facts.container is not None:
        container = facts.container
        words = f"{printable(container.name, 100)} (instance {container.instance}, {printable(container.status, 40)})"
        lines.append([(f"  {'container':<10}", "dim"), (words, ""), (f" {printable(container.image, 200)}", "dim")])
    if facts.proxy is not None:
        lines += _proxy_lines(facts.proxy)
    if one.environment:
        words = printable(one.environment[:_DIGITS], _DIGITS)
        lines.append([(f"  {'variables':<10}", "dim"), (words, ""), (" is their fingerprint", "dim")])
    return lines


def _proxy_lines(proxy: ProxyFacts) -> list[Line]:
    from lightship.output.proxy import proxy_words, since_words  # noqa: PLC0415

    lines: list[Line] = [[(f"  {'proxy':<10}", "dim"), (proxy_words(proxy), "")]]
    if proxy.maintenance is not None:
        words = f"on since {since_words(proxy.maintenance)}: visitors get the page"
        lines.append([(f"  {'maintenance':<10} ", "dim"), (words, "warn")])
    return lines


def releases_lines(result: ReleasesResult) -> list[Line]:
    """The releases on each server, newest first; what is current and what a rollback goes to is marked."""
    lines: list[Line] = []
    # Servers that have the same ones are shown together, with the times of the first.
    groups: dict[object, list[ServerReleases]] = {}
    for one in result.servers:
        alike = tuple((release.commit, release.state) for release in one.releases)
        groups.setdefault((one.current, one.previous, alike), []).append(one)
    for members in groups.values():
        if len(result.servers) > 1:
            lines.append(_servers_line([one.server for one in members]))
        lines += _releases_of(members[0])
    return lines


def _releases_of(one: ServerReleases) -> list[Line]:
    lines: list[Line] = [] if one.releases else [[("no releases yet", "dim")]]
    for release in one.releases:
        marks = [
            word
            for word, commit in (("current", one.current), ("rollback goes here", one.previous))
            if commit == release.commit
        ]
        lines.append(
            [
                (short(release.commit), "bold"),
                (f" {_when(release.created)}", "dim"),
                (f" {printable(release.state, 20):<9}", _state_style(release.state)),
                (f" {printable(release.subject, 80)}", ""),
                (f" [{', '.join(marks)}]" if marks else "", "name"),
            ]
        )
    return lines


def _when(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (ValueError, OverflowError, OSError):
        return "at an unknown time"


def _state_style(state: str) -> Style:
    return "good" if state == "stable" else "bad" if state == "failed" else "dim"
