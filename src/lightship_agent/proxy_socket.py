"""The proxy's own word: commands over its runtime socket, and what it says it does."""

from __future__ import annotations

import os
import re
import socket
import time
from pathlib import Path

from lightship_agent.errors import AgentFailure
from lightship_agent.system import open_directory

__all__ = ["RuntimeSocket"]

SECONDS = 5.0
MAX_ANSWER = 4 * 1024 * 1024
_OUT_OF_SERVICE = 0x01 | 0x02 | 0x08 | 0x10
"""HAProxy's flags of a server that is given no new request: in maintenance or draining, forced or inherited."""


class RuntimeSocket:
    """The sockets ``haproxy.sock`` and ``master.sock`` in a directory that only root reaches."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def reload(self) -> None:
        """Have HAProxy's first process read its configuration anew; it hands its listening sockets on."""
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                self.ask("reload", "master.sock")
                return
            except OSError as error:
                # For a moment after a reload nobody listens there.
                if time.monotonic() > deadline:
                    raise AgentFailure("proxy-silent", f"the proxy does not answer: {error}", hint=_HINT) from None
            time.sleep(0.05)

    def ask(self, command: str, name: str = "haproxy.sock") -> str:
        """The answer to one command or several with ``;`` between; ``OSError`` when nobody answers."""
        answer = bytearray()
        deadline = time.monotonic() + SECONDS
        try:
            descriptor = open_directory(self.folder)
        except AgentFailure as error:
            raise OSError(str(error)) from None
        try:
            # By the directory: the path of a socket may have 107 bytes, and a root may lie deep.
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(SECONDS)
                connection.connect(f"/proc/self/fd/{descriptor}/{name}")
                connection.sendall(command.encode("ascii") + b"\n")
                while len(answer) < MAX_ANSWER:
                    connection.settimeout(max(0.01, deadline - time.monotonic()))
                    part = connection.recv(65536)
                    if not part:
                        break
                    answer += part
        finally:
            os.close(descriptor)
        return answer.decode("utf-8", "replace")

    def tell(self, *commands: str) -> None:
        """Commands that change something and say nothing; raises ``AgentFailure`` for one that complains."""
        try:
            said = self.ask("; ".join(commands)).strip()
        except OSError as error:
            raise AgentFailure("proxy-silent", f"the proxy does not answer: {error}", hint=_HINT) from None
        complaints = [line for line in said.splitlines() if line.strip() and not re.match(_HARMLESS, line)]
        if complaints:
            raise AgentFailure("proxy-refused", f"the proxy refuses: {complaints[0][:300]}", hint=_HINT)

    def loaded(self) -> str | None:
        """The mark of the configuration that it runs by; None when it does not answer."""
        try:
            match = re.search(r"^description: lightship-(\w+)$", self.ask("show info"), re.MULTILINE)
        except OSError:
            return None
        return match.group(1) if match else None

    def asked_port(self, backend: str) -> int | None:
        """The loopback port that a backend's requests go to; None when there is none, or more than one."""
        found = [
            int(row["srv_port"])
            for row in self._states(backend)
            if row.get("srv_addr") == "127.0.0.1" and not int(row.get("srv_admin_state") or 0) & _OUT_OF_SERVICE
        ]
        return found[0] if len(found) == 1 else None

    def _states(self, backend: str) -> list[dict[str, str]]:
        try:
            lines = [line for line in self.ask(f"show servers state {backend}").splitlines() if line.strip()]
        except OSError:
            return []
        head = next((line[2:].split() for line in lines if line.startswith("# ")), [])
        rows = [line.split() for line in lines if line[:1].isdigit() and " " in line]
        return [dict(zip(head, row)) for row in rows]  # noqa: B905 - strict= is newer than 3.9

    def requests_at(self, backend: str, server: str) -> int:
        """How many requests a server of a backend has now; 0 when the proxy does not answer."""
        try:
            head, *rows = [line.split(",") for line in self.ask("show stat").splitlines() if line]
            column = head.index("scur")
        except (OSError, ValueError):
            return 0
        return sum(int(row[column]) for row in rows if row[:2] == [backend, server] and row[column].isdigit())

    def certificates(self) -> list[dict[str, str]]:
        """The certificates that it has loaded: ``file``, ``until`` and ``names``."""
        found = []
        try:
            for name in self.ask("show ssl cert").splitlines():
                if not name.startswith("/"):
                    continue
                text = self.ask(f"show ssl cert {name}")
                words = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
                names = words.get("Subject Alternative Name") or words.get("Subject", "")
                found.append({"file": name.rsplit("/", 1)[-1], "until": words.get("notAfter", ""), "names": names})
        except OSError:
            pass
        return found


_HINT = "see why: docker logs lightship-proxy; the next deploy puts it right"
# HAProxy tells of a change of address as it does of an error.
_HARMLESS = r"(?i)(IP|port) changed|no need to change|nothing changed"
