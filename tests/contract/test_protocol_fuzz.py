"""The agent's process under garbage, and the controller under an agent that lies.

Whatever is sent, each line has one answer, a wrong one the outcome ``usage``; nothing is written to standard error, the
process ends with its input, and nothing appears outside the service's root.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lightship_agent
from lightship.cli.main import main_status
from lightship.errors import TransportError
from lightship.transport.conversation import Conversation
from lightship.transport.local import LocalTransport
from lightship_agent.protocol import ALIVE, LOCKING_OPERATIONS, MAX_LINE, OPERATIONS

SOURCE = Path(lightship_agent.__file__).parent.parent
START = f"import sys; sys.path.insert(0, {str(SOURCE)!r}); from lightship_agent.__main__ import main; sys.exit(main())"
COMMIT, LAYER = "a" * 40, "sha256:" + "b" * 64
# What unfolds to more than a part of an image may have.
BOMB = base64.b64encode(zlib.compress(b"0" * 10_000_000)).decode()

TEXT: list[Any] = [5, 1.5, True, [], {}, ["x"], "a\0b", "\ud800"]
NAME: list[Any] = [*TEXT, "-x", "a b", "a\n", "../../etc", "\x1b[2J", "$(id)", "\u0661", "x" * 100_000]
FLAG: list[Any] = ["yes", 1, 0, [], {}, "true"]
SECONDS: list[Any] = ["1", -1, 1e30, True, [], {}, math.nan, math.inf, 10**400]
WHOLE: list[Any] = ["5", -1, 1.5, True, [], {}, 10**400, math.nan]
TEXTS: list[Any] = ["x", 5, True, {}, {"a": "b"}, [5], [None], [["a"]], ["a\0b"], ["\ud800"]]
TABLE: list[Any] = ["x", 5, True, [], ["a"], {"a": 5}, {"a": None}, {"a": {}}, {"a\0": "b"}, {"a": "\ud800"}]
OBJECT: list[Any] = ["x", 5, True, [], ["a"]]
LIST: list[Any] = ["x", 5, True, {}, ["a"], [5], [None], [[]]]
VARIABLES: list[Any] = [*TABLE, {"A=1\nLD_PRELOAD": "/x.so"}, {"A": "1\nLD_PRELOAD=/x.so"}, {"1A": ""}, {"": ""}]
ROLE_NAMES = ["", "web", "A", "-x", "a b", "a\n", "../x", "a%(x)s", "a]", "\u0661", "x" * 41]
ROLE: dict[str, list[Any]] = {
    "command": ["x", 5, {}, [], [5], [""], ["a\n"], ["a\0"], ["\ud800"], ["\x1b[2J"], ["x"] * 101, ["x" * 5000]],
    "program": [5, [], "x", "-x", "a b", "a:b", "a\n", "%(x)s", "\x1b[2J"],
    "processes": [*WHOLE, 0, 101], "patience": SECONDS, "settle": [*SECONDS, 301], "signal": [5, [], "KILL", "TERM "],
}  # fmt: skip

CLAIM: dict[str, Any] = {
    "hosts": ["shop.example"], "address": "127.0.0.1", "http": 80, "https": 443, "certificates": ["/c"],
    "redirect": True, "timeout": 5, "port": 8000, "image": "x:1", "acme_port": 0,
}  # fmt: skip
WRONG_CLAIM: dict[str, list[Any]] = {
    "hosts": [*TEXTS, ["a b"], ["A"], ["a }\n x"]], "address": [*TEXT, "x", "::1 ssl"], "http": [*WHOLE, 443],
    "https": [*WHOLE, 0], "certificates": [*TEXTS, ["c"], ["/a/../b"], ["/a b"]], "redirect": FLAG, "timeout": SECONDS,
    "port": [*WHOLE, 0], "image": [*NAME, "--privileged"], "acme_port": WHOLE,
}  # fmt: skip

# Each operation with arguments that are well-formed, and for each of those what is not. A key with a dot lies inside.
GOOD: dict[str, dict[str, Any]] = {
    "hello": {"protocol": 1, "service": "shop", "root": "ROOT", "container": "shop", "who": "a", "why": "b",
              "lock": False, "wait": 0, "take_over": False},
    "receive": {"part": "begin", "commit": COMMIT, "size": 5, "data": "aGVsbG8="},
    "inspect": {"repository": "/nowhere/r.git", "ref": "main", "commit": COMMIT, "infra": ["Dockerfile"],
                "migrations": ["**/migrations/*.py"], "env": {"A": "1"}},
    "build": {"commit": COMMIT, "tag": "x:1", "dockerfile": "Dockerfile", "context": ".", "args": {"A": "b"},
              "labels": {"a": "b"}, "secrets": {"A": "b"}},
    "image": {"image": "x:1", "layers": [LAYER]}, "push": {"image": "x:1"}, "pull": {"image": "x:1", "tag": "y:1"},
    "save": {"image": "x:1", "known": 0},
    "load": {"size": 0, "offset": 0, "data": "", "last": {"sha256": "a", "image_id": LAYER, "tag": "x:1"}},
    "prepare": {
        "commit": COMMIT, "kind": "full", "app": "shop.wsgi:application", "patience": 1, "boot_timeout": 1, "soak": 0,
        "reload": "swap", "shared": ["media"], "keep": 5, "retry": False, "why": "x",
        "health": {"path": "/", "host": "localhost", "status": ["200-399"], "body": None, "timeout": 5},
        "checks": [{"name": "a", "command": ["true"], "timeout": 5, "required": True}],
        "migrate": {"command": ["true"], "timeout": 5, "state": []},
        "proxy": CLAIM, "assets": {"directory": "static", "seconds": 5},
        "container": {"image": "x:1", "options": [], "ports": [], "volumes": [], "env": {"A": "1"}, "secrets": ["A"],
                      "fingerprint": "f", "settings_digest": "s", "labels": {"a": "b"}, "stored": False,
                      "roles": {"worker": {"command": ["true"], "program": "", "processes": 1, "patience": 1,
                                           "settle": 0, "signal": "TERM"}},
                      "image_id": LAYER},
    },
    "activate": {}, "verify": {}, "commit": {}, "revert": {}, "abort": {}, "status": {}, "traces": {},
    "bye": {"trace": {"id": "0" * 32}},
    "logs": {"lines": 5, "follow": False},
    "exec": {"command": ["true"]},
    "proxy": {"claim": CLAIM},
    "maintenance": {"on": True, "page": "<p>soon</p>"},
}  # fmt: skip
WRONG: dict[str, dict[str, list[Any]]] = {
    "hello": {"protocol": ["1", None, 2, [], {}, 1.5], "service": [*NAME, None, ""], "root": [*NAME, "/a/../b", "x"],
              "container": NAME, "who": TEXT, "why": TEXT, "lock": FLAG, "wait": SECONDS, "take_over": FLAG},
    "receive": {"part": [*NAME, None, "", "ask "], "commit": [*NAME, None, "", "HEAD", "A" * 40],
                "size": [*WHOLE, 2**41], "data": [*TEXT, "x", "aGVsbG8", "aGVsbG8=\n", "\u0661aaa", "-_-_"]},
    "inspect": {"repository": [*NAME, "", "ext::sh -c x", "ssh://-oProxyCommand=x/y", "http://u:p@h/r"],
                "ref": [*NAME, "", "--upload-pack=x", "+refs/*:refs/*"], "commit": [*NAME, "", "HEAD", "A" * 40],
                "infra": TEXTS, "migrations": TEXTS, "env": VARIABLES},
    "build": {"commit": [*NAME, None], "tag": [*NAME, None, "--privileged"],
              "dockerfile": [*TEXT, "/etc/x", "../x", "-f"], "context": [*TEXT, "/", "..", "-"],
              "args": TABLE, "labels": TABLE,
              "secrets": [*TABLE, {"../x": "a"}, {"": "a"}, {"a,src=/etc/shadow": "b"}]},
    "image": {"image": [*NAME, None, "--privileged"], "layers": [*TEXTS, ["sha256:x"]]},
    "push": {"image": [*NAME, None, "--privileged"]},
    "pull": {"image": [*NAME, None, "--privileged"], "tag": [*NAME, "--privileged"]},
    "save": {"image": [*NAME, None, "--privileged"], "known": WHOLE},
    "load": {"size": WHOLE, "offset": [*WHOLE, 5], "data": [*TEXT, "x", BOMB, "eJw"], "last": OBJECT,
             "last.sha256": [*TEXT, None], "last.image_id": [*NAME, None], "last.tag": NAME},
    "prepare": {
        "commit": [*NAME, None], "kind": [*NAME, None, "nothing"], "app": [*NAME, None], "patience": SECONDS,
        "boot_timeout": SECONDS, "soak": SECONDS, "reload": [*NAME, "touch "],
        "shared": [*TEXTS, ["/etc"], ["../x"], ["a", "a/b"]], "keep": [*WHOLE, 0, 10**6], "retry": FLAG, "why": TEXT,
        "health": OBJECT, "health.path": [*TEXT, None, "x", "/\r\nHost: y"], "health.host": [*TEXT, "a\r\nX: y"],
        "health.status": [5, "200", True, {}, [True], [[]], ["x"], [99], ["200-"], [None]],
        "health.body": [5, True, [], {}, "\0"], "health.timeout": [*SECONDS, 0, 1e6],
        "checks": LIST, "checks.name": [*TEXT, None], "checks.command": [*TEXTS, [], None], "checks.timeout": SECONDS,
        "checks.required": FLAG,
        "migrate": OBJECT, "migrate.command": [*TEXTS, [], None], "migrate.timeout": SECONDS, "migrate.state": TEXTS,
        "container": OBJECT, "container.image": [*NAME, None], "container.options": TEXTS, "container.ports": TEXTS,
        "container.volumes": TEXTS, "container.env": VARIABLES, "container.secrets": TEXTS,
        "container.fingerprint": TEXT, "container.settings_digest": TEXT, "container.labels": TABLE,
        "container.stored": FLAG, "container.image_id": NAME,
        "container.roles": [*OBJECT, *({name: {"command": ["true"]}} for name in ROLE_NAMES), {"a": None}, {"a": {}},
                            {"a": {"command": ["true"], "program": "x"}},
                            {f"a{number}": {"program": "x"} for number in range(60)}],
        **{f"container.roles.worker.{key}": values for key, values in ROLE.items()},
        "assets": OBJECT, "assets.directory": [*TEXT, None, "/etc", "../x"], "assets.seconds": [*SECONDS, 1e9],
        "proxy": OBJECT, **{f"proxy.{name}": values for name, values in WRONG_CLAIM.items()},
    },
    "logs": {"lines": WHOLE, "follow": FLAG},
    "exec": {"command": [*TEXTS, [], None]},
    "proxy": {"claim": [*OBJECT, None], **{f"claim.{name}": values for name, values in WRONG_CLAIM.items()}},
    "maintenance": {"on": FLAG, "page": [*TEXT, "", "x" * 200_001]},
    "bye": {"trace": OBJECT, "trace.id": [*NAME, None, "", "A" * 32, "0" * 31]},
}  # fmt: skip
NO_ARGUMENTS = ("activate", "verify", "commit", "revert", "abort", "status", "traces")


def nested(depth: int) -> Any:
    """A value that lies so deep."""
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


def with_value(op: str, path: str, value: Any) -> dict[str, Any]:
    """The operation's arguments with one of them changed."""
    args: dict[str, Any] = json.loads(json.dumps(GOOD[op]))
    *outer, name = path.split(".")
    place: Any = args
    for key in outer:
        place = place[key]
    (place[0] if isinstance(place, list) else place)[name] = value
    return args


