"""A PostgreSQL of the tests' own, from Debian's packages, that containers reach over Docker's bridge."""

from __future__ import annotations

import ipaddress
import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from support.engine import Engine
from support.packages import need

PROGRAMS = Path("/usr/lib/postgresql")


def _programs() -> Path | None:
    found = [path for path in PROGRAMS.glob("*/bin") if (path / "postgres").exists() and (path / "initdb").exists()]
    return max(found, key=lambda path: int(re.sub(r"\D", "", path.parent.name) or 0), default=None)


class Postgres:
    """One cluster in a folder of its own, as user postgres; it trusts whoever comes over the bridge."""

    def __init__(self, engine: Engine) -> None:
        if _programs() is None:
            need("the database of the tests", initdb="postgresql")
        programs = _programs()
        assert programs is not None
        self._programs = programs
        networks = ("network", "inspect", "bridge", "--format", "{{range .IPAM.Config}}{{.Subnet}} {{.Gateway}}{{end}}")
        subnet, *gateway = engine.docker(*networks).split()
        # Not every engine says what its gateway is: by default it is the subnet's first address.
        self.host = gateway[0] if gateway else str(next(ipaddress.ip_network(subnet).hosts()))
        with socket.create_server((self.host, 0)) as free:
            self.port = free.getsockname()[1]
        self.folder = Path(tempfile.mkdtemp(prefix=f"{engine.prefix}-postgres-"))
        user = pwd.getpwnam("postgres")
        os.chown(self.folder, user.pw_uid, user.pw_gid)
        self.data = self.folder / "data"
        try:
            self._run("initdb", "-D", str(self.data), "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C")
            (self.data / "pg_hba.conf").write_text(f"local all all trust\nhost all all {subnet} trust\n")
            settings = f"-h {self.host} -p {self.port} -k {self.folder} -c fsync=off -c max_connections=60"
            log = str(self.folder / "log")
            self._run("pg_ctl", "-D", str(self.data), "-w", "-t", "60", "-l", log, "-o", settings, "start")
        except BaseException:
            self.close()
            raise

    def _run(self, program: str, *arguments: str) -> str:
        command = ["runuser", "-u", "postgres", "--", str(self._programs / program), *arguments]
        done = subprocess.run(
            command, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, (program, done.stdout[-2000:], done.stderr[-2000:])
        return done.stdout.strip()

    @property
    def url(self) -> str:
        """How a container reaches it."""
        return f"postgresql://postgres@{self.host}:{self.port}/postgres"

    def ask(self, sql: str) -> str:
        """Run SQL; its rows without decoration."""
        options = ("-h", str(self.folder), "-p", str(self.port), "-U", "postgres", "-d", "postgres")
        return self._run("psql", *options, "-v", "ON_ERROR_STOP=1", "-Atqc", sql)

    def holding(self, sql: str) -> subprocess.Popen[str]:
        """A session that stays open in a transaction after this SQL; it ends with its input."""
        options = ["-h", str(self.folder), "-p", str(self.port), "-U", "postgres", "-d", "postgres", "-Atq"]
        session = subprocess.Popen(
            [str(self._programs / "psql"), *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert session.stdin is not None
        assert session.stdout is not None
        session.stdin.write(f"BEGIN; {sql}; SELECT 'held';\n")
        session.stdin.flush()
        assert session.stdout.readline().strip() == "held"
        return session

    def close(self) -> None:
        """Stop it and remove its files."""
        if (self.data / "postmaster.pid").exists():
            self._run("pg_ctl", "-D", str(self.data), "-m", "immediate", "-w", "stop")
        shutil.rmtree(self.folder, ignore_errors=True)
