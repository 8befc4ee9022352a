"""Where a deploy's time goes: spans from its events, kept, explained, and exported to whoever collects them."""

from __future__ import annotations

from lightship.trace.recorder import Recorder
from lightship.trace.spans import Span, Trace

__all__ = ["Recorder", "Span", "Trace"]
