"""``lightship doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
)
from lightship.errors import ConfigurationError

if TYPE_CHECKING:
    from lightship.operations.doctor import DoctorResult

__all__ = ["doctor"]


def doctor(
    service: ServiceArgument = None,
    stage: StageOption = None,
    server: ServerOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Check servers and a service from end to end, and say what to do about what is wrong. Changes nothing.

    Exit status 5 when something is wrong, else 0.
    """
    del verbose
    from lightship.operations.doctor import Check, DoctorResult  # noqa: PLC0415
    from lightship.operations.doctor import doctor as operation  # noqa: PLC0415
    from lightship.output.doctor import doctor_lines  # noqa: PLC0415
    from lightship.output.human import SilentProgress  # noqa: PLC0415

    result: DoctorResult
    try:
        context = context_for(service, config, SilentProgress(), stage=stage, only=server)
    except ConfigurationError as error:
        result = DoctorResult(service or "", (Check("configuration", "wrong", error.message, error.hint),))
    else:
        result = run_async(lambda: operation(context))
    answer("doctor", result, lambda: doctor_lines(result), json=json, exit_status=result.exit_status)
