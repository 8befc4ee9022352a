"""The configured checks: commands that run in the new release's tree, in the container it is to serve in."""

from typing import Any, Callable, ContextManager, Dict, List, Sequence

from lightship_agent.container import Container, exec_command
from lightship_agent.errors import Refused
from lightship_agent.paths import CONTAINER_CODE
from lightship_agent.requests import Check
from lightship_agent.system import run

__all__ = ["run_checks"]

MAX_SHOWN = 16_000


def run_checks(
    step: Callable[[str], ContextManager[Dict[str, Any]]], container: Container, commit: str, checks: Sequence[Check]
) -> List[Dict[str, Any]]:
    """Run each check as the workers' user; raises ``Refused`` (``check-failed``) for a required one that fails."""
    results = []
    for check in checks:
        with step(f"check {check.name}") as detail:
            folder = f"{CONTAINER_CODE}/releases/{commit}"
            done = run(exec_command(container.name, folder, check.command, user=container.user), timeout=check.timeout)
            output = (done.out + done.err)[-MAX_SHOWN:]
            status = "timeout" if done.timed_out else ("passed" if done.ok else "failed")
            detail.update(status=status)
            results.append({"name": check.name, "status": status, "seconds": round(done.seconds, 3), "output": output})
            if status != "passed" and check.required:
                what = "took longer than its limit" if done.timed_out else "failed"
                raise Refused(
                    "check-failed",
                    f"the check {check.name} {what} on {commit[:7]}",
                    hint="fix it and deploy again; what is live was not touched",
                    detail={"check": check.name, "output": output, "status": done.status},
                )
    return results
