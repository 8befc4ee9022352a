"""``lightship.yml`` as a whole: hostile values, every problem at its place, defaults, finding the file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightship.config import rules
from lightship.config.load import Config, find, load, parse
from lightship.config.options import OPTION
from lightship.config.repository import Repository
from lightship.config.resolved import yaml_text
from lightship.config.rules import RuleError
from lightship.config.schema import Service
from lightship.errors import ConfigurationError, UsageError

GOOD: dict[str, Any] = {"repository": "https://git.example/shop.git"}


def config(**keys: Any) -> Config:
    return parse(yaml_text({"services": {"shop": {**GOOD, **keys}}}))


def service(**keys: Any) -> Service:
    return config(**keys).service()


def problems(text: str) -> list[dict[str, Any]]:
    with pytest.raises(ConfigurationError) as caught:
        parse(text)
    found: list[dict[str, Any]] = caught.value.detail["problems"]
    json.dumps(caught.value.as_dict())
    for problem in found:
        assert str(problem["line"]) in caught.value.message
        assert caught.value.message.replace("\n", "").isprintable()
    return found


def problem(**keys: Any) -> dict[str, Any]:
    """The one problem of a service with these keys."""
    (found,) = problems(yaml_text({"services": {"shop": {**GOOD, **keys}}}))
    assert found["line"] > 0
    assert found["rule"]
    return found


BAD_REFS = [
    "--upload-pack=touch /tmp/p;git-upload-pack",
    "--exec=touch /tmp/p",
    "main; curl x.sh | sh",
    "$(id)",
    "+refs/*:refs/*",
    "HEAD@{1}",
    "a.lock",
    "a.lock/b",
    "../../etc",
    "/etc",
    "١٢",
    "main\n",
    "a..b",
    "a//b",
    "a/",
    ".a",
    "a.",
    "@",
    "HEAD",
    "-",
    "",
    "x" * 201,
]
BAD_REPOSITORIES = [
    "ext::sh -c touch% /tmp/pwned",
    "ssh://-oProxyCommand=touch%20x/y",
    "ssh://git@-oProxyCommand=x/y",
    "git@-oProxyCommand=x:y",
    "-oProxyCommand=x:y",
    "-u./payload",
    "https://git.example/../../etc",
    "https://git.example/-x",
    "https://git.example/r\n",
    "https://git.example:99999/r",
    "https://git.example/r?token=x",
    "git://git.example/r",
    "fd::17/foo",
    "./shop",
    "",
    "/",
    "git@host:-x",
    "https://gít.example/r",
]
BAD_OPTIONS = [
    "--privileged",
    "--privileged=true",
    "-v/:/host",
    "--volume=/:/host",
    "--mount=type=bind,src=/,dst=/host",
    "-p80:80",
    "--name=x",
    "--env=A=1",
    "--restart=always",
    "--memory 512m",
    "--memory",
    "--memory=512m\n",
    "--memory=512m --privileged",
    "--network=host",
    "--network=container:db",
    "--cap-add=SYS_ADMIN",
    "--cap-add=ALL",
    "--security-opt=seccomp=unconfined",
    "--device=/dev/sda",
    "--pid=host",
    "--sysctl=kernel.core_pattern=|/x",
    "--tmpfs=/srv/lightship/code",
    "--tmpfs=/srv",
    "--label=lightship.service=x",
    "--add-host=a:b c",
    "memory=512m",
    "",
]
BAD_VOLUMES = [
    "/var/run/docker.sock:/s",
    "/run/docker.sock:/s",
    "/run:/x",
    "/var:/x",
    "/:/host",
    "/proc:/x",
    "/var/lib/docker/volumes:/x",
    "/srv/lightship:/x",
    "/srv/lightship/shop/state:/x",
    "/srv:/x",
    "/data/../etc:/x",
    "/data:/srv/lightship",
    "/data:/srv/lightship/code/boot",
    "/data:/srv",
    "/data:/",
    "/data:/usr/bin",
    "/data:/x:rw,exec",
    "/data",
    "data:/x",
    "/data:x",
    "/da\nta:/x",
    "--privileged",
]

CASES: dict[str, tuple[list[Any], Callable[[Any], dict[str, Any]], str]] = {
    "branch": ([*BAD_REFS, True, 12], lambda bad: {"branch": bad}, "branch"),
    "repository": ([*BAD_REPOSITORIES, 5], lambda bad: {"repository": bad}, "repository"),
    "options": (BAD_OPTIONS, lambda bad: {"options": [bad]}, "options"),
    "volumes": (BAD_VOLUMES, lambda bad: {"volumes": [bad]}, "volumes"),
    "image": (
        [
            "--privileged",
            "shop",
            "shop:tag\n",
            "Shop:1",
            "shop:1 x",
            "a/../b:1",
            "-shop:1",
            "shop@sha256:0",
            "",
            ["shop:1"],
        ],
        lambda bad: {"image": bad},
        "image",
    ),
    "dockerfile": (
        ["/etc/passwd", "../x", "-f", "a/../b", "a\nb"],
        lambda bad: {"image": {"dockerfile": bad}},
        "image.dockerfile",
    ),
    "ports": (
        [
            "80",
            "0:80",
            "80:65536",
            "80:80/udp",
            "8000-8010:8000",
            "999.1.1.1:80:80",
            "80:80\n",
            "٨٠:80",
            "-p80:80",
            8000,
        ],
        lambda bad: {"ports": [bad]},
        "ports[0]",
    ),
    "env name": (
        ["A=1\nLD_PRELOAD", "A B", "1A", "", "A-B", "LIGHTSHIP_ROOT", "É", "A\n"],
        lambda bad: {"env": {bad: "x"}},
        "env",
    ),
    "env value": (
        ["1\nLD_PRELOAD=/x.so", "a\0b", "\r", "\x1b[2J", 1, True, None, 1.5],
        lambda bad: {"env": {"A": bad}},
        "env.A",
    ),
    "servers": (
        ["-oProxyCommand=x", "a b", "root@-x", "a:0", "a:99999", "x\n", "ssh://a", "a/b", "[::1"],
        lambda bad: {"servers": [bad]},
        "servers[0]",
    ),
    "app": (
        ["shop", "shop.wsgi", "shop/wsgi.py:app", "a:b\n", "a:b()", "1:a", "shöp:app"],
        lambda bad: {"app": bad},
        "app",
    ),
    "infra": (["/etc/*", "../x", "a/../b", "-x", "a b", ""], lambda bad: {"infra": [bad]}, "infra[0]"),
    "shared": (["/etc", "..", "a/../../b", ".", "", "-x", "a\n"], lambda bad: {"shared": [bad]}, "shared[0]"),
    "health path": (
        ["x", "/a b", "/\r\nHost: evil", "/é", "//\\"],
        lambda bad: {"health": {"path": bad}},
        "health.path",
    ),
    "health host": (["a\r\nX: y", "a b", "-a", "a:0"], lambda bad: {"health": {"host": bad}}, "health.host"),
    "health status": (
        [99, 600, "200-99", "399-200", "x", True, "200 - 300", "٢٠٠"],
        lambda bad: {"health": {"status": [bad]}},
        "health.status[0]",
    ),
    "registry": (
        [
            "team",
            "https://r.example",
            "r.example/",
            "r.example/Team",
            "r.example/a:1",
            "-x.example",
            "r.example/../x",
            "a\n",
        ],
        lambda bad: {"registry": bad},
        "registry",
    ),
    "build secret": (
        [{}, {"file": "a", "env": "B"}, "hunter2", ["hunter2"]],
        lambda bad: {"image": {"secrets": {"A": bad}}},
        "image.secrets.A",
    ),
    "reload": (["swop", "", None, True], lambda bad: {"reload": bad}, "reload"),
    "keep": ([0, 1, 101, "5", True, 2.5, None], lambda bad: {"keep": bad}, "keep"),
    "patience": ([-1, 3601, "30", True, None], lambda bad: {"patience": bad}, "patience"),
    "root": (["/", "srv", "/srv", "/etc/../x", "/usr/x", "/run/x", "/a\n"], lambda bad: {"root": bad}, "root"),
    "check": (
        [[], "make check", ["a\0b"], [1]],
        lambda bad: {"checks": [{"name": "a", "command": bad}]},
        "checks[0].command",
    ),
    "check name": (
        ["-x", "a b", "", "a\n"],
        lambda bad: {"checks": [{"name": bad, "command": ["x"]}]},
        "checks[0].name",
    ),
    "secret": (
        [{}, {"file": "a", "env": "B"}, {"command": []}, {"file": "-x"}, {"env": "A B"}, "hunter2", ["hunter2"], None],
        lambda bad: {"secrets": {"A": bad}},
        "secrets.A",
    ),
}


@pytest.mark.parametrize(("key", "bad"), [(key, bad) for key, (values, _, _) in CASES.items() for bad in values])
def test_hostile_values_are_refused_with_field_value_and_rule(key: str, bad: Any) -> None:
    _, build, path = CASES[key]
    found = problem(**build(bad))
    assert found["path"].startswith(f"services.shop.{path}")
    if key in ("secret", "build secret"):
        assert "hunter2" not in str(found)
    elif not isinstance(bad, (list, type(None))) and "lightship's own (key root)" not in found["rule"]:
        assert found["value"]
        assert found["value"].isprintable()


@pytest.mark.parametrize("name", ["web\n", "Web", "-web", "web-", "../x", "a/b", "", "é", "١٢", "x" * 41, "a--b"])
def test_hostile_service_names(name: str) -> None:
    (found,) = problems(yaml_text({"services": {name: GOOD}}))
    assert "must be a service name" in found["rule"]
    assert found["value"].isprintable()


@pytest.mark.parametrize("bad", BAD_REFS)
def test_refs_and_commits_of_the_command_line(bad: str) -> None:
    for rule in (rules.REF, rules.COMMIT):
        with pytest.raises(RuleError):
            rule(bad)


def test_yaml_that_turns_into_something_else() -> None:
    text = "services: {shop: {repository: /srv/git/shop, branch: on, ports: [0123456], env: {A: no}}}"
    assert [(found["path"], found["hint"]) for found in problems(text)] == [
        ("services.shop.branch", "write it in quotes"),
        ("services.shop.ports[0]", "write it in quotes"),
        ("services.shop.env.A", "write it in quotes"),
    ]
    (found,) = problems('services: {shop: {repository: /srv/x, branch: !!python/object/apply:os.system ["id"]}}')
    assert "tags are not allowed" in found["rule"]


def test_all_problems_at_once_each_in_its_place() -> None:
    text = """\
