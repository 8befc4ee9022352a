"""A real site, made by `wagtail start`, taken from `lightship init` through ten changes, a new dependency and back.

What init writes is used as it is; what it tells the user to do is done, and nothing else. Only what this machine
needs is added: where the service's files lie, a base image where there is no registry, and the tests' label.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import pytest

from support.engine import Engine
from support.repo import Repository
from support.site import Said, Site
from support.wagtail import start_project

ASSETS = "    assets: {directory: staticfiles, days: 7}\n"
# What Wagtail's own pages on deploying ask for; a project that `wagtail start` made leaves it open.
PRODUCTION = """
import os

SECRET_KEY = os.environ["SECRET_KEY"]
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
STATIC_ROOT = "/srv/lightship/shared/staticfiles"
MARK = "setting 0"
"""
MODELS = """
from importlib.metadata import version

from django.conf import settings
from django.db import models
from wagtail.models import Page

from home.kind import KIND
from home.tint import TINT
from home.extra import EXTRA


class HomePage(Page):
    def told(self):
        return "model 0"

    def get_context(self, request, *args, **kwargs):
        found = (settings.MARK, TINT, EXTRA, KIND, version("anyascii"))
        return {**super().get_context(request, *args, **kwargs), "found": found}
"""
PAGE = """{% extends "base.html" %}
{% block content %}
<main>template 0; {{ page.told }}; {{ found|join:"; " }}</main>
{% endblock %}
"""
FILES = {
    "home/models.py": MODELS,
    "home/templates/home/home_page.html": PAGE,
    "home/tint.py": 'TINT = "tint of home"\n',
    "home/extra.py": 'EXTRA = "extra"\n',
    "home/kind/__init__.py": 'KIND = "package"\n',
}
# Every fourth request is for the page, which costs Wagtail some 30 ms. This machine also runs the load, and builds:
# with more requests there would be more than it can answer, deploy or no deploy.
RATE = 20
PATHS = ("/", *["/django-admin"] * 3)
OLD_DEPENDENCY, NEW_DEPENDENCY = "0.3.2", "0.3.3"
FIRST = ("template 0", "model 0", "setting 0", "tint of home", "extra", "package", OLD_DEPENDENCY)
MIGRATION = """
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("home", "0002_create_homepage")]
    operations = [
        migrations.AddField("homepage", "motto", models.CharField(default="motto of the database", max_length=99)),
    ]
"""
ABOUT = """
from django.http import HttpResponse


def about(request):
    return HttpResponse("about us")
"""
TAG = """
from django import template

register = template.Library()


@register.simple_tag
def shout(text):
    return text.upper() + "!"
