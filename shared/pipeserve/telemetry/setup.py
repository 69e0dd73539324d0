"""Whether this process tells of traces, and to whom.

The switch is OpenTelemetry's own environment. A tracer provider that the program, or a pipeline's module, has set up is
used as it is. Tracing that can't be set up is said in the log, and the service runs without.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from pipeserve.settings import TracingSettings

if TYPE_CHECKING:
    from pipeserve.runtime.tracing import Tracing

_log = logging.getLogger(__name__)


def open_tracing(settings: TracingSettings, service_name: str) -> Tracing | None:
    """The tracing that the environment asks for; None: none, or it can't be had, which the log says then.

    ``service_name``: what this process is called unless ``OTEL_SERVICE_NAME`` or ``OTEL_RESOURCE_ATTRIBUTES`` say. Its
    provider becomes the process's, so that spans which a pipeline's own code makes are in the same traces.
    """
    exporters = settings.exporters
    if not exporters:
        return None
    try:
        from pipeserve.telemetry.provider import UnknownExporterError, new_provider, place_of
    except ImportError:
        _log.warning(
            "traces are asked for by %s, and OpenTelemetry is not installed: pip install 'pipeserve[otel]'",
            settings.asked_by,
        )
        return None
    existing = existing_tracing()
    if existing is not None:
        _log.info("traces go where the process's own OpenTelemetry set-up sends them")
        return existing
    try:
        provider = new_provider(exporters, service_name)
    except UnknownExporterError as error:
        _log.warning("traces are off: %s", error)
        return None
    from opentelemetry import trace

    from pipeserve.telemetry.spans import OpenTelemetry

    trace.set_tracer_provider(provider)
    _log.info("tracing", extra={"exporter": ",".join(exporters), "to": place_of(exporters)})
    return OpenTelemetry(provider, owned=True)


def existing_tracing() -> Tracing | None:
    """Tracing by the provider that somebody else has set up in this process; None: nobody has."""
    module = sys.modules.get("opentelemetry.trace")
    if module is None:  # whoever sets one up imports this
        return None
    from opentelemetry import trace

    provider = trace.get_tracer_provider()
    if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
        return None
    from pipeserve.telemetry.spans import OpenTelemetry

    return OpenTelemetry(provider, owned=False)