defaults:
  keep: "7"
  brnach: x
services:
  shop:
    repository: /srv/git/shop
    ports:
      - 8000:8000
      - "0:1"
    health: {pth: /}
  other:
    reload: swop
servces: {}
"""
    assert [(p["line"], p["column"], p["path"], p["hint"]) for p in problems(text)] == [
        (2, 9, "defaults.keep", ""),
        (3, 3, "defaults.brnach", "did you mean branch?"),
        (9, 9, "services.shop.ports[1]", ""),
        (10, 14, "services.shop.health.pth", "did you mean path?"),
        (11, 3, "services.other.repository", ""),
        (12, 13, "services.other.reload", "did you mean swap?"),
        (13, 1, "servces", "did you mean services?"),
    ]


@pytest.mark.parametrize(
    "text", ["", "[]", "x", "services:", "services: []", "services: {}", "defaults: {}", "services: {a: }"]
)
def test_no_services(text: str) -> None:
    assert problems(text) if text else True


@pytest.mark.parametrize(
    "key", ["image.arg", "health.stats", "checks[0].comand", "secrets.A.fil", "image.secrets.A.fil"]
)
def test_unknown_inner_keys_name_the_nearest(key: str) -> None:
    values: dict[str, Any] = {
        "image.arg": {"image": {"arg": {}}},
        "health.stats": {"health": {"stats": [200]}},
        "checks[0].comand": {"checks": [{"name": "a", "command": ["a"], "comand": []}]},
        "image.secrets.A.fil": {"image": {"secrets": {"A": {"file": "x", "fil": "y"}}}},
        "secrets.A.fil": {"secrets": {"A": {"file": "x", "fil": "y"}}},
    }
    found = problem(**values[key])
    assert found["path"] == f"services.shop.{key}"
    assert found["hint"].startswith("did you mean ")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"env": {"A": "1"}, "secrets": {"A": {"env": "A"}}}, "A, which env has too"),
        ({"ports": ["80:80", "80:81"]}, "the server's port '80' twice"),
        ({"options": ["--memory=1g", "--memory=2g"]}, "the parameter '--memory' twice"),
        ({"volumes": ["/data/a:/x", "/data/b:/x"]}, "the container's path '/x' twice"),
        ({"root": "/data/lightship", "volumes": ["/data:/x"]}, "/data/lightship is lightship's own"),
        ({"shared": ["media", "media"]}, "must not have 'media' twice"),
        ({"name": "other"}, "its key under services"),
    ],
)
def test_what_does_not_fit_together(keys: dict[str, Any], said: str) -> None:
    assert said in problem(**keys)["rule"]


GOOD_VALUES: list[dict[str, Any]] = [
    *(
        {"repository": r}
        for r in ["git@git.example:team/shop.git", "ssh://git@h:2222/r", "file:///srv/r", "/srv/r", "http://h/r"]
    ),
    *({"branch": b} for b in ["release/2.x", "feature/a_b+c", "fix#12", "v1.0"]),
    *({"servers": [s]} for s in ["local", "web1", "deploy@web1.example:2222", "10.0.0.1", "root@[::1]:22"]),
    *({"image": i} for i in ["shop:1", "registry.example:5000/a/b:1.0", f"a@sha256:{'0' * 64}", {"args": {"A": ""}}]),
    *({"registry": r} for r in ["registry.example/team", "10.0.0.1:5000", "localhost/a", "r:5000/a/b", "docker.io/x"]),
    *({"ports": [p]} for p in ["8000:8000", "127.0.0.1:80:8000", "[::1]:80:8000", "65535:1"]),
    *(
        {"volumes": [v]}
        for v in ["/data:/data", "/var/run/postgresql:/var/run/postgresql", "/etc/ssl/x.pem:/etc/ssl/x.pem:ro"]
    ),
    {
        "options": [
            "--memory=512m",
            "--cpus=1.5",
            "--ulimit=nofile=1024:2048",
            "--log-opt=max-size=10m",
            "--network=backend",
        ]
    },
    {
        "options": [
            "--add-host=db:10.0.0.2",
            "--add-host=h:host-gateway",
            "--cap-drop=ALL",
            "--cap-add=NET_BIND_SERVICE",
        ]
    },
    {"options": ["--tmpfs=/tmp:size=64m", "--read-only=true", "--sysctl=net.core.somaxconn=1024", "--memory-swap=-1"]},
    {"health": {"status": [200, "300-399"], "body": "ok", "host": "a.example:8000", "path": "/h?x=1", "timeout": 0.5}},
    {"env": {"A": "", "B": 'ünïcode ✓ $HOME `x` "q"'}},
    {"infra": ["Dockerfile", "deploy/**", "requirements*.txt"], "patience": 0, "soak": 1.5},
]


@pytest.mark.parametrize("keys", GOOD_VALUES)
def test_good_values(keys: dict[str, Any]) -> None:
    assert service(**keys).name == "shop"


def test_defaults_are_merged() -> None:
    found = parse("""\
