"""The one description of ``lightship.yml``: validation, the JSON Schema and the reference page come from it."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from lightship.config import defaults, rules
from lightship.config.options import OPTION, flag_of, is_repeatable
from lightship.config.repository import Repository
from lightship.config.rules import ConflictError, RuleError, within
from lightship.model import Server

__all__ = [
    "TAGS",
    "Assets",
    "Check",
    "Health",
    "ImageBuild",
    "Migration",
    "Proxy",
    "Repository",
    "Role",
    "RolloutPolicy",
    "SecretSource",
    "Service",
    "json_schema",
]

TAGS = ("<name>", "<build>", "<address>", "<server>", "<none>", "<proxy>")
"""What Pydantic puts into the path of an error to say which form of ``image`` or of a server was meant."""

_LONGEST_LIST = 100
_MOST_SERVERS = 20_000

Name: TypeAlias = Annotated[str, rules.LABEL]
EnvName: TypeAlias = Annotated[str, rules.ENV_NAME]
EnvValue: TypeAlias = Annotated[str, rules.ENV_VALUE]
Argument: TypeAlias = Annotated[str, rules.ARGUMENT]
RelativePath: TypeAlias = Annotated[str, rules.RELATIVE_PATH]


def _items(**settings: Any) -> Any:
    # A list of the file becomes a tuple here, which strict validation would refuse; its items stay strict.
    return Field(strict=False, max_length=_LONGEST_LIST, **settings)


class _Model(BaseModel):
    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False, validate_default=False
    )


class SecretSource(_Model):
    """Where a secret's value comes from: exactly one of the three."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": [key]} for key in ("file", "env", "command")]},
    )

    file: Annotated[str, rules.LOCAL_FILE] | None = Field(
        None,
        description="A file on the machine that deploys; one newline at its end is dropped.",
        examples=["secrets/database_url"],
    )
    env: EnvName | None = Field(
        None, description="An environment variable of `lightship deploy`.", examples=["SHOP_SECRET_KEY"]
    )
    command: tuple[Argument, ...] | None = _items(
        default=None,
        min_length=1,
        description="A command (a list, no shell) that prints the value within 30 seconds.",
        examples=[["pass", "show", "shop/secret-key"]],
    )

    @model_validator(mode="after")
    def _one(self) -> SecretSource:
        if sum(source is not None for source in (self.file, self.env, self.command)) != 1:
            raise RuleError("must have exactly one of the keys file, env, command")
        return self

    def __str__(self) -> str:
        """The source in words; never the value."""
        if self.file is not None:
            return f"file {self.file}"
        return f"environment variable {self.env}" if self.env is not None else f"command {(self.command or ('',))[0]}"


class ImageBuild(_Model):
    """How the image is built."""

    dockerfile: RelativePath = Field(
        "Dockerfile", description="The Dockerfile, from the top of the repository.", examples=["deploy/Dockerfile"]
    )
    context: Annotated[str, rules.CONTEXT] = Field(
        ".", description="The directory that the build may copy from.", examples=["deploy"]
    )
    args: dict[EnvName, EnvValue] = Field(
        {},
        description="Build arguments (`ARG` in the Dockerfile). They can be read from the image: nothing secret here.",
        examples=[{"PYTHON": "3.12"}],
        max_length=_LONGEST_LIST,
    )
    secrets: dict[EnvName, SecretSource] = Field(
        {},
        description="Secrets of the build, each with the source of its value. The Dockerfile reads one as "
        "`RUN --mount=type=secret,id=NAME`; no layer has it. The server's engine must be able to build with BuildKit.",
        examples=[{"PIP_TOKEN": {"env": "PIP_TOKEN"}}],
        max_length=_LONGEST_LIST,
    )


class Check(_Model):
    """A command that runs with the new code before it goes live."""

    name: Name = Field(description="What the check is called in the output.", examples=["migrations"])
    command: tuple[Argument, ...] = _items(
        min_length=1,
        description="The command as a list (no shell), run in the container in the new release's directory.",
        examples=[["python", "manage.py", "check", "--deploy"]],
    )
    timeout: float = Field(60.0, ge=1, le=3600, description="Seconds the command may take.", examples=[30])
    required: bool = Field(
        True, description="Whether a failure stops the deploy. If not, it is only reported.", examples=[False]
    )


