"""``lightship init``: writes the files that a project needs to be deployed, and says what it found and assumed.

:func:`plan_init` is pure: facts in, files and remarks out. Nothing that is there is ever overwritten.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from pathlib import Path
from typing import Literal, TypeAlias

from lightship.config import rules
from lightship.config.rules import RuleError
from lightship.errors import RefusedError, UsageError
from lightship.operations.dockerfile import render_dockerfile, template
from lightship.operations.project import GitFacts, ProjectFacts, find_project
from lightship.operations.settings_reader import UNKNOWN, EnvLookup, Settings, TreePath
from lightship_agent.records import dataclass, field

__all__ = ["InitFile", "InitPlan", "InitResult", "find_project", "init_project", "plan_init", "write_init"]

Reload: TypeAlias = Literal["swap", "touch", "chain"]

_SHARED = "/srv/lightship/shared"
SECRET_FILE = ".lightship/secret-key"  # noqa: S105 - a path
_WRAPPER = "lightship_wsgi.py"
_WRITTEN = (
    "lightship.yml",
    "Dockerfile",
    ".dockerignore",
    "deploy/Dockerfile",
    "deploy/Dockerfile.dockerignore",
    "deploy/supervisord.conf",
    "deploy/uwsgi.ini",
    "requirements.txt",
    SECRET_FILE,
    ".lightship/.gitignore",
    _WRAPPER,
)


@dataclass(frozen=True)
class InitFile:
    """One file of the plan. ``text`` is None for a secret: its value is made when it is written."""

    path: str
    text: str | None
    there: bool = False
    mode: int = 0o644


@dataclass(frozen=True)
class InitPlan:
    """What init will write, and what it has to say."""

    directory: str
    service: str
    files: tuple[InitFile, ...]
    found: tuple[str, ...]
    assumed: tuple[str, ...]
    todo: tuple[str, ...]
    """What the user must still do."""


@dataclass(frozen=True)
class InitResult:
    """What init did."""

    directory: str
    service: str
    written: tuple[str, ...]
    kept: tuple[str, ...]
    found: tuple[str, ...]
    assumed: tuple[str, ...]
    todo: tuple[str, ...]
    dry_run: bool = False


@dataclass
class _Notes:
    found: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    todo: list[str] = field(default_factory=list)


def init_project(
    path: Path, *, app: str = "", reload: Reload = "swap", port: int = 8000, dry_run: bool = False
) -> InitResult:
    """Look at ``path``, plan, and unless ``dry_run`` write."""
    if app:
        try:
            rules.APP(app)
        except RuleError as error:
            raise UsageError(f"--app {error}", hint="For example: --app shop:app") from error
    plan = plan_init(find_project(path, app, _WRITTEN), reload=reload, port=port)
    written = tuple(f.path for f in plan.files if not f.there) if dry_run else write_init(plan)
    kept = tuple(f.path for f in plan.files if f.path not in written)
    return InitResult(plan.directory, plan.service, written, kept, plan.found, plan.assumed, plan.todo, dry_run=dry_run)


def plan_init(project: ProjectFacts, *, reload: Reload = "swap", port: int = 8000) -> InitPlan:
    """The files and remarks for a project."""
    notes = _Notes()
    settings = _settings(project, notes)
    service = _service_name(project)
    app, wrapper = _application(project, notes)
    beside = "Dockerfile" in project.existing and not project.own_dockerfile
    if beside:
        notes.assumed.append("the Dockerfile is not one of lightship's: it is kept, and deploy/Dockerfile is used")
    docker = render_dockerfile(project, service)
    notes.found += docker.found
    notes.assumed += docker.assumed
    notes.todo += docker.todo
    static = _static(project, settings, notes)
    yml, has_secret = _lightship_yml(project, settings, service, app, docker.infra, beside, reload, port, notes)
    folder = "deploy/" if beside else ""
    texts: dict[str, str | None] = {
        "lightship.yml": yml,
        f"{folder}Dockerfile": docker.text,
        "deploy/Dockerfile.dockerignore" if beside else ".dockerignore": docker.ignore,
        "deploy/supervisord.conf": template(f"deploy/supervisord.{'swap' if reload == 'swap' else 'single'}.conf"),
        "deploy/uwsgi.ini": _uwsgi(service, reload, static),
    }
    if docker.requirements:
        texts["requirements.txt"] = docker.requirements
    if wrapper:
        texts[_WRAPPER] = wrapper
    if has_secret and "lightship.yml" not in project.existing:
        texts |= {".lightship/.gitignore": "*\n", SECRET_FILE: None}
    files = tuple(
        InitFile(path, text, path in project.existing, 0o600 if text is None else 0o644) for path, text in texts.items()
    )
    notes.todo += _last_steps(project, files)
    return InitPlan(
        project.directory, service, files, *(tuple(dict.fromkeys(n)) for n in (notes.found, notes.assumed, notes.todo))
    )


def write_init(plan: InitPlan) -> tuple[str, ...]:
    """Write what is not there; returns the paths that were written. Follows no link, and overwrites nothing."""
    written: list[str] = []
    for file in plan.files:
        if file.there:
            continue
        text = secrets.token_urlsafe(50) + "\n" if file.text is None else file.text
        try:
            made = _create(Path(plan.directory), file.path, text.encode(), file.mode)
        except OSError as error:
            raise RefusedError(
                f"{file.path} cannot be written: {error.strerror}",
                hint="What was written before it stays: " + (", ".join(written) or "nothing"),
                code="init-write",
            ) from error
        if made:
            written.append(file.path)
    return tuple(written)


def _create(top: Path, path: str, data: bytes, mode: int) -> bool:
    """Make a new file; False when something is there. Its directory may not be a link out of the project."""
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    folder, _, name = path.rpartition("/")
    fd = os.open(top, os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if folder:
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, 0o755, dir_fd=fd)
            inner = os.open(folder, flags, dir_fd=fd)
            os.close(fd)
            fd = inner
        try:
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=fd)
        except FileExistsError:
            return False
        with os.fdopen(file, "wb") as out:
            out.write(data)
        return True
    finally:
        os.close(fd)


# --- what the project says -------------------------------------------------------------------------------------------

_GENERIC = ("config", "core", "project", "app", "src", "settings", "django", "wsgi", "main", "backend")


def _service_name(project: ProjectFacts) -> str:
    """The Django project's name, unless it says nothing; then the repository's, then the directory's."""
    remote = project.git.remote.rstrip("/").removesuffix(".git")
    django = project.settings_module.split(".")[0]
    names = [
        django if django not in _GENERIC else "",
        re.split(r"[/:]", remote)[-1],
        Path(project.directory).name,
        "app",
    ]
    for name in names:
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-")
        with contextlib.suppress(RuleError):
            return rules.SERVICE(slug)
    return "app"