defaults:
  repository: /srv/git/all
  env: {A: "1", B: "2"}
  ports: ["1:1"]
  health: {path: /h, timeout: 2}
  image: {args: {A: a}, secrets: {T: {file: x}}}
  secrets: {S: {file: x}}
services:
  one:
    env: {B: "3"}
    ports: ["2:2"]
    health: {timeout: 3}
    image: {args: {B: b}, secrets: {T: {env: T}}}
    secrets: {S: {env: S}}
  two: {image: "shop:1"}
""")
    one, two = found.service("one"), found.service("two")
    assert one.env == {"A": "1", "B": "3"}
    assert one.ports == ("2:2",)
    assert (one.health.path, one.health.timeout) == ("/h", 3)
    assert not isinstance(one.image, str)
    assert one.image.args == {"A": "a", "B": "b"}
    assert (one.image.secrets["T"].file, one.image.secrets["T"].env) == (None, "T")
    assert (one.secrets["S"].file, one.secrets["S"].env) == (None, "S")
    assert (two.image, two.ports, two.name) == ("shop:1", ("1:1",), "two")


def test_choosing_a_service() -> None:
    two = parse("defaults: {repository: /srv/x}\nservices: {a: {}, b: {}}")
    assert config().service(None).name == "shop"
    with pytest.raises(UsageError, match="say which") as caught:
        two.service()
    assert "a, b" in caught.value.hint
    with pytest.raises(UsageError, match="no service 'shp'") as caught:
        config().service("shp")
    assert "shop" in caught.value.hint


def test_a_service_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        service().branch = "x"


def test_health_statuses() -> None:
    health = service(health={"status": [200, "301-302"]}).health
    assert [status for status in range(100, 600) if health.accepts(status)] == [200, 301, 302]
    assert service().health.ranges() == [(200, 399)]


def test_the_dockerfile_always_counts_as_infrastructure() -> None:
    assert service(image={"dockerfile": "docker/web"}, infra=["x"]).infra_globs == ("x", "docker/web")


def test_credentials_of_a_repository_are_never_shown() -> None:
    found = service(repository="https://u:tok3n@git.example/r")
    assert found.repository.reveal() == "https://u:tok3n@git.example/r"
    assert str(found.repository) == "https://***@git.example/r"
    for text in (
        repr(found),
        str(found),
        found.model_dump_json(),
        json.dumps(found.model_dump()),
        f"{found.repository}",
    ):
        assert "tok3n" not in text
    assert found.model_copy().repository == found.repository
    assert Repository("https://a@h/r") != Repository("https://b@h/r")
    for bad in (
        "http://u:tok3n@h/r",
        "https://u:tok3n@h/r\n",
        "https://u:tok3n@h" + "/x" * 2000,
        "ssh://u:tok3n@h/r",
        "https://u:to/tok3n@h/r",
        "https://u:x tok3n@h",
    ):
        assert "tok3n" not in str(problem(repository=bad))


@pytest.mark.parametrize("option", ["--env=P=hunter2", "-eP=hunter2", "--env P=hunter2", "--build-arg=P=hunter2"])
def test_a_password_in_the_wrong_option_is_not_repeated(option: str) -> None:
    found = problem(options=[option])
    assert "hunter2" not in str(found)
    assert "key `" in found["hint"]


def test_finding_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "project" / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "lightship.yml").write_text("services: {x: {repository: /srv/x}}")
    monkeypatch.chdir(inner)
    assert find() == tmp_path / "lightship.yml"
    assert load().directory == tmp_path
    (tmp_path / "project" / ".git").mkdir()
    with pytest.raises(ConfigurationError, match=re.escape("there is no lightship.yml")):
        find()
    (tmp_path / "project" / "lightship.yml").write_text("services: {inner: {repository: /srv/x}}")
    assert load().service().name == "inner"
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    if (tmp_path / "project").stat().st_uid != 0:
        with pytest.raises(ConfigurationError, match="another user"):
            find()


RULES = [rule for rule in vars(rules).values() if isinstance(rule, rules.Rule)]
ODD = st.text(st.sampled_from("\0\n\r\t\x1b\x7f\u202e\u2028\ud800é\u0661 "), min_size=1, max_size=3)


@pytest.mark.parametrize(
    "rule", [*RULES, OPTION, Repository], ids=lambda rule: getattr(rule, "words", "repository")[:30]
)
@given(text=st.text(max_size=30), odd=ODD, lead=st.sampled_from(["-", "--", "-v", "$(", "`", ";", "|", ""]))
def test_rules_accept_no_control_characters_and_never_fail_otherwise(
    rule: Callable[[str], str], text: str, odd: str, lead: str
) -> None:
    free = rule in (rules.ENV_VALUE, rules.ARGUMENT, rules.BODY)
    for candidate in (lead + text, text + odd, odd + text):
        try:
            rule(candidate)
        except RuleError as error:
            assert error.rule.startswith("must be ")
        else:
            assert candidate.isascii() or free
            assert not re.search(r"[\x00-\x1f\x7f]", candidate)
            assert free or rule is OPTION or not candidate.startswith("-")
