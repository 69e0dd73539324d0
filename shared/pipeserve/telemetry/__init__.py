"""Traces for OpenTelemetry. The only room that imports it, and only once it is known to be wanted."""

from __future__ import annotations

from pipeserve.telemetry.setup import existing_tracing, open_tracing

__all__ = ["existing_tracing", "open_tracing"]
