"""A tracer provider as OpenTelemetry's environment describes it, with exporters that work in the background."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import entry_points
from urllib.parse import urlsplit

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

_GROUP = "opentelemetry_traces_exporter"
_OTLP = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}


class UnknownExporterError(Exception):
    """There is no such exporter here. The message is a sentence for the operator."""


def new_provider(exporters: Sequence[str], service_name: str) -> TracerProvider:
    """A provider that sends spans to each of ``exporters``. Raises UnknownExporterError.

    Sampling, limits, the exporters' addresses and headers are read from the environment by OpenTelemetry itself.
    """
    given = Resource.create({"service.instance.id": f"{os.uname().nodename}:{os.getpid()}"})
    if str(given.attributes.get("service.name", "unknown_service")).startswith("unknown_service"):
        given = given.merge(Resource({"service.name": service_name}))
    # At exit it would wait for an exporter for as long as that likes; `close` waits for a bounded time.
    provider = TracerProvider(resource=given, shutdown_on_exit=False)
    for name in exporters:
        provider.add_span_processor(BatchSpanProcessor(_new_exporter(name)))
    return provider


def place_of(exporters: Sequence[str]) -> str:
    """Where the spans go, in a word for the log, without what may be secret of it."""
    if "otlp" not in exporters:
        return "-"
    url = urlsplit(
        os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        or "http://localhost:4318"
    )
    return url.netloc.rpartition("@")[2]


def _new_exporter(name: str) -> SpanExporter:
    entry = name
    if name == "otlp":
        protocol = (
            os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
            or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
            or "http/protobuf"
        )
        entry = _OTLP.get(protocol, protocol)
    found = next(iter(entry_points(group=_GROUP, name=entry)), None)
    if found is None:
        known = ", ".join(sorted(entry_points(group=_GROUP).names))
        raise UnknownExporterError(f"no exporter {entry!r} is installed (there are: {known})")
    try:
        return found.load()()
    except Exception as error:  # whatever an exporter raises for its settings: traces must not keep a service down
        raise UnknownExporterError(f"the exporter {entry!r} can't be used: {type(error).__name__}") from error