"""


class Project(Site):
    """A site whose files somebody else made; lightship.yml lies in its repository, as init leaves it."""

    def __post_init__(self) -> None:
        self.port = self.engine.free_port()
        self.name = self.engine.name("wagtail")
        self.root = self.folder / "srv"
        self.repository = Repository(self.folder / "git")
        start_project(self.repository.tree)
        self.top = self.folder
        self.folder = self.repository.tree

    def edit(self, name: str, *changes: tuple[str, str]) -> None:
        """Replace texts of a file, each of which has to be there."""
        path = self.folder / name
        text = path.read_text()
        for old, new in changes:
            assert old in text, f"{name} does not hold {old!r}"
            text = text.replace(old, new)
        path.write_text(text)

    def close(self) -> None:
        super().close()
        self.folder = self.top
        super().close()


def make(engine: Engine, folder: Path) -> tuple[Project, dict[str, Any]]:
    """The project with its production settings, and what init said of it; what it told to do is done."""
    site = Project(engine, folder)
    with (site.folder / "mysite/settings/production.py").open("a") as production:
        production.write(PRODUCTION)
    with (site.folder / "requirements.txt").open("a") as requirements:
        requirements.write(f"anyascii=={OLD_DEPENDENCY}\n")
    site.repository.commit("A site", FILES)
    told = site.run("init", "--json", "--port", str(site.port), expect=0).result
    todo = "\n".join(told["todo"])
    # "The SQLite file lies among the code": its NAME, and data under `shared`.
    assert 'NAME BASE_DIR / "data" / "db.sqlite3", and add data under `shared`' in todo
    site.edit("mysite/settings/base.py", ('BASE_DIR, "db.sqlite3"', 'BASE_DIR, "data", "db.sqlite3"'))
    assert "add staticfiles under `shared`" in todo
    site.edit("lightship.yml", ("      - media\n", "      - media\n      - data\n      - staticfiles\n"))
    # "Uploads are at /media/, where Django itself does not serve them": the line that it names.
    line = re.search(r"add the line (static-map = \S+) to deploy/uwsgi.ini", todo)
    assert line is not None
    with (site.folder / "deploy/uwsgi.ini").open("a") as ini:
        ini.write(f"{line[1]}\n")
    # What this machine needs.
    site.edit(
        "lightship.yml",
        ("  mysite:\n", f"  {site.name}:\n    root: {site.root}\n    options: [{engine.option}]\n{ASSETS}"),
        ("deploy/Dockerfile\n", f"deploy/Dockerfile\n      args: {{BASE_IMAGE: {engine.base_image}}}\n"),
    )
    assert any("commit the new files and push" in one for one in told["todo"])
    site.repository.commit("What lightship needs")
    return site, told


@dataclass
class Live:
    """The site, and what its page must show now."""

    site: Project
    told: dict[str, Any]
    first: Said
    shown: list[str] = field(default_factory=lambda: list(FIRST))
    visitor: Any = None

    def page(self) -> list[str]:
        """What the page shows."""
        found = re.search(r"<main>(.*?)</main>", self.site.get("/", timeout=30)[1])
        return found[1].split("; ") if found else []

    def held(self) -> None:
        """Each worker shows the page as it must be now, and the uploads are there."""
        assert [self.page() for _ in range(8)] == [self.shown] * 8
        assert self.fetch("/documents/1/terms.txt") == b"the terms"
        assert self.fetch("/media/documents/terms.txt") == b"the terms"

    def fetch(self, path: str) -> bytes:
        """A file."""
        with urllib.request.urlopen(self.site.url + path, timeout=30) as answer:
            found: bytes = answer.read()
        return found

    def python(self, code: str) -> str:
        """The output of Python code within the site."""
        command = ("exec", "--", "python", "-c", f"import django; django.setup()\n{code}")
        return self.site.run(*command, expect=0).stdout.strip()

    def upload(self, title: str, content: bytes) -> None:
        """As an editor does it: log in, then send the form for documents."""
        if self.visitor is None:
            self.visitor = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
            self.post("/admin/login/", {"username": "ada", "password": "a long enough one"})
        self.post("/admin/documents/add/", {"title": title, "collection": "1"}, (f"{title}.txt", content))

    def post(self, path: str, fields: dict[str, str], file: tuple[str, bytes] | None = None) -> str:
        """Send a form, with the token of its page."""
        with self.visitor.open(self.site.url + path, timeout=30) as answer:
            found = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', answer.read().decode())
        assert found is not None
        fields = {**fields, "csrfmiddlewaretoken": found[1]}
        head = '--x\r\nContent-Disposition: form-data; name="{}"'
        parts = [f"{head.format(name)}\r\n\r\n{value}\r\n".encode() for name, value in fields.items()]
        if file:
            more = f'; filename="{file[0]}"\r\nContent-Type: text/plain\r\n\r\n'
            parts.append(f"{head.format('file')}{more}".encode() + file[1] + b"\r\n")
        request = urllib.request.Request(
            self.site.url + path,
            data=b"".join(parts) + b"--x--\r\n",
            headers={"Content-Type": "multipart/form-data; boundary=x", "Referer": self.site.url + path},
        )
        with self.visitor.open(request, timeout=60) as answer:
            assert urllib.parse.urlsplit(answer.url).path != path, "the form was sent back"
            return str(answer.read().decode())


@pytest.fixture(scope="module")
def live(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The site after its first deploy."""
    site, told = make(engine, tmp_path_factory.mktemp("wagtail"))
    try:
        first = site.deploy(timeout=280)
        yield Live(site, told, first)
    finally:
        site.close()


pytestmark = pytest.mark.timeout(400)


def test_init_finds_what_there_is(live: Live) -> None:
    assert set(live.told["written"]) >= {
        "lightship.yml",
        "deploy/Dockerfile",
        "deploy/supervisord.conf",
        "deploy/uwsgi.ini",
    }
    found = "\n".join(live.told["found"] + live.told["assumed"])
    for text in ("mysite.settings.production", "uploads in media/", "a database: sqlite3", "SECRET_KEY is a secret"):
        assert text in found
    # Its Dockerfile is Wagtail's own, and stays.
    assert "gunicorn" in (live.site.folder / "Dockerfile").read_text()
    assert live.site.run("config", "check").status == 0