class Agent:
    """An agent's process in a folder of its own, without an engine, and with programs that only leave a mark."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "srv"
        (folder / "home").mkdir(parents=True)
        self.canary = folder / "canary"
        for name in ("git", "docker", "ssh", "sync"):
            program = folder / "bin" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(f"#!/bin/sh\necho {name} >>{self.canary}\nexit 1\n")
            program.chmod(0o755)
        self.before = self.outside()
        environment = {
            "PATH": str(folder / "bin"),
            "HOME": str(folder / "home"),
            "DOCKER_HOST": f"unix://{folder}/none.sock",
        }
        command = [sys.executable, "-I", "-S", "-c", START]
        if os.geteuid() != 0:
            command = ["unshare", "--map-root-user", *command]
            environment["PATH"] += os.pathsep + os.defpath
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def outside(self) -> list[str]:
        ours = (self.root, self.canary)
        return sorted(str(path) for path in self.folder.rglob("*") if not {path, *path.parents}.intersection(ours))

    def inside(self) -> tuple[list[Path], str]:
        """What there is below its root, and what programs it started."""
        return sorted(self.root.rglob("*")), self.canary.read_text() if self.canary.exists() else ""

    def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while True:
            found: dict[str, Any] = json.loads(self.process.stdout.readline())
            if "event" not in found:
                return found

    def line(self, data: bytes) -> dict[str, Any]:
        self.send(data + b"\n")
        return self.answer()

    def ask(self, op: str, args: Any) -> dict[str, Any]:
        return self.line(json.dumps({"id": 7, "op": op, "args": args}).encode())

    def hello(self, *, lock: bool = False) -> dict[str, Any]:
        return self.ask("hello", {**GOOD["hello"], "root": str(self.root), "lock": lock})

    def end(self) -> None:
        """It ends by itself with its input, without a word, and has left nothing outside its root."""
        out, err = self.process.communicate(timeout=20)
        assert (self.process.returncode, out, err) == (0, b"", b"")
        assert self.outside() == self.before


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    made = Agent(tmp_path / "server")
    try:
        yield made
        made.end()
    finally:
        made.process.kill()
        made.process.wait()
        for pipe in (made.process.stdin, made.process.stdout, made.process.stderr):
            if pipe is not None:
                pipe.close()


def usage(answer: dict[str, Any], what: object = "") -> dict[str, Any]:
    assert set(answer) == {"id", "error"}, (what, answer)
    error: dict[str, Any] = answer["error"]
    assert error["outcome"] == "usage", (what, answer)
    assert (error["message"] + error["hint"]).isprintable(), (what, answer)
    assert error["message"].isascii(), (what, answer)
    assert len(error["message"]) < 1000, (what, answer)
    return error


def test_every_operation_is_fuzzed() -> None:
    assert set(GOOD) == set(OPERATIONS)
    assert set(WRONG) | set(NO_ARGUMENTS) == set(OPERATIONS)
    for op, wrong in WRONG.items():
        flat = set(GOOD[op]) | {
            f"{name}.{inner}"
            for name, value in GOOD[op].items()
            for found in [value[0] if isinstance(value, list) and isinstance(value[0], dict) else value]
            if isinstance(found, dict) and name not in ("env", "args", "labels", "secrets")
            for inner in found
        }
        assert {path for path in wrong if not path.startswith("container.roles.")} == flat, op


def test_what_is_no_request_is_answered_as_one_that_was_wrong(agent: Agent) -> None:
    lines = [
        b"", b"x", b"{", b"[]", b"null", b"5", b'"hello"', b"\xff\xfe", b"\0" * 100, b"[" * 100_000, b"{}",
        b'{"id":1}', b'{"id":"1","op":"status"}', b'{"id":true,"op":"status"}', b'{"id":1,"op":["status"]}',
        b'{"id":1,"op":"' + b"x" * 100_000 + b'"}', b'{"id":1,"op":"__init__"}', b'{"id":1,"op":"status","args":[]}',
        b'{"id":1,"op":"\\u001b[2J","args":{}}', b'{"id":' + b"9" * 5000 + b',"op":"status"}',
        b'{"id":1,"op":"hello","args":' + b'{"a":' * 900 + b"1" + b"}" * 901, b"GET / HTTP/1.1",
    ]  # fmt: skip
    for line in lines:
        usage(agent.line(line), line[:80])
    assert "result" in agent.hello(), "and it still works"
    assert not agent.root.exists()


def test_nothing_is_done_before_hello_without_the_lock_or_twice(agent: Agent) -> None:
    for op in OPERATIONS:
        if op not in ("hello", "bye"):
            assert usage(agent.ask(op, GOOD[op]))["code"] == "no-hello"
    assert "result" in agent.hello()
    for op in LOCKING_OPERATIONS:
        assert usage(agent.ask(op, GOOD[op]))["code"] == "no-lock"
    assert usage(agent.hello())["code"] == "hello-twice"
    assert not agent.root.exists()


def test_phases_out_of_turn_are_refused(agent: Agent) -> None:
    assert "result" in agent.hello(lock=True)
    for op in ("activate", "verify", "commit", "revert"):
        assert usage(agent.ask(op, {}))["code"] == "no-rollout"
    assert agent.ask("abort", {}) == {"id": 7, "result": {}}


@pytest.mark.parametrize("op", WRONG)
def test_every_argument_of_a_wrong_type_is_refused_before_anything_is_done(agent: Agent, op: str) -> None:
    if op != "hello":
        assert "result" in agent.hello(lock=True)
    before = agent.inside()
    for path, values in WRONG[op].items():
        for value in values:
            usage(agent.ask(op, with_value(op, path, value)), (path, repr(value)[:80]))
    deep = {**GOOD[op], "health": {"path": "/", "more": nested(300)}}
    for args in ([], "x", 5, None, deep):
        usage(agent.ask(op, args), args)
    assert agent.inside() == before


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
ARGUMENTS = sorted({name for args in GOOD.values() for name in args} - {"root", "wait", "lock"})


def test_random_lines_and_random_arguments_are_answered(agent: Agent) -> None:
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=60).map(lambda data: data.replace(b"\n", b"")).filter(lambda data: data != ALIVE))
    def lines(data: bytes) -> None:
        usage(agent.line(data))

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.sampled_from(sorted(set(OPERATIONS) - {"bye", "hello"})), st.dictionaries(st.sampled_from(ARGUMENTS), JSON)
    )
    def requests(op: str, args: dict[str, Any]) -> None:
        answer = agent.ask(op, args)
        if "error" in answer:
            assert answer["error"]["outcome"] in ("usage", "refused"), (op, args, answer)

    lines()
    assert "result" in agent.hello(lock=True)
    requests()


def test_a_line_too_long_is_answered_and_ends_the_conversation(agent: Agent) -> None:
    agent.send(b"x" * (MAX_LINE + 100_000))
    assert "longer than" in usage(agent.answer())["message"]
    assert agent.process.wait(20) == 0


@pytest.mark.parametrize("last", [b"", b'{"id":1,"op":"hel', b"\xff\x00", b"x" * 1_000_000])
def test_half_a_line_at_the_end_is_nothing(agent: Agent, last: bytes) -> None:
    agent.send(last)


# --- the other way round: an agent that lies ------------------------------------------------------

HOSTILE = ["\x1b]52;c;Y3VybA==\x07", "\x1b[2J\x1b[HDeploy OK", "\u202egnp.exe", "\udcff\x00", "a\r\n\x9b2J"]
ANSWER = """\
import json, sys
for line in sys.stdin:
    r = json.loads(line)
    for message in {messages}.get(r["op"], [{{"result": {{}}}}]):
        message = dict({{"id": r["id"]}}, **message) if isinstance(message, dict) else message
        print(message if isinstance(message, str) else json.dumps(message), flush=True)
