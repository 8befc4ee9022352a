"""Hands a trace to OpenTelemetry, when the environment asks for that as it would of any program.

The exporter reads all else than its name (headers, certificates, compression) from the environment by itself. Nothing
of OpenTelemetry is imported unless it is asked for. Nothing here ever raises: what went wrong is returned, in words.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightship.trace.spans import Span, Trace

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer

__all__ = ["PATIENCE", "export"]

#: So many seconds it may take at most to be rid of a trace; the command has said all by then.
PATIENCE = 5.0
_NOT_THERE = "it is not installed here: pip install 'lightship[otel]'"
_AT_ONCE = 512


def export(trace: Trace, name: str, patience: float = PATIENCE) -> str:
    """Export a trace; what went wrong, in words, or nothing."""
    said: list[str] = []
    # In a thread, since an exporter may try again for as long as it likes; the process does not wait for it.
    thread = threading.Thread(target=lambda: said.append(_export(trace, name)), daemon=True)
    thread.start()
    thread.join(patience)
    return said[0] if said else f"nobody took it within {patience:g} s"


def _export(trace: Trace, name: str) -> str:
    try:
        from opentelemetry.sdk.trace.export import SpanExportResult  # noqa: PLC0415

        exporter = _exporter(name)
    except ImportError:
        return _NOT_THERE
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    if exporter is None:
        return f"no exporter of the name {name[:60]!r} is installed" if name != "otlp_proto_http" else _NOT_THERE
    heard = _Heard()
    logger = logging.getLogger("opentelemetry")
    logger.addHandler(heard)
    logger.propagate = False
    try:
        spans = _spans(trace)
        for first in range(0, len(spans), _AT_ONCE):
            if exporter.export(spans[first : first + _AT_ONCE]) is not SpanExportResult.SUCCESS:
                return heard.last or "it was not taken"
        exporter.shutdown()
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    finally:
        logger.removeHandler(heard)
    return ""


class _Heard(logging.Handler):
    """Keeps what the exporter logs, which would else stand on the terminal in words of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the last line."""
        self.last = record.getMessage()[:300]


def _exporter(name: str) -> SpanExporter | None:
    """The exporter of that name among those that are installed; they register themselves."""
    from importlib.metadata import entry_points  # noqa: PLC0415

    for found in entry_points(group="opentelemetry_traces_exporter", name=name):
        made: SpanExporter = found.load()()
        return made
    return None


def _spans(trace: Trace) -> Sequence[ReadableSpan]:
    """The trace's spans as OpenTelemetry knows them, made by its own API with the times that they had."""
    from opentelemetry import propagate  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator  # noqa: PLC0415
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON  # noqa: PLC0415

    from lightship import __version__  # noqa: PLC0415

    kept: list[ReadableSpan] = []

    class Keep(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            kept.append(span)

    class Ids(RandomIdGenerator):
        def generate_trace_id(self) -> int:
            return int(trace.id, 16)

    # As the specification has it, OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES go before what the program says.
    resource = Resource({"service.name": "lightship", "service.version": __version__}).merge(
        Resource({key: value for key, value in Resource.create().attributes.items() if _is_told(key)})
    )
    provider = TracerProvider(resource=resource, id_generator=Ids(), sampler=ALWAYS_ON, shutdown_on_exit=False)
    provider.add_span_processor(Keep())
    # A pipeline that is traced itself names the span that this is part of.
    carrier = {key.lower(): os.environ[key] for key in ("TRACEPARENT", "TRACESTATE") if os.environ.get(key)}
    parent = propagate.extract(carrier) if carrier else None
    _make(provider.get_tracer("lightship", __version__), trace, trace.root, parent, _of_command(trace))
    return kept


def _is_told(key: str) -> bool:
    """Whether an attribute of the resource is one that the environment says."""
    named = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if key == "service.name":
        return bool(os.environ.get("OTEL_SERVICE_NAME")) or "service.name=" in named
    return key.startswith("telemetry.") or f"{key}=" in named


def _make(tracer: Tracer, trace: Trace, span: Span, parent: Context | None, attributes: Mapping[str, Any]) -> None:
    from opentelemetry.trace import Status, StatusCode, set_span_in_context  # noqa: PLC0415

    def moment(seconds: float) -> int:
        # A float that counts from 1970 has no digits left for billionths of a second.
        return round((trace.began + seconds) * 1e6) * 1000

    made = tracer.start_span(span.name, context=parent, attributes=dict(attributes), start_time=moment(span.start))
    if span.state != "done":
        made.set_status(Status(StatusCode.ERROR, trace.error if span is trace.root else span.state))
    inside = set_span_in_context(made)
    for one in span.children:
        _make(tracer, trace, one, inside, _of_span(trace, one))
    made.end(end_time=moment(span.end))


def _of_command(trace: Trace) -> dict[str, Any]:
    """What is said of the whole command."""
    found = {
        "lightship.rollout": trace.id,
        "lightship.service": trace.service,
        "lightship.kind": trace.kind,
        "lightship.ref": trace.ref,
        "lightship.commit": trace.commit,
        "lightship.previous": trace.previous,
        "lightship.outcome": trace.outcome,
        "lightship.error": trace.error,
        "lightship.servers": trace.servers,
    }
    return {key: value for key, value in found.items() if value not in ("", None)}


def _of_span(trace: Trace, span: Span) -> dict[str, Any]:
    """What is said of one span."""
    found: dict[str, Any] = {"lightship.grade": span.grade}
    if span.server:
        found["lightship.server"] = span.server
    if span.grade == "phase":
        found["lightship.phase"] = span.name
        found["lightship.outcome"] = trace.outcomes.get(span.server, "")
    if trace.commit and span.server:
        found["lightship.commit"] = trace.commit
    return found
