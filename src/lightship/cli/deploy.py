"""``deploy``, ``plan`` and ``rollback``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lightship.cli.common import (
    ConfigOption,
    JsonOption,
    ServiceArgument,
    StageOption,
    VerboseOption,
    answer,
    context_for,
    run_async,
    start,
)
from lightship_agent.records import replace

if TYPE_CHECKING:
    from lightship.operations.deploy import Wanted
    from lightship.operations.rolling import Rolling
    from lightship.rollout import OnFailure

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None)


class KindChoice(StrEnum):
    """What ``--kind`` may say."""

    code = "code"
    container = "container"
    full = "full"


class OnFailureChoice(StrEnum):
    """What ``--on-failure`` may say."""

    revert = "revert"
    stop = "stop"


RefOption = Annotated[
    str | None,
    typer.Option("--ref", help="A branch, a tag or a full commit. Default: the service's branch.", metavar="REF"),
]
CommitOption = Annotated[
    str | None,
    typer.Option(
        "--commit", help="A commit: in full, or the first digits of one that the servers have.", metavar="COMMIT"
    ),
]
KindOption = Annotated[
    KindChoice | None,
    typer.Option("--kind", help="The kind of deploy. Default: what the changes call for.", show_default=False),
]
RetryOption = Annotated[bool, typer.Option("--retry", help="Deploy a release again that failed before.")]
WaitOption = Annotated[
    float,
    typer.Option(
        "--wait", help="Wait this long when somebody else is changing the service.", metavar="SECONDS", min=0, max=86400
    ),
]
TakeOverOption = Annotated[
    bool,
    typer.Option(
        "--take-over",
        help="When the wait was in vain, end whoever holds the lock (who, stands in the error) and go on. What was "
        "begun there is finished or undone first.",
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and why, without doing it.")]
ToOption = Annotated[
    str | None,
    typer.Option(
        "--to", help="The release to go back to (first digits will do). Default: the previous one.", metavar="COMMIT"
    ),
]


CanaryOption = Annotated[
    int | None,
    typer.Option(
        "--canary", help="So many servers first (rollout.canary); 0 for none.", metavar="N", min=0, show_default=False
    ),
]
CanarySoakOption = Annotated[
    float | None,
    typer.Option(
        "--canary-soak",
        help="Watch them for so long (rollout.canary_soak).",
        metavar="SECONDS",
        min=0,
        max=3600,
        show_default=False,
    ),
]
BatchOption = Annotated[
    str | None,
    typer.Option(
        "--batch",
        help="Change so many of the others together (rollout.batch): a number, or a percentage as 25%.",
        metavar="N",
        show_default=False,
    ),
]
MaxFailuresOption = Annotated[
    str | None,
    typer.Option(
        "--max-failures",
        help="Go on while no more servers than that have failed (rollout.max_failures): a number, or a percentage.",
        metavar="N",
        show_default=False,
    ),
]
OnFailureOption = Annotated[
    OnFailureChoice | None,
    typer.Option(
        "--on-failure",
        help="When the rollout stops, take back the servers that it changed, or leave them (rollout.on_failure).",
        show_default=False,
    ),
]
SkipOption = Annotated[
    bool,
    typer.Option(
        "--skip-unreachable",
        help="Leave out servers that cannot be reached. They are named, the exit status is 5, and the next deploy "
        "brings them level.",
    ),
]


@app.command()
def deploy(  # noqa: PLR0913, PLR0917 - typer makes each an option
    service: ServiceArgument = None,
    stage: StageOption = None,
    ref: RefOption = None,
    commit: CommitOption = None,
    kind: KindOption = None,
    dry_run: DryRunOption = False,
    retry: RetryOption = False,
    wait: WaitOption = 0.0,
    take_over: TakeOverOption = False,
    canary: CanaryOption = None,
    canary_soak: CanarySoakOption = None,
    batch: BatchOption = None,
    max_failures: MaxFailuresOption = None,
    on_failure: OnFailureOption = None,
    skip_unreachable: SkipOption = False,
    config: ConfigOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Bring a branch, tag or commit to the service's servers.

    The kind of deploy follows from what changed: code alone is a code deploy; a change of the infrastructure files
    or of the container's settings makes a new container.
    """
    rolling = _rolling(canary, canary_soak, batch, max_failures, on_failure, skip_unreachable)
    wanted = replace(_wanted(ref, commit, kind, retry, wait), take_over=take_over, rolling=rolling)
    if dry_run:
        _show_plan("deploy", (service, stage), wanted, config, json)
        return
    from lightship.cli.rolling import Where, roll_out  # noqa: PLC0415
    from lightship.operations.deploy import deploy as operation  # noqa: PLC0415

    where = Where(service, stage, config)
    roll_out("deploy", where, lambda context: operation(context, wanted, start()), json=json, verbose=verbose)