def _settings(project: ProjectFacts, notes: _Notes) -> Settings | None:
    """The settings the service will run with: production's, if they are complete."""
    if not project.django:
        return None
    if project.settings_module:
        notes.found.append(f"a Django project with the settings {project.settings_module}")
    else:
        notes.found.append("a Django project")
        notes.todo.append("the settings module was not found: set DJANGO_SETTINGS_MODULE under env in lightship.yml")
    if _production_is_complete(project):
        notes.assumed.append(f"{project.production_settings} is what the service runs with (DJANGO_SETTINGS_MODULE)")
        return project.production
    if project.production_settings:
        notes.assumed.append(
            f"{project.settings_module}, which wsgi.py names, is what the service runs with; "
            f"{project.production_settings} is not used, since it sets no SECRET_KEY or no ALLOWED_HOSTS"
        )
    return project.settings


def _production_is_complete(project: ProjectFacts) -> bool:
    production = project.production
    return production is not None and bool(production.get("SECRET_KEY")) and bool(production.get("ALLOWED_HOSTS"))


def _application(project: ProjectFacts, notes: _Notes) -> tuple[str, str]:
    """The key ``app``, and the text of a module to write when Django's own cannot be imported from the top."""
    if not project.django:
        if not project.app:
            raise RefusedError(
                "no Django project (manage.py) and no WSGI application was found here",
                hint="Name the application: lightship init --app module:callable",
                code="init-nothing-found",
            )
        notes.found.append(f"the WSGI application {project.app}")
        return project.app, ""
    module = project.wsgi_module
    if not module:
        raise RefusedError(
            "a Django project (manage.py), but no wsgi.py was found",
            hint="Name the application: lightship init --app module:callable",
            code="init-no-wsgi",
        )
    notes.found.append(f"the WSGI application {module}:application")
    if not project.manage_folder:
        return f"{module}:application", ""
    notes.found.append(f"manage.py in {project.manage_folder}/")
    notes.assumed.append(f"{_WRAPPER} is the application: it makes {project.manage_folder}/ importable")
    text = (
        '"""The WSGI application, for servers that start at the top of the repository."""\n\n'
        "import sys\nfrom pathlib import Path\n\n"
        f'sys.path.insert(0, str(Path(__file__).resolve().parent / "{project.manage_folder}"))\n\n'
        f"from {module} import application  # noqa: E402, F401\n"
    )
    return f"{_WRAPPER.removesuffix('.py')}:application", text


