"""Export to OpenTelemetry: against a receiver of OTLP by HTTP, and against what is not there."""

from __future__ import annotations

import http.server
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from lightship.trace.asked import exporter_name
from lightship.trace.export import export
from lightship.trace.spans import Span, Trace

COMMIT = "b" * 40
ROOT = Span(
    "deploy", 0.0, 2.0, grade="command", state="failed",
    children=(
        Span("connect", 0.25, 0.5, grade="stage"),
        Span("prepare", 0.5, 1.5, "web1", "phase", "failed", (Span("boot", 0.75, 1.5, "web1", state="failed"),)),
    ),
)  # fmt: skip
TRACE = Trace(
    "0123456789abcdef" * 2, "deploy", "shop", 1700000000.5, "me", ROOT, "refused", "code", "main", COMMIT, None,
    "boot-failed", {"web1": "refused"}, 1,
)  # fmt: skip


class Receiver:
    """What a collector has at /v1/traces; ``answer`` is its status, after ``seconds``."""

    def __init__(self, answer: int = 200, seconds: float = 0.0) -> None:
        self.requests: list[tuple[str, dict[str, str], ExportTraceServiceRequest]] = []
        self.answer, self.seconds = answer, seconds

    @contextmanager
    def running(self) -> Iterator[str]:
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(receiver.seconds)
                receiver.requests.append((self.path, dict(self.headers), ExportTraceServiceRequest.FromString(body)))
                self.send_response(receiver.answer)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    before = set(threading.enumerate())
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "TRACEPARENT", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # Seconds after which an exporter gives up that nobody waits for any more.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3")
    yield monkeypatch
    # It draws random numbers between its attempts, which the tests after this one count on having to themselves.
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
        assert not thread.is_alive(), thread


def values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


def exported(receiver: Receiver) -> tuple[dict[str, Any], dict[str, Any]]:
    """The resource, and the spans by name."""
    (_, _, request) = receiver.requests[0]
    (group,) = request.resource_spans
    return values(group.resource.attributes), {span.name: span for one in group.scope_spans for span in one.spans}


def test_a_collector_gets_the_whole_tree_with_its_times(plain_environment: pytest.MonkeyPatch) -> None:
    receiver = Receiver()
    with receiver.running() as address:
        plain_environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        plain_environment.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=abc")
        assert export(TRACE, exporter_name()) == ""
    path, headers, _ = receiver.requests[0]
    resource, spans = exported(receiver)
    assert path == "/v1/traces"
    assert {name.lower(): value for name, value in headers.items()}["x-key"] == "abc"
    assert resource["service.name"] == "lightship"
    assert set(spans) == {"deploy", "connect", "prepare", "boot"}
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE.id}
    assert spans["deploy"].parent_span_id == b""
    assert spans["prepare"].parent_span_id == spans["deploy"].span_id
    assert spans["boot"].parent_span_id == spans["prepare"].span_id
    assert (spans["boot"].start_time_unix_nano, spans["boot"].end_time_unix_nano) == (
        1700000001_250000000,
        1700000002_000000000,
    )
    told = values(spans["deploy"].attributes)
    assert told["lightship.commit"] == COMMIT
    assert (told["lightship.outcome"], told["lightship.kind"], told["lightship.error"]) == (
        "refused",
        "code",
        "boot-failed",
    )
    assert values(spans["prepare"].attributes) == {
        "lightship.grade": "phase", "lightship.server": "web1", "lightship.phase": "prepare",
        "lightship.outcome": "refused", "lightship.commit": COMMIT,
    }  # fmt: skip
    assert spans["prepare"].status.code == 2
    assert spans["connect"].status.code == 0


def test_a_pipeline_that_is_traced_itself_is_what_it_is_part_of(plain_environment: pytest.MonkeyPatch) -> None:
    receiver = Receiver()
    with receiver.running() as address:
        plain_environment.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{address}/v1/traces")
        plain_environment.setenv("TRACEPARENT", f"00-{'ab' * 16}-{'cd' * 8}-01")
        plain_environment.setenv("OTEL_SERVICE_NAME", "deploys")
        assert export(TRACE, exporter_name()) == ""
    resource, spans = exported(receiver)
    assert spans["deploy"].trace_id.hex() == "ab" * 16
    assert spans["deploy"].parent_span_id.hex() == "cd" * 8
    assert values(spans["deploy"].attributes)["lightship.rollout"] == TRACE.id
    assert resource["service.name"] == "deploys"


def unused_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def test_a_collector_that_is_not_there_costs_a_word_and_no_more_than_its_time(
    plain_environment: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plain_environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{unused_port()}")
    began = time.monotonic()
    assert export(TRACE, exporter_name(), 1.0)
    assert time.monotonic() - began < 3
    assert capfd.readouterr() == ("", ""), "the exporter's own words are not for the terminal"


def test_a_collector_that_does_not_answer_is_waited_for_so_long(plain_environment: pytest.MonkeyPatch) -> None:
    with Receiver(seconds=2.0).running() as address:
        plain_environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        began = time.monotonic()
        assert export(TRACE, exporter_name(), 0.5) == "nobody took it within 0.5 s"
        assert time.monotonic() - began < 1.5


def test_a_collector_that_says_no_is_told_of(plain_environment: pytest.MonkeyPatch) -> None:
    with Receiver(answer=401).running() as address:
        plain_environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        assert "401" in export(TRACE, exporter_name())


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, ""),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, ""),
        ({"OTEL_SDK_DISABLED": "TRUE", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, "otlp_proto_http"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, "otlp_proto_http"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "otlp_proto_http"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "otlp_proto_grpc"),
        ({"OTEL_TRACES_EXPORTER": "console,otlp"}, "console"),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://x"}, ""),
    ],
)
def test_the_environment_asks_for_it_as_of_any_program(environment: dict[str, str], name: str) -> None:
    assert exporter_name(environment) == name


def test_an_exporter_that_is_not_installed_is_named() -> None:
    assert "no exporter of the name 'zebra'" in export(TRACE, "zebra")


def test_without_opentelemetry_the_word_is_how_to_install_it() -> None:
    script = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from lightship.trace.export import export; from lightship.trace.spans import Span, Trace\n"
        "print(export(Trace('0' * 32, 'deploy', 'shop', 1.0, 'me', Span('deploy', 0, 1)), 'otlp_proto_http'))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert "pip install 'lightship[otel]'" in done.stdout