@app.command()
def plan(  # noqa: PLR0913, PLR0917 - typer makes each an option
    service: ServiceArgument = None,
    stage: StageOption = None,
    ref: RefOption = None,
    commit: CommitOption = None,
    kind: KindOption = None,
    retry: RetryOption = False,
    skip_unreachable: SkipOption = False,
    config: ConfigOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show what a deploy would do, and why, without doing it.

    The same as deploy --dry-run.
    """
    del verbose
    rolling = _rolling(None, None, None, None, None, skip_unreachable)
    wanted = replace(_wanted(ref, commit, kind, retry, 0.0), rolling=rolling)
    _show_plan("plan", (service, stage), wanted, config, json)


@app.command()
def rollback(  # noqa: PLR0913, PLR0917 - typer makes each an option
    service: ServiceArgument = None,
    stage: StageOption = None,
    to: ToOption = None,
    dry_run: DryRunOption = False,
    wait: WaitOption = 0.0,
    take_over: TakeOverOption = False,
    canary: CanaryOption = None,
    canary_soak: CanarySoakOption = None,
    batch: BatchOption = None,
    max_failures: MaxFailuresOption = None,
    on_failure: OnFailureOption = None,
    skip_unreachable: SkipOption = False,
    config: ConfigOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Go back to a release that the servers still have.

    Needs no git server and no image registry.
    """
    from lightship.operations import rollback as operations  # noqa: PLC0415

    rolling = _rolling(canary, canary_soak, batch, max_failures, on_failure, skip_unreachable)
    if dry_run:
        from lightship.output.human import SilentProgress  # noqa: PLC0415

        context = context_for(service, config, SilentProgress(), stage=stage)
        found = run_async(lambda: operations.rollback_plan(context, to, rolling))
        _answer_plan("rollback", found, json)
        return
    from lightship.cli.rolling import Where, roll_out  # noqa: PLC0415

    roll_out(
        "rollback",
        Where(service, stage, config),
        lambda context: operations.rollback(context, to, start(), wait=wait, take_over=take_over, rolling=rolling),
        json=json,
        verbose=verbose,
    )


def _wanted(ref: str | None, commit: str | None, kind: KindChoice | None, retry: bool, wait: float) -> Wanted:
    from lightship.operations.deploy import Wanted  # noqa: PLC0415

    return Wanted(ref=ref, commit=commit, kind=kind.value if kind else None, retry=retry, wait=wait)


def _rolling(
    canary: int | None,
    canary_soak: float | None,
    batch: str | None,
    max_failures: str | None,
    on_failure: OnFailureChoice | None,
    skip_unreachable: bool,
) -> Rolling:
    from lightship.operations.rolling import Rolling  # noqa: PLC0415

    policy: OnFailure | None = None
    if on_failure is not None:
        policy = "revert" if on_failure is OnFailureChoice.revert else "stop"
    return Rolling(canary, canary_soak, batch, max_failures, policy, skip_unreachable)


def _show_plan(
    command: str, named: tuple[str | None, str | None], wanted: Wanted, config: Path | None, json: bool
) -> None:
    from lightship.operations.deploy import plan as operation  # noqa: PLC0415
    from lightship.output.human import SilentProgress  # noqa: PLC0415

    service, stage = named
    context = context_for(service, config, SilentProgress(), stage=stage)
    _answer_plan(command, run_async(lambda: operation(context, wanted)), json)


def _answer_plan(command: str, found: Any, json: bool) -> None:
    from lightship.output.words import plan_lines  # noqa: PLC0415

    answer(command, found, lambda: plan_lines(found), json=json)