def _repository(git: GitFacts, directory: str, notes: _Notes) -> tuple[str, str]:
    from lightship.config.repository import Repository  # noqa: PLC0415 - most commands do not need it

    address = re.sub(r"^(https?://)[^/@]*@", r"\1", git.remote)
    if address != git.remote:
        notes.todo.append("the git remote's address holds credentials, which were left out of lightship.yml")
    branch = git.branch or "main"
    try:
        rules.BRANCH(branch)
    except RuleError:
        notes.todo.append("the current branch's name cannot be used: set `branch` in lightship.yml")
        branch = "main"
    try:
        shown = str(Repository(address))
        notes.found.append(f"the git remote {shown}, branch {branch}")
        return address, branch
    except RuleError:
        here = git.top or directory
        notes.assumed.append(
            f"the code is fetched from {here} on this machine, since there is no git remote a server can use"
        )
    try:
        Repository(here)
    except RuleError:
        notes.todo.append("set `repository` in lightship.yml to the address of your git repository")
        return "/srv/git/change-me.git", branch
    return here, branch


def _health(project: ProjectFacts, settings: Settings | None, notes: _Notes) -> tuple[str, str]:
    known = ("health", "healthz", "health-check", "healthcheck", "ping", "livez", "up", "status")
    route = next((r for name in known for r in project.routes if r.strip("/") == name), "")
    path = "/" + route.lstrip("/")
    if route:
        notes.found.append(f"the health path {path}")
    else:
        notes.assumed.append("/ answers 200 to 399 when the service is well (key health)")
    return path, _health_host(settings, notes)


def _health_host(settings: Settings | None, notes: _Notes) -> str:
    hosts = settings.get("ALLOWED_HOSTS") if settings else None
    if isinstance(hosts, EnvLookup):
        hosts = tuple((hosts.default or "localhost").split(","))
    names = [host.strip() for host in hosts if isinstance(host, str)] if isinstance(hosts, tuple) else []
    if not settings or "*" in names or "localhost" in names or not names:
        if settings and hosts == () and settings.get("DEBUG") is False:
            notes.todo.append("ALLOWED_HOSTS is empty and DEBUG is off, so Django refuses every request: fill it in")
        return "localhost"
    host = names[0].lstrip(".")
    try:
        return rules.HEALTH_HOST(host)
    except RuleError:
        notes.todo.append("ALLOWED_HOSTS was not understood: set health.host in lightship.yml to a host it allows")
        return "localhost"


# --- lightship.yml ---------------------------------------------------------------------------------------------------

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./@-]*(?::[A-Za-z0-9_./@-]+)*", re.ASCII)
_WORDS = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")


def scalar(text: str) -> str:
    """A text as YAML reads it back: as it is where that is safe, quoted elsewhere."""
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return json.dumps(text)