class Migration(_Model):
    """The command that brings the database's schema forward."""

    command: tuple[Argument, ...] = _items(
        min_length=1,
        description="The command as a list (no shell), run once per rollout in the new release's directory, after the "
        "checks and while the old release serves. The old release must bear the new schema.",
        examples=[["python", "manage.py", "migrate", "--noinput"]],
    )
    timeout: float = Field(
        300.0, ge=1, le=86400, description="Seconds the command may take; then it is ended.", examples=[60]
    )
    state: tuple[Argument, ...] = _items(
        default=(),
        description="The command that shows which migrations are applied; asked when the migrations failed.",
        examples=[["python", "manage.py", "showmigrations"]],
    )
    files: tuple[Annotated[str, rules.GLOB], ...] = _items(
        default=("**/migrations/*.py",),
        description="The files that are migrations: new ones are shown in the plan.",
        examples=[["**/alembic/versions/*.py"]],
    )


class Role(_Model):
    """Processes beside the web workers, such as a queue's: exactly one of ``command`` and ``program``."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": [key]} for key in ("command", "program")]})

    command: tuple[Argument, ...] = _items(
        default=(),
        description="The command as a list (no shell), run in the release's directory as the user of the web workers. "
        "It must stay in the foreground.",
        examples=[["celery", "-A", "shop", "worker", "--loglevel=info"]],
    )
    program: Annotated[str, rules.PROGRAM] | None = Field(
        None,
        description="Instead of a command: a program or group that the image's own `supervisord.conf` has, with "
        "`autostart=false`. It must read the code from `/srv/lightship/code/current`.",
        examples=["mailer"],
    )
    processes: int = Field(1, ge=1, le=100, description="How many processes run the command.", examples=[2])
    patience: float = Field(
        60.0,
        ge=0,
        le=86400,
        description="Seconds that a job in flight may take when the role is restarted; then its process is killed. Of "
        "a `program` the image decides (`stopwaitsecs`); give the same number here.",
        examples=[300],
    )
    settle: float = Field(
        3.0,
        ge=0,
        le=300,
        description="Seconds that each process must stay up after its start to count as running.",
        examples=[5],
    )
    signal: Literal["TERM", "INT", "QUIT"] = Field(
        "TERM", description="The signal that asks the command to finish its jobs and end.", examples=["INT"]
    )
    once: bool = Field(
        False,
        description="Whether it runs only on the first server of those that play the role, as Celery's beat must.",
        examples=[True],
    )

    @model_validator(mode="after")
    def _one(self) -> Role:
        if bool(self.command) == (self.program is not None):
            raise RuleError("must have exactly one of the keys command, program")
        if self.program is not None and (self.processes, self.signal) != (1, "TERM"):
            raise RuleError("must not have processes or signal beside program: the image's supervisord.conf has them")
        return self


class Health(_Model):
    """The request that asks whether the service is healthy, and the answer that says so."""

    path: Annotated[str, rules.HEALTH_PATH] = Field(
        "/", description="The path that is asked for.", examples=["/healthz"]
    )
    host: Annotated[str, rules.HEALTH_HOST] = Field(
        "localhost", description="The `Host` header of the request; Django must allow it.", examples=["shop.example"]
    )
    status: tuple[rules.Status, ...] = _items(
        default=("200-399",),
        min_length=1,
        description="The statuses of a healthy answer: numbers, or ranges in quotes.",
        examples=[[200, "301-302"]],
    )
    body: Annotated[str, rules.BODY] | None = Field(
        None, description="Text that the answer must contain. Without it any body will do.", examples=["ok"]
    )
    timeout: float = Field(5.0, gt=0, le=300, description="Seconds until the answer must be there.", examples=[2.5])

    def ranges(self) -> list[tuple[int, int]]:
        """The accepted statuses as inclusive ranges."""
        split = [str(status).partition("-") for status in self.status]
        return [(int(first), int(last or first)) for first, _, last in split]

    def accepts(self, status: int) -> bool:
        """Whether ``status`` is one of a healthy answer."""
        return any(first <= status <= last for first, last in self.ranges())


class RolloutPolicy(_Model):
    """In which order several servers are changed, and what happens when some of them fail."""

    canary: int = Field(
        1,
        ge=0,
        le=10_000,
        description="How many servers go first. Only when they have survived their soak do the others follow; when one "
        "of them fails the rollout ends, whatever `max_failures` says. 0 for none. A server that is alone is none.",
        examples=[2],
    )
    canary_soak: float | None = Field(
        None,
        ge=0,
        le=3600,
        description="Seconds for which the canary is watched (see `soak`). Without it as long as any other server.",
        examples=[60],
    )
    batch: rules.BatchSize = Field(
        "50%",
        description="How many of the other servers are changed together: a number, or a percentage of all servers of "
        "the rollout (rounded down, at least one). In a container deploy so many are out for a few seconds at once.",
        examples=[10, "25%"],
    )
    max_failures: rules.Failures = Field(
        0,
        description="How many servers may fail after the switch before the rollout stops: a number, or a percentage "
        "(rounded down). Those that fail go back by themselves, and the command ends with 5, since servers differ.",
        examples=[1, "5%"],
    )
    on_failure: Literal["revert", "stop"] = Field(
        "revert",
        description="What a rollout that stops does with the servers that it has changed: `revert` takes them back, so "
        "that all run one release again; `stop` leaves them on the new one.",
        examples=["stop"],
    )


class Assets(_Model):
    """Static files that `collectstatic` leaves in the shared volume, each content under a name of its own."""

    directory: RelativePath = Field(
        description="Where they lie below the shared volume (`STATIC_ROOT` without `/srv/lightship/shared/`). It must "
        "be one of the `shared` paths, or lie below one.",
        examples=["staticfiles"],
    )
    days: float = Field(
        7.0,
        ge=0,
        le=365,
        description="For so many days files that only earlier releases had stay served, so that a page loaded before a "
        "deploy finds its scripts. Then the next deploy removes them.",
        examples=[30],
    )


class Proxy(_Model):
    """The proxy that visitors meet: one on each server, shared by all services there."""

    hosts: tuple[Annotated[str, rules.PROXY_HOST], ...] = _items(
        default=(),
        description="The host names of this service. Without any it gets every request that no other service on the "
        "server has a host name for.",
        examples=[["shop.example", "www.shop.example"]],
    )
    port: int = Field(
        8000, ge=1, le=65535, description="The port that the service listens on in its container.", examples=[8080]
    )
    http: int | None = Field(
        80, ge=1, le=65535, description="The server's port for HTTP; `null` for none.", examples=[8080]
    )
    https: int = Field(
        443,
        ge=1,
        le=65535,
        description="The server's port for HTTPS, opened when there are `certificates`.",
        examples=[8443],
    )
    address: Annotated[str, rules.SERVER_ADDRESS] | None = Field(
        None,
        description="Listen on this address of the server alone. Default: all of them.",
        examples=["127.0.0.1", "10.0.0.1"],
    )
    certificates: tuple[Annotated[str, rules.SERVER_FILE], ...] = _items(
        default=(),
        description="Certificates on the server: a file with certificate, chain and key, or a directory with "
        "`fullchain.pem` and `privkey.pem`, as certbot keeps them. `lightship proxy` takes up a renewed one.",
        examples=[["/etc/letsencrypt/live/shop.example"]],
    )
    redirect: bool = Field(
        True, description="With certificates: whether HTTP is led to HTTPS (but for ACME challenges).", examples=[False]
    )
    acme_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="The port of this machine's loopback where an ACME client answers HTTP challenges, such as "
        "`certbot certonly --standalone --http-01-port 8402`.",
        examples=[8402],
    )
    timeout: float = Field(
        120.0, ge=1, le=86400, description="Seconds that the service may take to answer a request.", examples=[300]
    )
    image: Annotated[str, rules.IMAGE] = Field(
        "haproxy:2.6",
        description="The proxy's image: HAProxy 2.6 or later with a user `haproxy`. All services of a server share it.",
        examples=["registry.example/haproxy:2.6"],
    )

    @model_validator(mode="after")
    def _listens(self) -> Proxy:
        if self.http is None and not self.certificates:
            raise RuleError("must have a port: http, or https with certificates")
        if self.certificates and self.http == self.https:
            raise RuleError("must have two ports for http and https")
        return self


def _proxy_form(value: Any) -> str | None:
    if value == "none":
        return TAGS[4]
    return TAGS[5] if isinstance(value, (dict, Proxy)) else None


ProxyForm: TypeAlias = Annotated[
    Annotated[Literal["none"], Tag(TAGS[4])] | Annotated[Proxy, Tag(TAGS[5])], Discriminator(_proxy_form)
]


def _image_form(value: Any) -> str | None:
    if isinstance(value, str):
        return TAGS[0]
    return TAGS[1] if isinstance(value, (dict, ImageBuild)) else None


Image: TypeAlias = Annotated[
    Annotated[Annotated[str, rules.IMAGE], Tag(TAGS[0])] | Annotated[ImageBuild, Tag(TAGS[1])],
    Discriminator(_image_form),
]


class ServerEntry(_Model):
    """A server with more to say of it than its address."""

    host: Annotated[str, rules.HOST] = Field(
        description="The server's address, a `Host` of `~/.ssh/config`, or `local` for this machine.",
        examples=["web1.example", "10.0.0.1"],
    )
    name: Annotated[str, rules.SERVER_NAME] | None = Field(
        None, description="What the server is called here. Default: its host and port.", examples=["web1"]
    )
    user: Annotated[str, rules.USER] | None = Field(
        None, description="The user to log in as. Default: what `~/.ssh/config` says.", examples=["deploy"]
    )
    port: int | None = Field(
        None, ge=1, le=65535, description="The port of its sshd. Default: what `~/.ssh/config` says.", examples=[2222]
    )
    roles: tuple[Name, ...] | None = _items(
        default=None,
        min_length=1,
        description="The roles that it plays: `web`, and names of `roles`. If not said, all of them.",
        examples=[["web", "worker"]],
    )
    labels: dict[Name, Annotated[str, rules.LABEL_VALUE]] = Field(
        {}, description="What else there is to know of it.", examples=[{"zone": "a"}], max_length=_LONGEST_LIST
    )
    sudo: bool | None = Field(
        None,
        description="Whether the agent is started by `sudo`. If not said, it is tried when the user is not root.",
        examples=[False],
    )

    @property
    def machine(self) -> Server:
        """The server that it describes."""
        local = self.host == "local"
        address = f"[{self.host}]" if ":" in self.host else self.host
        name = self.name or (f"{address}:{self.port}" if self.port else self.host)
        return Server(
            name=name,
            host="localhost" if local else self.host,
            user=self.user,
            port=self.port,
            roles=self.roles,
            labels=self.labels,
            sudo=self.sudo,
            local=local,
        )


def _server(entry: str | ServerEntry) -> Server:
    if isinstance(entry, ServerEntry):
        return entry.machine
    if entry == "local":
        return Server("local", "localhost", local=True)
    user, host, port = rules.split_server(entry)
    return Server(entry.rpartition("@")[2], host, user, port)


def _server_form(value: Any) -> str | None:
    if isinstance(value, str):
        return TAGS[2]
    return TAGS[3] if isinstance(value, (dict, ServerEntry)) else None


ServerForm: TypeAlias = Annotated[
    Annotated[Annotated[str, rules.SERVER], Tag(TAGS[2])] | Annotated[ServerEntry, Tag(TAGS[3])],
    Discriminator(_server_form),
]


class Service(_Model):
    """One service, as ``lightship.yml`` describes it."""

    own_keys: ClassVar[frozenset[str]] = frozenset({"name", "stage"})
    """Fields that no key of the file sets."""

    name: Annotated[str, rules.SERVICE] = Field(
        description="The service's name: its key under `services`.", examples=["shop"]
    )
    stage: Name | None = Field(None, description="The stage that this is.", examples=["production"])
    repository: Repository = Field(
        description="Where the code is fetched from: by the servers, or with `source: push` by this machine. "
        "Credentials in an https address are never shown.",
        examples=["https://git.example/shop.git", "git@git.example:team/shop.git", "/srv/git/shop.git"],
    )
    branch: Annotated[str, rules.BRANCH] = Field(
        "main", description="The branch that is deployed when the command names nothing else.", examples=["release/2.x"]
    )
    source: Literal["pull", "push"] = Field(
        "pull",
        description="How the code comes to the servers: `pull`, each fetches it from the git host; `push`, this "
        "machine fetches it and sends each what it lacks over the connection itself, so that servers need no key for "
        "the git host and no way to it.",
        examples=["push"],
    )
    servers: tuple[ServerForm, ...] = Field(
        default=("local",),
        strict=False,
        min_length=1,
        max_length=_MOST_SERVERS,
        description="The machines that run the service: `local` is this one, others are reached by SSH, as "
        "`[user@]host[:port]` or as a map.",
        examples=[
            ["deploy@web1.example", "deploy@web2.example:2222"],
            [{"name": "web1", "host": "10.0.0.1", "user": "deploy", "roles": ["web"]}],
        ],
    )
    inventory: Annotated[str, rules.INVENTORY] | None = Field(
        None,
        description="An Ansible inventory instead of `servers`: a file, a directory or a script, of any format and "
        "plugin that `ansible-inventory` reads. It must be installed here: `pip install 'lightship[ansible]'`.",
        examples=["inventory/hosts.yml"],
    )
    hosts: Annotated[str, rules.HOSTS] = Field(
        "all",
        description="Which hosts of the inventory: a group, or a pattern as Ansible has them.",
        examples=["shop", "web:&production"],
    )
    stages: dict[Name, dict[str, Any]] = Field(
        {},
        description="The service's stages by name. Each may hold any key of a service; its own value wins, and maps "
        "are merged key by key. `--stage` says which one is meant.",
        examples=[
            {"staging": {"servers": ["test.example"], "branch": "next"}, "production": {"servers": ["web.example"]}}
        ],
    )
    default_stage: Name | None = Field(
        None, description="The stage that is meant when no command says which.", examples=["staging"]
    )
    app: Annotated[str, rules.APP] = Field(
        "shop.wsgi:application",
        description="The WSGI callable that uWSGI serves.",
        examples=["mysite.wsgi:application"],
    )
    image: Image = Field(
        default_factory=ImageBuild,
        description="Either the name of an image that is pulled, or how to build one.",
        examples=["registry.example/shop:2026-01", {"dockerfile": "Dockerfile"}],
    )
    registry: Annotated[str, rules.REGISTRY] | None = Field(
        None,
        description="Where a built image is pushed to, as `<registry>/<service>`; the other servers pull it from there "
        "by its digest. Logins are those of root on the servers (`docker login`). Without a registry an image goes to "
        "the other servers over SSH.",
        examples=["registry.example/team"],
    )
    ports: tuple[Annotated[str, rules.PORT], ...] = _items(
        default=(),
        description="Ports of the server and where they lead in the container.",
        examples=[["8000:8000", "127.0.0.1:8001:8000"]],
    )
    proxy: ProxyForm = Field(
        "none",
        description="`none`: the container publishes `ports` itself, and is away for some seconds when it is replaced. "
        "Or how a proxy (HAProxy, in a container of its own) leads visitors to it; then a container is replaced "
        "without a gap, and there is `lightship maintenance`.",
        examples=["none", {"hosts": ["shop.example"]}],
    )
    env: dict[EnvName, EnvValue] = Field(
        {},
        description="Environment variables of the container. Values are text: write numbers in quotes.",
        examples=[{"DJANGO_SETTINGS_MODULE": "shop.settings", "WORKERS": "4"}],
        max_length=_LONGEST_LIST * 5,
    )
    secrets: dict[EnvName, SecretSource] = Field(
        {},
        description="Environment variables whose values nobody sees, each with the source of its value.",
        examples=[{"SECRET_KEY": {"file": "secrets/key"}}],
        max_length=_LONGEST_LIST,
    )
    volumes: tuple[Annotated[str, rules.VOLUME], ...] = _items(
        default=(),
        description="Further directories of the server in the container. `shared` is enough for most uploads.",
        examples=[["/srv/media:/media", "/etc/ssl/certs:/etc/ssl/certs:ro"]],
    )
    options: tuple[Annotated[str, OPTION], ...] = _items(
        default=(),
        description="Extra parameters of `docker run`, from the list below.",
        examples=[["--memory=512m", "--cpus=1.5"]],
    )
    infra: tuple[Annotated[str, rules.GLOB], ...] = _items(
        default=defaults.INFRA,
        description="The files that make the image. When one of them changes, the container is replaced. The "
        "Dockerfile that `image` names always counts. `pyproject.toml` is not among the defaults, since it mostly "
        "holds the settings of tools: add it if you install from it without a lock file.",
        examples=[["Dockerfile", "requirements/*.txt", "deploy/**"]],
    )
    shared: tuple[RelativePath, ...] = _items(
        default=(),
        description="Paths of the project that outlive releases, such as uploads: each becomes a link to the shared "
        "volume.",
        examples=[["media"]],
    )
    checks: tuple[Check, ...] = _items(
        default=(),
        description="Commands that run with the new code before it goes live.",
        examples=[[{"name": "django", "command": ["python", "manage.py", "check"]}]],
    )
    assets: Assets | None = Field(
        None,
        description="How long static files of earlier releases stay, with Django's `ManifestStaticFilesStorage` (or "
        "what is made of it). Without it they stay for ever.",
        examples=[{"directory": "staticfiles", "days": 7}],
    )
    migrate: Migration | None = Field(
        None,
        description="The migrations of the database. Without it none are run.",
        examples=[{"command": ["python", "manage.py", "migrate", "--noinput"]}],
    )
    roles: dict[Annotated[str, rules.ROLE], Role] = Field(
        {},
        description="What runs beside the web workers, by name: queue workers, schedulers. They are restarted on the "
        "new release after the web workers, each job in flight being finished first.",
        examples=[{"worker": {"command": ["celery", "-A", "shop", "worker"]}, "mailer": {"program": "mailer"}}],
        max_length=50,
    )
    health: Health = Field(
        default_factory=Health, description="What a healthy service answers.", examples=[{"path": "/healthz"}]
    )
    reload: Literal["swap", "touch", "chain"] = Field(
        "swap",
        description="How new code is taken up: `swap` boots it beside the old one; `touch` and `chain` are uWSGI's own "
        "ways, for images that already work that way.",
        examples=["touch"],
    )
    keep: int = Field(5, ge=2, le=100, description="How many releases stay on the server.", examples=[10])
    keep_warm: int = Field(
        0,
        ge=0,
        le=1,
        description="How many earlier releases keep running, paused, so that a rollback boots nothing. It takes the "
        "memory of a second set of workers, and is left out where less than a tenth is left. With `reload: swap`.",
        examples=[1],
    )
    keep_connected: float = Field(
        0.0,
        ge=0,
        le=86400,
        description="Seconds for which the SSH connections of a command stay open after it, with the agent waiting at "
        "their ends, so that the next command need not log in. A process of yours on this machine keeps them: "
        "`lightship connections` shows and closes them. Not where the variable `CI` is set. 0: none is kept.",
        examples=[600],
    )
    patience: float = Field(
        30.0, ge=0, le=3600, description="Seconds that requests in flight may take when a slot quits.", examples=[60]
    )
    boot_timeout: float = Field(
        120.0, ge=1, le=3600, description="Seconds until the new code must be ready to serve.", examples=[30]
    )
    soak: float = Field(
        0.5,
        ge=0,
        le=3600,
        description="Seconds for which a release is watched after the switch, before it counts as stable: its workers, "
        "its container, and whether it answers with more server errors than the release before it.",
        examples=[10],
    )
    rollout: RolloutPolicy = Field(
        default_factory=RolloutPolicy,
        description="How a deploy goes over several servers.",
        examples=[{"canary": 1, "batch": "25%"}],
    )
    root: Annotated[str, rules.ROOT] = Field(
        defaults.ROOT, description="The directory on the server where services live.", examples=["/data/lightship"]
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Service:
        if found := [*self._repeated(), *self._in_each_others_way()]:
            raise ConflictError(found)
        return self

    def _repeated(self) -> list[tuple[str, str]]:
        """What stands twice in a list where once is all there can be."""
        flags = [flag for flag in map(flag_of, self.options) if not is_repeatable(flag)]
        looked_at = {
            "servers": ("the name ", [one.name for one in self.machines]),
            "shared": ("", self.shared),
            "options": ("the parameter ", [f"--{flag}" for flag in flags]),
            "ports": ("the server's port ", [port.rpartition(":")[0] for port in self.ports]),
            "volumes": ("the container's path ", [volume.split(":")[1] for volume in self.volumes]),
            "checks": ("the name ", [check.name for check in self.checks]),
        }
        return [
            (key, f"must not have {what}{value!r} twice")
            for key, (what, values) in looked_at.items()
            for value in dict.fromkeys(values)
            if list(values).count(value) > 1
        ]

    def _in_each_others_way(self) -> list[tuple[str, str]]:
        found = [
            ("secrets", f"must not have {name}, which env has too")
            for name in sorted(self.env.keys() & self.secrets.keys())
        ]
        if self.inventory is not None and "servers" in self.model_fields_set:
            found.append(("inventory", "must not be beside servers: it takes their place"))
        if self.inventory is None and "hosts" in self.model_fields_set and self.hosts != "all":
            found.append(("hosts", "must not be without inventory, whose hosts it chooses"))
        known = ("web", *self.roles)
        for server in self.machines:
            unknown = [role for role in server.roles or () if role not in known]
            if unknown:
                found.append(
                    ("servers", f"must not have the role {unknown[0]!r} ({server.name}): roles has no such one")
                )
        if self.behind is not None and self.ports:
            found.append(
                ("ports", "must not be beside proxy, which has the ports of the server (proxy.http, proxy.https)")
            )
        if self.assets is not None and not any(within(self.assets.directory, path) for path in self.shared):
            found.append(
                ("assets", f"must have a directory that lies under one of shared, and not {self.assets.directory!r}")
            )
        if self.default_stage is not None and self.stage is None:
            found.append(("default_stage", "must not be without stages, one of which it is"))
        for volume in self.volumes:
            host = volume.split(":")[0]
            if within(host, self.root) or within(self.root, host):
                found.append(("volumes", f"must not have {host!r}: {self.root} is lightship's own (key root)"))
        return found

    @property
    def machines(self) -> tuple[Server, ...]:
        """The servers that stand under ``servers``."""
        return tuple(_server(text) for text in self.servers)

    @property
    def behind(self) -> Proxy | None:
        """What leads visitors to the service; ``None`` without a proxy."""
        return self.proxy if isinstance(self.proxy, Proxy) else None

    @property
    def infra_globs(self) -> tuple[str, ...]:
        """``infra`` and the Dockerfile that ``image`` names."""
        own = (self.image.dockerfile,) if isinstance(self.image, ImageBuild) else ()
        return tuple(dict.fromkeys((*self.infra, *own)))


def json_schema() -> dict[str, Any]:
    """The JSON Schema of ``lightship.yml``, for editors."""
    service = Service.model_json_schema(ref_template="#/$defs/{model}")
    definitions: dict[str, Any] = service.pop("$defs")
    for name in Service.own_keys:
        del service["properties"][name]
    # A key that a service lacks may stand under `defaults`: neither place alone can require one.
    service.pop("required")
    service["properties"]["stages"]["additionalProperties"] = {"$ref": "#/$defs/Stage"}
    stage_keys = {key: part for key, part in service["properties"].items() if key not in ("stages", "default_stage")}
    definitions["Stage"] = {**service, "description": "A service's keys in one stage.", "properties": stage_keys}
    definitions["Service"] = service
    for definition in definitions.values():
        _tidy(definition)
    services = {
        "type": "object",
        "description": "The services, by name.",
        "minProperties": 1,
        "propertyNames": {
            "pattern": f"^{rules.SERVICE.pattern}$",
            "maxLength": rules.SERVICE.longest,
            "x-rule": rules.SERVICE.words,
        },
        "additionalProperties": {"$ref": "#/$defs/Service"},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "lightship.yml",
        "description": "What lightship deploys, and where.",
        "type": "object",
        "additionalProperties": False,
        "required": ["services"],
        "properties": {
            "defaults": {
                "$ref": "#/$defs/Service",
                "description": "Keys that every service has unless it sets its own.",
            },
            "services": services,
        },
        "$defs": definitions,
    }


def _tidy(schema: Any) -> None:
    """Takes out what Pydantic adds for its own sake: titles made of key names."""
    if isinstance(schema, list):
        for item in schema:
            _tidy(item)
    if not isinstance(schema, dict):
        return
    title = schema.get("title")
    if isinstance(title, str) and re.fullmatch(r"[A-Z][A-Za-z ]*", title) and "properties" not in schema:
        del schema["title"]
    for value in schema.values():
        _tidy(value)
