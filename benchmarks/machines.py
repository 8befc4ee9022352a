"""What several benchmarks do to a machine behind an sshd: start one, let this user in, bring an agent of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from support.engine import Engine

__all__ = ["ADDRESS", "SOCKET", "agent_with", "let_in", "names", "this_machine"]

ADDRESS = "127.0.0.1"
SOCKET = "/var/run/docker.sock"
_KEYS = "until test -s /run/sshd.pid; do sleep 0.1; done; cut -d' ' -f1,2 /etc/ssh/ssh_host_*_key.pub"


def names(count: int) -> list[str]:
    """What so many servers are called."""
    return [f"server{number}" for number in range(count)]


def let_in(engine: Engine, container: str, key: Path) -> list[str]:
    """Let the owner of the key in, and git work in directories of others; the server's keys."""
    public = Path(f"{key}.pub").read_text().strip()
    script = f"echo '{public}' >/etc/ssh/keys; chmod 644 /etc/ssh/keys; git config --system safe.directory '*'; {_KEYS}"
    return engine.docker("exec", container, "sh", "-ec", script, timeout=60).splitlines()


def this_machine(engine: Engine, folder: Path, key: Path) -> tuple[str, int, list[str]]:
    """An sshd that sees this machine's processes, network and engine, and the folder; its container, port and keys."""
    from support.engine import server_image  # noqa: PLC0415 - what is measured imports this module, too

    name, port = engine.name("sshd"), engine.free_port()
    engine.run(
        # On this machine's network too: the agent asks the service's health path on the loopback.
        *("--pid", "host", "--network", "host", "--entrypoint", "sh"),
        *("--volume", f"{SOCKET}:{SOCKET}", "--volume", f"{folder}:{folder}"),
        server_image(),
        *("-c", f"mkdir -p /run/sshd; ssh-keygen -q -A; exec /usr/sbin/sshd -D -p {port} -o ListenAddress={ADDRESS}"),
        name=name,
    )
    return name, port, let_in(engine, name, key)


def agent_with(main: bytes) -> bytes:
    """The agent, begun by a program of the benchmark's own."""
    import lightship_agent  # noqa: PLC0415
    from lightship.transport.zipapp import agent_bytes  # noqa: PLC0415

    package = Path(lightship_agent.__file__).parent
    files: Sequence[tuple[str, bytes]] = [
        (f"lightship_agent/{path.relative_to(package).as_posix()}", path.read_bytes())
        for path in sorted(package.rglob("*.py"))
    ]
    return agent_bytes([("__main__.py", main), *files])