def test_the_first_deploy_migrates_collects_and_serves(live: Live) -> None:
    assert live.first.result["kind"] == "full"
    steps = [step["name"] for step in live.first.result["servers"][0]["steps"]]
    assert {"build", "migrate", "check collectstatic", "try", "flip"} <= set(steps)
    status, body, release = live.site.get("/")
    assert (status, release) == (200, live.site.repository.head)
    assert live.page() == live.shown
    (style,) = re.findall(r'href="(/static/css/mysite\.[0-9a-f]+\.css)"', body)
    assert live.fetch(style) == (live.site.folder / "mysite/static/css/mysite.css").read_bytes()
    assert "Sign in" in live.fetch("/admin/login/").decode()
    assert live.site.get("/no/such/page/")[0] == 404


def test_an_editor_uploads(live: Live) -> None:
    live.python(
        "from django.contrib.auth import get_user_model\n"
        "get_user_model().objects.create_superuser('ada', 'ada@example.org', 'a long enough one')"
    )
    live.upload("terms", b"the terms")
    assert (live.site.home / "shared/media/documents/terms.txt").read_bytes() == b"the terms"
    live.held()


@dataclass(frozen=True)
class Step:
    """One change: what is edited, and what the page shows in which place after it."""

    edit: Callable[[Project], None]
    place: int
    shown: str
    check: Callable[[Live], None] = lambda live: None


def gone(module: str) -> Callable[[Live], None]:
    """The module cannot be imported in the release that is live."""

    def check(live: Live) -> None:
        said = live.site.run("exec", "--", "python", "-c", f"import {module}")
        assert said.status == 1
        assert "ModuleNotFoundError" in said.stderr
        pattern = f"./{module.replace('.', '/')}*"
        assert live.site.run("exec", "--", "find", ".", "-path", pattern, expect=0).stdout == ""

    return check


def move_tint(site: Project) -> None:
    site.edit("home/models.py", ("from home.tint", "from search.tint"))
    (site.folder / "home/tint.py").unlink()
    (site.folder / "search/tint.py").write_text('TINT = "tint of search"\n')


def delete_extra(site: Project) -> None:
    site.edit("home/models.py", ("from home.extra import EXTRA", 'EXTRA = "nothing extra"'))
    (site.folder / "home/extra.py").unlink()


def new_tag(site: Project) -> None:
    site.repository.write({"home/templatetags/__init__.py": "", "home/templatetags/shouting.py": TAG})
    page = "home/templates/home/home_page.html"
    site.edit(
        page, ("{% block content %}", "{% load shouting %}{% block content %}"), ("template 1", "{% shout 'tag' %}")
    )


def new_urls(site: Project) -> None:
    site.repository.write({"home/about.py": ABOUT})
    site.edit(
        "mysite/urls.py",
        ("from search import views", "from home.about import about\nfrom search import views"),
        ('path("search/", search_views.search, name="search")', 'path("about/", about)'),
    )
    site.edit("home/models.py", ("model 2", "model 8"))


def check_urls(live: Live) -> None:
    assert live.fetch("/about/") == b"about us"
    assert live.site.get("/search/")[0] == 404


def package_to_module(site: Project) -> None:
    (site.folder / "home/kind/__init__.py").unlink()
    (site.folder / "home/kind").rmdir()
    (site.folder / "home/kind.py").write_text('KIND = "module"\n')


def add_field(site: Project) -> None:
    site.repository.write({"home/migrations/0003_motto.py": MIGRATION})
    field = 'motto = models.CharField(default="motto of the database", max_length=99)\n\n    def told'
    site.edit("home/models.py", ("def told", field), ('"model 8"', "self.motto"))


def check_static(live: Live) -> None:
    (style,) = re.findall(r'href="(/static/css/mysite\.[0-9a-f]+\.css)"', live.site.get("/")[1])
    assert live.fetch(style) == b"main { color: teal }\n"
    # A page that was loaded before the deploy finds its style sheet after it.
    folder = live.site.home / "shared/staticfiles"
    styles = [f"/static/css/{path.name}" for path in (folder / "css").glob("mysite.*.css")]
    assert len(styles) > 1
    assert len({live.fetch(one) for one in styles}) == len(styles)
    record = json.loads((folder / ".lightship-assets.json").read_text())
    assert {f"css/{one.rpartition('/')[2]}" for one in styles} <= set(record["seen"])


