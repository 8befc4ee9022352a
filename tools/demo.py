"""`make demo`: the main job on this machine. Real deploys into a real container, under a load of 100 requests/s.

The example service is put into a git repository of its own and deployed by the command line, as a user would. What
the load saw is held against what lightship promises; a figure that is not as promised makes the demo fail.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools")]

import base_image  # noqa: E402
import engine  # noqa: E402
from machine import DEMO_FILES, DEMO_MARK, STATE, TroubleError, alone, remove_demo_files, run, stop_with  # noqa: E402
from support.load import Load, LoadReport  # noqa: E402
from support.repo import Repository, git  # noqa: E402

SERVICE = "shop-demo"
LABEL = "lightship-demo=1"
HOME = STATE / "demo"
EXAMPLE = ROOT / "examples" / "shop"
LIGHTSHIP = ROOT / ".venv" / "bin" / "lightship"
FIRST_PORT = 8000
RATE = 100
QUIET = 1.5
VERSION_SHOWN = r"Version <strong>([^<]+)</strong>"
REFUSED = 3

# Where the output is kept, such as in a log, there is room for the whole table.
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 110)


@dataclass
class Row:
    """One step of the demo: what was done, what it ended with, and what the load saw meanwhile."""

    title: str
    command: str
    began: float
    seconds: float
    status: int
    envelope: dict[str, Any]
    expected: str
    seen: LoadReport = field(default_factory=lambda: LoadReport(()))
    complaints: list[str] = field(default_factory=list)

    @property
    def result(self) -> dict[str, Any]:
        """What the command reported."""
        found = self.envelope.get("result")
        return found if isinstance(found, dict) else {}

    @property
    def kind(self) -> str:
        """The kind of deploy that lightship chose."""
        return str(self.result.get("kind") or "")

    @property
    def steps(self) -> str:
        """The seconds of each step."""
        servers = self.result.get("servers") or [{}]
        steps = servers[0].get("steps") or []
        return ", ".join(f"{step['name']} {step['seconds']:.2f}" for step in steps)

    @property
    def all_new(self) -> float | None:
        """Seconds from the command's start until every response was of the version that is expected."""
        since = self.seen.all_marked_after(self.expected)
        return None if since is None else since - self.began

    def hold(self, promise: bool, otherwise: str) -> None:
        """Note a promise that was not kept."""
        if not promise:
            self.complaints.append(otherwise)


def free_port() -> int:
    """The first port from 8000 on that nothing listens on."""
    for port in range(FIRST_PORT, FIRST_PORT + 200):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("0.0.0.0", port))  # noqa: S104 - the port is published on all addresses, as Docker does
            except OSError:
                continue
            return port
    raise TroubleError(f"No port from {FIRST_PORT} to {FIRST_PORT + 199} is free.")


def remove_old() -> None:
    """Begin anew: the container and files of an earlier demo go, its images stay and save the build."""
    ids = run(["docker", "ps", "--all", "--quiet", "--filter", f"label={LABEL}"]).stdout.split()
    if ids:
        run(["docker", "rm", "--force", "--volumes", *ids])
    remove_demo_files()
    if DEMO_FILES.exists():
        raise TroubleError(f"{DEMO_FILES} is there, but not made by the demo. Move it away, and run this again.")
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    DEMO_FILES.mkdir(parents=True)
    (DEMO_FILES / DEMO_MARK).touch()


