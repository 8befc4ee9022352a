"""Migrations on a real PostgreSQL: run once while the old release serves; what fails or hangs leaves it serving."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engine import Engine
from support.postgres import Postgres
from support.promises import refused, state_of, unchanged, until, works
from support.site import Site

APPLICATION = '''
"""Answers with its version; each page reads the database as this release knows it."""
import os

import psycopg

from service import version

connection = None


def application(environ, start_response):
    global connection
    if environ["PATH_INFO"] == "/":
        if connection is None:
            connection = psycopg.connect(os.environ["DATABASE"], autocommit=True, application_name="page")
        connection.execute("SELECT %s FROM items LIMIT 1" % version.COLUMNS).fetchall()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [version.VERSION.encode()]
'''
MIGRATE = '''
"""Applies what is not applied yet, each in a transaction; with the word "state" only says what is."""
import os
import pathlib
import sys

import psycopg

files = sorted(pathlib.Path(__file__).parent.glob("migrations/*.py"))
with psycopg.connect(os.environ["DATABASE"], autocommit=True, application_name="migrate") as database:
    database.execute("CREATE TABLE IF NOT EXISTS applied (name text PRIMARY KEY)")
    done = {row[0] for row in database.execute("SELECT name FROM applied")}
    if sys.argv[1:] == ["state"]:
        for file in files:
            print("[%s] %s" % ("X" if file.stem in done else " ", file.stem))
        sys.exit(0)
    database.execute("CREATE TABLE IF NOT EXISTS runs (moment timestamptz DEFAULT now())")
    database.execute("INSERT INTO runs DEFAULT VALUES")
    for file in files:
        if file.stem not in done:
            print("applying", file.stem, flush=True)
            with database.transaction():
                database.execute(file.read_text())
                database.execute("INSERT INTO applied VALUES (%s)", [file.stem])
'''
FIRST = """
CREATE TABLE items (id serial, name text);
CREATE TABLE ledger (id int);
INSERT INTO items (name) VALUES ('one');
"""
PYTHON = "/opt/venv/bin/python3"


@pytest.fixture(scope="module")
def postgres(engine: Engine) -> Iterator[Postgres]:
    made = Postgres(engine)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def site(engine: Engine, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = MigratingSite(
        engine,
        tmp_path_factory.mktemp("migrations"),
        settings={
            "env": {"DATABASE": postgres.url},
            "migrate": {
                "command": [PYTHON, "service/migrate.py"],
                "state": [PYTHON, "service/migrate.py", "state"],
                "timeout": 30,
            },
        },
        files={
            "requirements.txt": "psycopg[binary]==3.2.10\n",
            "service/migrations/0001_first.py": FIRST,
        },
    )
    try:
        made.deploy()
        yield made
    finally:
        made.close()


class MigratingSite(Site):
    """The service with a database: each version says which columns it reads."""

    columns = "id, name"

    def code(self, version: str, **what: object) -> dict[str, str]:
        files = super().code(version)
        files["service/version.py"] += f'\nCOLUMNS = "{self.columns}"\n'
        return {**files, "service/wsgi.py": APPLICATION, "service/migrate.py": MIGRATE}

    def release(self, version: str, migrations: dict[str, str | None]) -> str:
        """Commit a version with migrations."""
        files: dict[str, str | None] = {f"service/migrations/{name}.py": text for name, text in migrations.items()}
        self.repository.write({**self.code(version), **files})
        return self.repository.commit(message=version)


def applied(postgres: Postgres) -> list[str]:
    return postgres.ask("SELECT name FROM applied ORDER BY name").split()


def runs(postgres: Postgres) -> int:
    return int(postgres.ask("SELECT count(*) FROM runs"))


def test_the_first_deploy_runs_them_before_the_first_page_needs_them(site: MigratingSite, postgres: Postgres) -> None:
    assert applied(postgres) == ["0001_first"]
    assert runs(postgres) == 1
    assert site.get()[0] == 200


def test_they_run_once_while_the_old_release_serves(site: MigratingSite, postgres: Postgres) -> None:
    old, before = site.current, runs(postgres)
    site.columns = "id, name, colour"
    new = site.release(
        "colour",
        {
            "0002_colour": "ALTER TABLE items ADD colour text DEFAULT 'red'; SELECT pg_sleep(0.0)",
            "0003_slow": "SELECT pg_sleep(2)",
        },
    )
    plan = site.run("plan", "--json", expect=0).stdout
    assert "0002_colour" in plan
    assert "run the migrations" in plan
    assert runs(postgres) == before
    with site.load() as load:
        assert load.wait_count(10)
        said = site.deploy()
        assert load.wait_for(new)
    assert not load.report.failed, load.report.errors
    assert load.report.releases == [old, new]
    assert "migrate" in str(said.result)
    assert runs(postgres) == before + 1
    assert applied(postgres) == ["0001_first", "0002_colour", "0003_slow"]
    # Nothing new to apply: not asked again.
    works(site)
    assert runs(postgres) == before + 1


def test_a_new_container_runs_them_once(site: MigratingSite, postgres: Postgres) -> None:
    before = runs(postgres)
    site.configure(env={"DATABASE": postgres.url, "COLOUR": "green"})
    site.release("container", {"0004_more": "CREATE TABLE more (id int)"})
    said = site.deploy()
    assert said.result["kind"] in ("container", "full")
    assert runs(postgres) == before + 1
    assert "0004_more" in applied(postgres)
    works(site)


def test_a_migration_that_fails_leaves_the_old_release_and_says_where_the_schema_is(
    site: MigratingSite, postgres: Postgres
) -> None:
    broken = site.release(
        "fails", {"0005_fine": "CREATE TABLE fine (id int)", "0006_fails": "ALTER TABLE no_such_table ADD x int"}
    )
    with unchanged(site):
        said = site.deploy(expect=None)
        refused(site, said, "migration-failed")
    assert "1 not applied (0006_fails)" in said.error["hint"]
    assert "[X] 0005_fine" in said.error["detail"]["schema"]
    assert "no_such_table" in said.error["detail"]["output"]
    kept = Path(said.error["detail"]["log"])
    assert "no_such_table" in kept.read_text()
    assert kept.parent == site.home / "state/logs"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    # What had been applied stays: nothing is undone blindly.
    assert applied(postgres)[-1] == "0005_fine"
    assert state_of(site, broken) == "failed"
    refused(site, site.deploy(expect=None), "failed-before")
    fixed = site.release("fixed", {"0006_fails": "ALTER TABLE fine ADD x int"})
    with site.load() as load:
        site.deploy()
        assert load.wait_for(fixed)
    assert not load.report.failed, load.report.errors
    assert applied(postgres)[-1] == "0006_fails"


def test_a_migration_that_waits_for_a_lock_is_ended_and_leaves_no_process_and_no_lock(
    site: MigratingSite, postgres: Postgres
) -> None:
    site.configure(migrate={**site.settings["migrate"], "timeout": 3})
    site.release("hangs", {"0007_hangs": "ALTER TABLE ledger ADD y int"})
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'migrate'"
    blocker = postgres.holding("LOCK TABLE ledger IN ACCESS SHARE MODE")
    try:
        with unchanged(site):
            said = site.deploy(expect=None)
            refused(site, said, "migration-timeout")
            assert "longer than 3 s" in said.error["message"]
            assert "0007_hangs" in said.error["hint"]
            until(lambda: postgres.ask(waiting) == "0", what="the database has let its session go")
            assert postgres.ask("SELECT count(*) FROM pg_locks WHERE NOT granted") == "0"
            assert "migrate.py" not in site.engine.docker("top", site.container(), "-eo", "pid,args")
    finally:
        blocker.communicate("ROLLBACK;\n", timeout=20)
    # Not even when the lock is free again: what was ended does not go on behind everybody's back.
    assert "0007_hangs" not in applied(postgres)
    assert postgres.ask("SELECT count(*) FROM information_schema.columns WHERE column_name = 'y'") == "0"
    site.configure(migrate={**site.settings["migrate"], "timeout": 30})
    site.deploy("--retry")
    assert "0007_hangs" in applied(postgres)
    works(site)


def test_a_database_that_is_away_refuses_and_the_next_deploy_works(site: MigratingSite, postgres: Postgres) -> None:
    site.release("no database", {"0008_later": "CREATE TABLE later (id int)"})
    site.configure(
        migrate={
            **site.settings["migrate"],
            "command": ["env", "PGCONNECT_TIMEOUT=2", "DATABASE=host=127.0.0.1", PYTHON, "service/migrate.py"],
        }
    )
    with unchanged(site):
        said = site.deploy(expect=None)
        refused(site, said, "migration-failed")
        assert "127.0.0.1" in said.error["detail"]["output"]
    site.configure(migrate={**site.settings["migrate"], "command": [PYTHON, "service/migrate.py"]})
    site.deploy("--retry")
    assert "0008_later" in applied(postgres)