"""


class Liar:
    """A service whose server's agent says what the test wants."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.agent = folder / "agent.py"
        self.capsys = capsys
        service = {"repository": "/srv/git/r.git", "root": str(folder / "srv")}
        (folder / "lightship.yml").write_text(json.dumps({"services": {"shop": service}}))
        monkeypatch.chdir(folder)
        monkeypatch.setattr(
            "lightship.operations.context.connect_local", lambda server: LocalTransport(self.agent, server=server.name)
        )

    def run(self, messages: dict[str, list[Any]], *arguments: str) -> tuple[int, str, str]:
        self.agent.write_text(f"nan, inf = float('nan'), float('inf')\n{ANSWER.format(messages=repr(messages))}")
        status = main_status(arguments)
        output = self.capsys.readouterr()
        assert (output.out + output.err).replace("\n", "").isprintable()
        return status, output.out, output.err


@pytest.fixture
def liar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Liar:
    return Liar(tmp_path, monkeypatch, capsys)


def facts(text: str = "x", **changes: Any) -> dict[str, Any]:
    release = {"commit": COMMIT, "created": 1.0, "state": text, "why": text, "subject": text, "fingerprint": text}
    worker = {"id": 1, "pid": 2, "release": COMMIT, "state": "serving", "time": 1.0}
    container = dict.fromkeys(("name", "id", "status", "started", "image", "image_id", "fingerprint", "reload"), text)
    return {
        "hostname": text, "python": text, "docker": {"version": text}, "git": text, "current": COMMIT, "stable": COMMIT,
        "previous": COMMIT, "releases": [release], "container": {**container, "instance": 1, "running": True},
        "slots": {text: {"release": COMMIT, "running": True, "workers": [worker], "generation": text}},
        "disk": {"free_bytes": 1, "free_inodes": 1}, "env_digest": text,
        "history": [{"id": text, "kind": text, "commit": COMMIT, "outcome": text, "started": 1.0, "seconds": 1.0}],
        **changes,
    }  # fmt: skip