def make_repository(port: int, base: str) -> Repository:
    """The example in a repository of its own, with this machine's port and base image in its configuration."""
    repository = Repository(HOME)
    shutil.copytree(EXAMPLE, repository.tree, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    path = repository.tree / "lightship.yml"
    service = dict(next(iter(yaml.safe_load(path.read_text())["services"].values())))
    service |= {
        "repository": str(repository.remote),
        "ports": [f"{port}:8000"],
        "root": str(DEMO_FILES),
        "image": {"dockerfile": "Dockerfile", "args": {"BASE_IMAGE": base}},
        "options": [f"--label={LABEL}"],
    }
    path.write_text(yaml.safe_dump({"services": {SERVICE: service}}, sort_keys=False))
    repository.commit("The shop, as the example has it")
    # Whoever goes on with it by hand pushes without having to say where to.
    git(repository.tree, "push", "--quiet", "--set-upstream", "origin", "main")
    return repository


class Demo:
    """The steps, one after the other, while the load goes on."""

    def __init__(self, repository: Repository, load: Load) -> None:
        self.repository = repository
        self.load = load
        self.rows: list[Row] = []

    def lightship(self, title: str, *arguments: str, expected: str) -> Row:
        """Run a command as a user would, wait a little, and take what the load saw from its start on."""
        command = f"lightship {' '.join(arguments)}"
        console.print(f"\n[bold]{len(self.rows) + 1}. {escape(title)}[/]\n   $ {command}")
        began = time.monotonic()
        done = subprocess.run(
            [str(LIGHTSHIP), *arguments, "--json"],
            cwd=self.repository.tree,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        ended = time.monotonic()
        try:
            envelope = json.loads(done.stdout)
        except ValueError:
            envelope = {"error": {"message": (done.stderr or done.stdout).strip()[-2000:] or "no answer"}}
        row = Row(title, command, began, ended - began, done.returncode, envelope, expected)
        time.sleep(QUIET)
        row.seen = self.load.so_far().window(began, ended + QUIET - 0.2)
        self.rows.append(row)
        return row

    def tell(self, row: Row) -> None:
        """Say how a step ended, as soon as it has."""
        error = row.envelope.get("error")
        words = "done" if row.status == 0 else f"exit status {row.status}"
        console.print(f"   {words} in {row.seconds:.2f} s" + (f" ({row.kind})" if row.kind else ""))
        if error:
            console.print(f"   {escape(str(error.get('message', '')))}")
            if last := last_line(error.get("detail") or {}):
                console.print(f"   [dim]{escape(last)}[/]")
        if row.steps:
            console.print(f"   [dim]{escape(row.steps)}[/]")
        for complaint in row.complaints:
            console.print(f"   [bold red]not as promised:[/] {escape(complaint)}")


def last_line(detail: Mapping[str, Any]) -> str:
    """The last line of the traceback that came with a refusal."""
    for key in ("traceback", "output", "stderr", "log"):
        rows = str(detail.get(key) or "").strip().splitlines()
        if rows:
            return rows[-1].strip()
    return ""


def hold_undisturbed(row: Row) -> None:
    """Not one request failed, and after the end only the expected version answers."""
    row.hold(row.seen.count > 0, "the load sent nothing")
    row.hold(not row.seen.failed, f"{len(row.seen.failed)} requests failed: {dict(row.seen.errors)}")
    row.hold(row.all_new is not None, f"not every response is of version {row.expected}: {row.seen.marks}")


def first_deploy(demo: Demo) -> Row:
    """The image is built, the container started, the site comes up."""
    row = demo.lightship("first deploy", "deploy", expected="1")
    row.hold(row.status == 0, f"exit status {row.status}, not 0")
    row.hold(row.all_new is not None, "the site does not answer with version 1")
    return row


def code_deploy(demo: Demo) -> Row:
    """One line changed."""
    demo.repository.replace("shop/version.py", 'VERSION = "1"', 'VERSION = "2"', "Version 2")
    row = demo.lightship("one line changed", "deploy", expected="2")
    row.hold(row.status == 0 and row.kind == "code", f"exit status {row.status}, kind {row.kind}; not 0, code")
    hold_undisturbed(row)
    return row


def broken_deploy(demo: Demo) -> Row:
    """An import that fails."""
    views = demo.repository.tree / "shop" / "views.py"
    demo.repository.commit("Break an import", {"shop/views.py": views.read_text() + "\nimport shop.no_such_module\n"})
    row = demo.lightship("an import that fails", "deploy", expected="2")
    row.hold(row.status == REFUSED, f"exit status {row.status}, not {REFUSED}")
    error = row.envelope.get("error") or {}
    shown = last_line(error.get("detail") or {}) + str(error.get("message"))
    row.hold("no_such_module" in shown, "the refusal does not show the traceback's last line")
    row.hold(row.seen.marks == ["2"], f"a response changed: {row.seen.marks}")
    hold_undisturbed(row)
    return row


def rollback(demo: Demo) -> Row:
    """Back to the release before."""
    row = demo.lightship("rollback", "rollback", expected="1")
    row.hold(row.status == 0, f"exit status {row.status}, not 0")
    hold_undisturbed(row)
    return row


def container_deploy(demo: Demo) -> Row:
    """A dependency more. Nothing says that this is a container deploy but the file that changed."""
    views = (demo.repository.tree / "shop" / "views.py").read_text()
    needs = (demo.repository.tree / "requirements.txt").read_text()
    files = {
        "shop/views.py": views.replace("\nimport shop.no_such_module\n", ""),
        "shop/version.py": '"""What the pages show of themselves."""\n\nVERSION = "3"\n',
        "requirements.txt": needs.rstrip("\n") + "\nwhitenoise==6.*\n",
    }
    demo.repository.commit("Add a dependency", files)
    row = demo.lightship("requirements.txt changed", "deploy", expected="3")
    row.hold(row.status == 0, f"exit status {row.status}, not 0")
    row.hold(row.kind in ("container", "full"), f"lightship chose {row.kind or 'nothing'}, not a container deploy")
    row.hold(row.all_new is not None, f"not every response is of version 3: {row.seen.marks}")
    return row


STEPS: tuple[Callable[[Demo], Row], ...] = (first_deploy, code_deploy, broken_deploy, rollback, container_deploy)


def table_of(rows: list[Row]) -> Table:
    """The figures."""
    table = Table(
        title=f"What {RATE} requests/s saw", title_justify="left", show_lines=True, width=min(console.width, 120)
    )
    table.add_column("step, and its parts in seconds", ratio=1)
    table.add_column("kind")
    for name in ("seconds", "all new\nafter s", "failed\nrequests", "worst\nrequest s", "site\naway s"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, row in enumerate(rows, 1):
        first, refused = number == 1, row.status != 0
        new = "-" if refused or row.all_new is None else f"{row.all_new:.2f}"
        answered = LoadReport([record for record in row.seen.records if record.ok])
        table.add_row(
            f"{number}. {row.title}\n[dim]{escape(row.steps)}[/]",
            "refused" if row.status == REFUSED else row.kind or "-",
            f"{row.seconds:.2f}",
            new,
            # Before the first deploy there is no site that could fail.
            "-" if first else f"{len(row.seen.failed)} of {row.seen.count}",
            f"{(answered if first else row.seen).worst:.3f}",
            "-" if first else f"{row.seen.gap():.2f}",
            style="red" if row.complaints else "",
        )
    return table


def conclude(rows: list[Row], port: int) -> int:
    """The table, what it means, and the exit status."""
    console.print()
    console.print(table_of(rows), soft_wrap=False)
    last = rows[-1]
    if last.seen.failed and last.status == 0:
        console.print(
            "A container deploy replaces the container, and a port has one owner; with no proxy in front the site\n"
            f"was away for {last.seen.gap():.2f} s. The image had been made ready before the old container was stopped."
        )
    broken = [(row.title, complaint) for row in rows for complaint in row.complaints]
    for title, complaint in broken:
        console.print(f"[bold red]not as promised:[/] {escape(title)}: {escape(complaint)}")
    if len(rows) < len(STEPS):
        console.print("[bold red]The demo ended early.[/]")
    if broken or len(rows) < len(STEPS):
        return 1
    console.print(f"\nAll as promised. The site runs on at http://127.0.0.1:{port}/")
    console.print(f"Its code is in {HOME.relative_to(ROOT)}/work: change it, commit, push, and there run")
    console.print(f"    {LIGHTSHIP} deploy")
    console.print("`make clean` removes everything.")
    return 0


def main() -> int:
    """Set up, take the steps, conclude."""
    try:
        engine.ensure()
        base = base_image.ensure()
        with alone("demo", timeout=1):
            remove_old()
            port = free_port()
            repository = make_repository(port, base)
            console.print(f"The example service, deployed to this machine: http://127.0.0.1:{port}/")
            console.print(f"[dim]{RATE} requests/s run against it all the time, each on a connection of its own.[/]")
            with Load(f"http://127.0.0.1:{port}/", RATE, seconds=3000, host="localhost", capture=VERSION_SHOWN) as load:
                demo = Demo(repository, load)
                for step in STEPS:
                    row = step(demo)
                    demo.tell(row)
                    if row.status not in (0, REFUSED) or (len(demo.rows) == 1 and row.complaints):
                        break
    except TroubleError as trouble:
        return stop_with(trouble)
    return conclude(demo.rows, port)


if __name__ == "__main__":
    sys.exit(main())
