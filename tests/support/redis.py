"""A Redis of the tests' own, from Debian's packages, that containers reach over Docker's bridge."""

from __future__ import annotations

import ipaddress
import socket
import subprocess
import time

from support.engine import Engine
from support.packages import find, need


class Redis:
    """One server, in memory alone, for whoever comes over the bridge. It ends with this object or with its process."""

    def __init__(self, engine: Engine) -> None:
        need("the queue of the tests", **{"redis-server": "redis-server"})
        program = find("redis-server")
        assert program is not None
        networks = ("network", "inspect", "bridge", "--format", "{{range .IPAM.Config}}{{.Subnet}} {{.Gateway}}{{end}}")
        subnet, *gateway = engine.docker(*networks).split()
        self.host = gateway[0] if gateway else str(next(ipaddress.ip_network(subnet).hosts()))
        with socket.create_server((self.host, 0)) as free:
            self.port = free.getsockname()[1]
        settings = ("--bind", self.host, "--port", str(self.port), "--protected-mode", "no", "--save", "")
        self._process = subprocess.Popen(
            [program, *settings, "--appendonly", "no", "--dir", "/tmp"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + 20
        while True:
            try:
                with socket.create_connection((self.host, self.port), timeout=1):
                    return
            except OSError:
                assert self._process.poll() is None, "redis-server has ended"
                assert time.monotonic() < deadline, "redis-server does not answer"
                time.sleep(0.05)

    @property
    def url(self) -> str:
        """How a container reaches it."""
        return f"redis://{self.host}:{self.port}/0"

    def close(self) -> None:
        """Stop it."""
        self._process.kill()
        self._process.wait()
