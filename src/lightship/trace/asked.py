"""Whether the environment asks for traces to be exported, in the words of OpenTelemetry's own specification."""

from __future__ import annotations

import os
from collections.abc import Mapping

__all__ = ["exporter_name"]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_BY_PROTOCOL = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}


def exporter_name(environment: Mapping[str, str] | None = None) -> str:
    """The exporter that the environment asks for, as OpenTelemetry's packages call it; empty when it asks for none."""
    env = os.environ if environment is None else environment
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ""
    named = env.get("OTEL_TRACES_EXPORTER", "").partition(",")[0].strip()
    if not named and not any(env.get(name) for name in _ENDPOINTS):
        return ""
    if named in ("", "otlp"):
        protocol = next((env[name].strip() for name in _PROTOCOLS if env.get(name, "").strip()), "http/protobuf")
        return _BY_PROTOCOL.get(protocol, protocol)
    return "" if named == "none" else named