def greeting(found: Any, **more: Any) -> dict[str, list[Any]]:
    return {"hello": [{"result": {"facts": found, "protocol": 1, "agent": "1", "fence": 1, "recovered": None, **more}}]}


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("command", ["status", "releases"])
def test_hostile_facts_are_shown_inert(liar: Liar, text: str, command: str) -> None:
    told = greeting(facts(text), recovered={"commit": text, "outcome": text, "reason": text})
    liar.run(told, command)
    status, out, err = liar.run(told, command, "--json")
    assert (status, err) in ((0, ""), (1, ""))
    assert json.loads(out)["result"]
    assert json.dumps(text)[1:-1] in out


def test_hostile_output_is_inert_on_a_terminal_and_in_json(liar: Liar, monkeypatch: pytest.MonkeyPatch) -> None:
    events = [{"event": "log", "stream": text, "text": text} for text in HOSTILE]
    events += [{"event": "step", "step": text, "state": "done", "seconds": text, "detail": text} for text in HOSTILE]
    told = {**greeting(facts()), "logs": [*events, {"result": {"status": 0}}]}
    status, out, _ = liar.run(told, "logs", "--json")
    assert status == 0
    assert [line["text"] for line in json.loads(out)["result"]["lines"]] == HOSTILE
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    status, out, _ = liar.run(told, "logs")
    assert status == 0
    assert "\\x1b[2J" in out


