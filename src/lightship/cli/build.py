"""``build``."""

from __future__ import annotations

from lightship.cli.common import (
    ConfigOption,
    JsonOption,
    ServerOption,
    ServiceArgument,
    StageOption,
    VerboseOption,
    answer,
    context_for,
    run_async,
    start,
)
from lightship.cli.deploy import CommitOption, RefOption, WaitOption
from lightship_agent.records import replace

__all__ = ["build"]


def build(
    service: ServiceArgument = None,
    stage: StageOption = None,
    ref: RefOption = None,
    commit: CommitOption = None,
    server: ServerOption = None,
    wait: WaitOption = 0.0,
    config: ConfigOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Build the image of a branch, tag or commit, and push it to the registry if there is one. Nothing is deployed.

    It is built on the service's first server (or the one that --server names), from a clean tree of the commit. An
    image that the server or the registry has already is not built again.
    """
    from lightship.operations.build import build as operation  # noqa: PLC0415
    from lightship.operations.deploy import Wanted  # noqa: PLC0415
    from lightship.output.human import SilentProgress, make_progress  # noqa: PLC0415
    from lightship.output.words import build_lines  # noqa: PLC0415

    context = context_for(service, config, SilentProgress(), stage=stage, only=server)
    wanted = Wanted(ref=ref, commit=commit, wait=wait)
    with make_progress(context.service.name, json=json, verbose=verbose) as progress:
        shown = replace(context, emit=progress)
        result = run_async(lambda: operation(shown, wanted, start()))
    answer("build", result, lambda: build_lines(result), json=json)