STEPS = {
    "a template": Step(
        lambda site: site.edit("home/templates/home/home_page.html", ("template 0", "template 1")), 0, "template 1"
    ),
    "a model's method": Step(lambda site: site.edit("home/models.py", ("model 0", "model 2")), 1, "model 2"),
    "settings": Step(
        lambda site: site.edit("mysite/settings/production.py", ("setting 0", "setting 3")), 2, "setting 3"
    ),
    "a moved module": Step(move_tint, 3, "tint of search", gone("home.tint")),
    "a deleted module": Step(delete_extra, 4, "nothing extra", gone("home.extra")),
    "a static file": Step(
        lambda site: site.repository.write({"mysite/static/css/mysite.css": "main { color: teal }\n"}),
        0,
        "template 1",
        check_static,
    ),
    "a template tag": Step(new_tag, 0, "TAG!"),
    "urls": Step(new_urls, 1, "model 8", check_urls),
    "a package that becomes a module": Step(package_to_module, 5, "module", gone("home.kind.__init__")),
    "a field with its migration": Step(add_field, 1, "motto of the database"),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_code_deploy_of(live: Live, name: str) -> None:
    step, site = STEPS[name], live.site
    container, old = site.container(), site.current
    step.edit(site)
    commit = site.repository.commit(f"Change {name}")
    before = "; ".join(live.shown)
    live.shown[step.place] = step.shown
    with site.load(rate=RATE, capture="<main>(.*?)</main>", paths=PATHS, timeout=60) as load:
        assert load.wait_count(20)
        said = site.deploy()
        done = time.monotonic()
        assert load.wait_sent(done, 20)
    report = load.report
    print(report.worst, [(step["name"], step["seconds"]) for step in said.result["servers"][0]["steps"]])
    assert not report.failed, report.errors
    assert said.result["kind"] == "code"
    assert site.container() == container
    assert {record.release for record in report.window(done, done + 60).records} == {commit}
    # Every page is wholly the old or wholly the new one.
    assert {(record.release, record.mark) for record in report.records if record.path == "/"} == {
        (old, before),
        (commit, "; ".join(live.shown)),
    }
    live.held()
    step.check(live)


def test_migrations_run_only_when_a_deploy_brings_some(live: Live) -> None:
    said = live.site.run("plan", "--kind", "code", "--json", expect=0)
    assert "migrate" not in [step["name"] for step in said.result["plans"][0][1]["steps"]]
    assert "[X] 0003_motto" in live.site.run("exec", "--", "python", "manage.py", "showmigrations", "home").stdout


def test_a_dependency_bump_is_a_container_deploy_and_says_what_it_costs(live: Live) -> None:
    site, container = live.site, live.site.container()
    site.edit("requirements.txt", (OLD_DEPENDENCY, NEW_DEPENDENCY))
    commit = site.repository.commit("A newer dependency")
    plan = site.run("plan", expect=0).stdout
    assert "container deploy: requirements.txt changed" in plan
    assert "the site does not answer" in plan
    with site.load(rate=RATE, paths=PATHS, timeout=60) as load:
        assert load.wait_count(20)
        said = site.deploy(timeout=280)
        done = time.monotonic()
        assert load.wait_sent(done, 20)
    report = load.report
    assert said.result["kind"] == "container"
    # The gap without a proxy: from the old container's stop until the new one serves. Around it nothing fails.
    flip = next(step["seconds"] for step in said.result["servers"][0]["steps"] if step["name"] == "flip")
    failed = [record.due for record in report.failed]
    assert max(failed, default=0) - min(failed, default=0) < flip + 20
    assert not report.window(done, done + 60).failed
    assert {record.release for record in report.window(done, done + 60).records} == {commit}
    assert site.containers() == [site.container()] != [container]
    live.shown[6] = NEW_DEPENDENCY
    live.held()


def test_a_rollback_across_it_needs_no_git_no_registry_and_no_build(live: Live) -> None:
    site = live.site
    log = site.top / "docker.log"
    program = site.top / "shim" / "docker"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$1" >> {log}\nexec /usr/bin/env PATH="$REAL_PATH" docker "$@"\n')
    program.chmod(0o755)
    site.environment |= {"REAL_PATH": os.environ["PATH"], "PATH": f"{program.parent}:{os.environ['PATH']}"}
    site.repository.remote.rename(site.repository.remote.with_suffix(".away"))
    live.upload("later", b"uploaded with the newer dependency")
    said = site.run("rollback", "--json", expect=0)
    assert said.result["kind"] == "container"
    asked = set(log.read_text().split())
    assert "create" in asked
    assert not asked & {"build", "pull", "push"}
    live.shown[6] = OLD_DEPENDENCY
    live.held()
    assert live.fetch("/documents/2/later.txt") == b"uploaded with the newer dependency"
    assert json.loads(site.run("status", "--json", expect=0).stdout)["ok"]