SHAPES: dict[str, Any] = {
    "no object": [],
    "a number for a commit": facts(current=5),
    "no number": facts(history=[{"started": math.nan}]),
    "a number past all bounds": facts(releases=[{"commit": COMMIT, "created": 10**400}]),
    "more than the machine has": facts(disk={"free_bytes": math.inf}),
    "a list for a text": facts(hostname=[["x"]]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_facts_of_a_wrong_shape_are_a_clear_error(liar: Liar, shape: str) -> None:
    status, out, _ = liar.run(greeting(SHAPES[shape]), "releases", "--json")
    error = json.loads(out)["error"]
    assert (status, error["code"]) == (3, "protocol")
    assert "facts" in error["message"]


LINES: dict[str, Any] = {
    "deep": '{"id": 1, "result": {"facts": ' + "[" * 500 + "]" * 500 + "}}",
    "a deep detail": {"error": {"message": "x", "detail": nested(450)}},
    "too deep for the parser": '{"id": 1, "result": ' + "[" * 100_000,
    "no JSON": "\x1b[2Jhello",
    "too long": "x" * (MAX_LINE + 10),
    "an error that is none": {"error": {"message": [1], "hint": {}, "code": 5, "outcome": ["refused"], "detail": 3}},
    "an answer to nothing": '{"id": 99, "result": {}}',
}


@pytest.mark.parametrize("name", LINES)
def test_lines_that_cannot_be_are_a_clear_error(liar: Liar, name: str) -> None:
    status, out, _ = liar.run({"hello": [LINES[name]]}, "releases", "--json")
    document = json.loads(out)
    assert status in (1, 3)
    assert document["error"]["message"]
    assert len(out) < 5000


def test_what_cannot_be_told_on_keeps_nobody_waiting(liar: Liar) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError("told wrong")

    async def go() -> None:
        liar.agent.write_text(ANSWER.format(messages={"ping": [{"event": "log"}, {"result": {}}]}))
        async with await Conversation.open(LocalTransport(liar.agent)) as conversation:
            await conversation.call("ping", on_event=broken, timeout=20)

    with pytest.raises(TransportError, match="told wrong"):
        asyncio.run(go())


def test_events_that_nobody_can_tell_of_end_nothing_and_hang_nothing(liar: Liar) -> None:
    seconds: list[Any] = [math.nan, math.inf, -1, 10**400, "1", [], None]
    events = [{"event": "step", "step": "x", "state": "done", "seconds": one, "detail": [one]} for one in seconds]
    told = {"hello": [*events, *greeting(facts())["hello"]]}
    assert liar.run(told, "releases")[0] == 0