def _lightship_yml(
    project: ProjectFacts,
    settings: Settings | None,
    service: str,
    app: str,
    infra: tuple[str, ...],
    beside: bool,
    reload: Reload,
    port: int,
    notes: _Notes,
) -> tuple[str, bool]:
    repository, branch = _repository(project.git, project.directory, notes)
    path, host = _health(project, settings, notes)
    env, secret_names = _environment(project, settings, notes)
    shared = _shared(settings, notes)
    notes.assumed.append(f"the service is called {service} and answers on port {port} of the server")
    text = template(
        "lightship.yml",
        service=service,
        repository=scalar(repository),
        branch=scalar(branch),
        app=scalar(app),
        dockerfile="deploy/Dockerfile" if beside else "Dockerfile",
        infra=_block("infra", [f"- {scalar(glob)}" for glob in infra], "The files that make the image."),
        port=str(port),
        env=_block("env", [f"{name}: {json.dumps(value)}" for name, value in env.items()]),
        secrets=_block(
            "secrets",
            [f"{name}: {{file: {SECRET_FILE}}}" for name in secret_names],
            "Values that nobody sees: each from a file, an environment variable or a command of who deploys.",
        ),
        shared=_block("shared", [f"- {scalar(one)}" for one in shared], "What outlives releases, such as uploads."),
        checks=_block("checks", _checks(project, settings), "Run with the new code; what is not required only warns."),
        migrate=_block("migrate", _migrations(project, settings), "Run once, when the commits bring new ones."),
        roles=_roles(project),
        health_path=scalar(path),
        health_host=scalar(host),
        reload=reload,
    )
    return text, bool(secret_names)


def _block(key: str, lines: list[str], comment: str = "") -> str:
    if not lines:
        return ""
    above = f"    # {comment}\n" if comment else ""
    return f"{above}    {key}:\n" + "".join(f"      {line}\n" for line in lines)


def _manage_command(project: ProjectFacts, *words: str) -> str:
    """A command of Django's, as a list of YAML."""
    manage = f"{project.manage_folder}/manage.py" if project.manage_folder else "manage.py"
    return f"[{', '.join(['python', scalar(manage), *words])}]"


def _checks(project: ProjectFacts, settings: Settings | None) -> list[str]:
    """The static files, and Django's own advice for a site that others can reach."""
    if not project.django:
        return []
    # Before the first page is asked for: with a manifest of static files, Django answers 500 for one that it lacks.
    collect = [
        "- name: collectstatic",
        f"  command: {_manage_command(project, 'collectstatic', '--noinput')}",
    ]
    return [
        *(collect if _static_root(project, settings) else []),
        "- name: django",
        f"  command: {_manage_command(project, 'check', '--deploy')}",
        "  required: false",
    ]


def _migrations(project: ProjectFacts, settings: Settings | None) -> list[str]:
    """How Django brings its database forward, if there is one."""
    databases = settings.get("DATABASES") if settings else None
    if not project.django or not isinstance(databases, dict) or not databases:
        # Django's migrate fails where there is no database, and whether there is one may hang on the environment.
        return []
    return [
        f"command: {_manage_command(project, 'migrate', '--noinput')}",
        f"state: {_manage_command(project, 'showmigrations')}",
    ]


def _roles(project: ProjectFacts) -> str:
    """Celery's worker and beat, in comments: whether there is a broker to reach is not known."""
    if not project.celery:
        return ""
    app = project.settings_module.split(".")[0] or project.app.partition(":")[0].split(".")[0] or "app"
    app = app if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", app) else "app"
    return (
        "    # Celery, restarted on each new release after the web workers; jobs in flight have `patience` seconds.\n"
        "    # roles:\n"
        f"    #   worker: {{command: [celery, -A, {app}, worker, --loglevel=info], patience: 60}}\n"
        f"    #   beat: {{command: [celery, -A, {app}, beat, -s, /tmp/celerybeat-schedule], once: true}}\n"
    )


def _environment(
    project: ProjectFacts, settings: Settings | None, notes: _Notes
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Variables, and the names of those that are secret."""
    env: dict[str, str] = {}
    if settings is None:
        return env, ()
    if settings is project.production:
        env["DJANGO_SETTINGS_MODULE"] = project.production_settings
    if settings.get("DEBUG") is True:
        notes.todo.append("DEBUG is on in these settings: turn it off before others can reach the site")
    key, hosts = settings.get("SECRET_KEY"), settings.get("ALLOWED_HOSTS")
    secret_names = (key.name,) if isinstance(key, EnvLookup) else ()
    if secret_names:
        notes.assumed.append(f"{secret_names[0]} is a secret; a random value is kept in {SECRET_FILE}, out of git")
    elif isinstance(key, str):
        notes.todo.append("SECRET_KEY stands in the settings: read it from the environment (key `secrets`)")
    if isinstance(hosts, EnvLookup) and not (hosts.default or "").strip():
        env[hosts.name] = "localhost,127.0.0.1"
        notes.todo.append(f"add the site's host name to {hosts.name} in lightship.yml")
    for lookup in settings.environment:
        if lookup.required and lookup.name not in env and lookup.name not in secret_names:
            notes.todo.append(f"the settings need the environment variable {lookup.name}: add it under env or secrets")
    return {name: value for name, value in env.items() if not name.startswith("LIGHTSHIP_")}, secret_names


def _shared(settings: Settings | None, notes: _Notes) -> tuple[str, ...]:
    """Paths of the project that outlive releases."""
    if settings is None:
        return ()
    found: list[str] = []
    media = settings.get("MEDIA_ROOT")
    if isinstance(media, TreePath) and media.path:
        with contextlib.suppress(RuleError):
            found.append(rules.RELATIVE_PATH(media.path))
            notes.found.append(f"uploads in {media.path}/ (MEDIA_ROOT): they are kept in the shared volume")
            notes.todo += _who_serves(settings, media.path)
    elif isinstance(media, str) and media.startswith(f"{_SHARED}/"):
        notes.todo.append(
            f"add {media.removeprefix(_SHARED + '/')} under `shared` in lightship.yml, so that it is made"
        )
    elif isinstance(media, str) and media:
        notes.todo.append(f'MEDIA_ROOT is {media}: make it BASE_DIR / "media", or mount it (key `volumes`)')
    _database(settings, notes)
    return tuple(found)


def _who_serves(settings: Settings, media: str) -> list[str]:
    """Django serves uploads only while it debugs. Nobody is made to serve them unasked: some are not for everybody."""
    url = settings.get("MEDIA_URL")
    if settings.get("DEBUG") is True or not isinstance(url, str) or not re.fullmatch(r"/?[A-Za-z0-9_/-]+", url):
        return []
    path = "/" + url.strip("/")
    return [
        f"uploads are at {path}/, where Django itself does not serve them: let the proxy in front do it, or add the "
        f"line static-map = {path}={_SHARED}/{media} to deploy/uwsgi.ini"
    ]


def _database(settings: Settings, notes: _Notes) -> None:
    databases = settings.get("DATABASES")
    if databases is UNKNOWN:
        notes.todo.append("if the service has a database, let a deploy migrate it (docs/how-to/migrations.md)")
    default = databases.get("default") if isinstance(databases, dict) else None
    engine = default.get("ENGINE") if isinstance(default, dict) else None
    if not isinstance(default, dict) or not isinstance(engine, str):
        return
    kind = engine.rpartition(".")[2]
    notes.found.append(f"a database: {kind}")
    if "sqlite" in kind:
        if isinstance(default.get("NAME"), TreePath):
            notes.todo.append(
                "the SQLite file lies among the code, which a release replaces and nobody can write to: "
                'make its NAME BASE_DIR / "data" / "db.sqlite3", and add data under `shared` in lightship.yml'
            )
    else:
        notes.todo.append(f"the container must reach the {kind} server: localhost in it is the container itself")
    notes.assumed.append("a deploy runs the migrations when it brings new ones, while the old release still serves")


def _static_root(project: ProjectFacts, settings: Settings | None) -> str:
    """Where collectstatic is to put static files for uWSGI to serve them: a place in the shared volume, or empty."""
    root = settings.get("STATIC_ROOT") if settings else None
    if not isinstance(root, str) or ".." in root or "whitenoise" in project.requirements.names:
        return ""
    return root if re.fullmatch(r"/srv/lightship/shared(?:/[A-Za-z0-9_.-]+)+", root) else ""


def _static(project: ProjectFacts, settings: Settings | None, notes: _Notes) -> str:
    """Lines for uwsgi.ini that serve static files, if their place is known."""
    apps = settings.get("INSTALLED_APPS") if settings else ()
    if settings is None or (
        isinstance(apps, tuple) and not any(one in apps for one in ("django.contrib.staticfiles", UNKNOWN))
    ):
        return ""
    if "whitenoise" in project.requirements.names:
        notes.assumed.append("WhiteNoise serves static files; a read-only release needs WHITENOISE_USE_FINDERS = True")
        return ""
    root, url = _static_root(project, settings), settings.get("STATIC_URL")
    if root:
        path = "/" + (url if isinstance(url, str) and re.fullmatch(r"/?[A-Za-z0-9_/-]+", url) else "static").strip("/")
        notes.assumed.append(f"uWSGI serves {path} from {root}; each deploy fills it (collectstatic)")
        # Not added by itself: a directory of that name among the code would be replaced by the link.
        notes.todo.append(f"add {root.removeprefix(_SHARED + '/')} under `shared` in lightship.yml, so that it is made")
        return (
            f"\n; Static files, as the check collectstatic in lightship.yml leaves them.\nstatic-map = {path}={root}\n"
        )
    if settings.get("DEBUG") is not True:
        notes.todo.append(
            "nothing serves static files: install WhiteNoise (with WHITENOISE_USE_FINDERS), or set "
            "STATIC_ROOT = '/srv/lightship/shared/staticfiles' and run init again without deploy/uwsgi.ini"
        )
    return ""


# --- the other files -------------------------------------------------------------------------------------------------

_LISTENING = {
    "swap": """\
; No socket here: Supervisor hands over the listening one as descriptor 0, and this is what is spoken on it. HTTP/1.1
; without keep-alive: put a proxy (nginx, Caddy, a load balancer) in front.
protocol = http
""",
    "touch": """\
; HTTP/1.1 without keep-alive: put a proxy (nginx, Caddy, a load balancer) in front. A reload keeps this socket open,
; and connections wait in its queue meanwhile. uWSGI refuses to start if the queue is longer than net.core.somaxconn of
; the container (4096, or 128 before Linux 5.4).
http-socket = 0.0.0.0:8000
listen = 1024
""",
}
_RELOADING = {
    "swap": "",
    "touch": """
; The touch that lightship gives after it swapped `current`. It must be an absolute path.
touch-reload = /srv/lightship/code/reload
; How long requests in flight may take at a reload.
worker-reload-mercy = 60
""",
    "chain": """
; The touch that lightship gives after it swapped `current`: workers are replaced one after the other. Each must load
; the application itself (lazy-apps), or it would be the old one again. It must be an absolute path.
lazy-apps = true
touch-chain-reload = /srv/lightship/code/reload
; How long requests in flight may take at a reload.
worker-reload-mercy = 60
""",
}
_RELOAD_WORDS = {
    "swap": "Two of them take turns: while one serves, the other boots the next release.",
    "touch": "It reloads as a whole when lightship touches a file (`reload: touch`).",
    "chain": "It replaces its workers one by one when lightship touches a file (`reload: chain`).",
}


def _uwsgi(service: str, reload: Reload, static: str) -> str:
    return template(
        "deploy/uwsgi.ini",
        service=service,
        reload_words=_RELOAD_WORDS[reload],
        listening=_LISTENING["swap" if reload == "swap" else "touch"],
        loaded_words="in each of them" if reload == "chain" else "once, before they are forked",
        reloading=_RELOADING[reload],
        static=static,
    )


def _last_steps(project: ProjectFacts, files: tuple[InitFile, ...]) -> list[str]:
    steps = []
    top = project.git.top
    if not top:
        steps.append("put the project under git: git init && git add . && git commit")
    elif Path(top) != Path(project.directory):
        steps.append(f"a release is the whole repository: run init at its top ({top}) or give this project its own")
    if project.celery:
        steps.append(
            "Celery was found: to have its workers run beside the site, take the comment signs off `roles` in "
            "lightship.yml"
        )
    for path in project.skipped:
        steps.append(f"{path} was left out: its name cannot be used in a Dockerfile, or it is no regular file")
    if top and any(not file.there and file.text is not None for file in files):
        steps.append("commit the new files and push: servers fetch what is committed")
    return steps
