"""``GET /metrics`` as Prometheus text.

Two kinds of families. What the store counts is the whole service's: each process that is scraped tells the same, so a
query takes the greatest (``max by (pipeline)``), never the sum. What one process counts has the label ``process``, and
is to be summed. ``docs/operations.md`` has a table of all.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from pipeserve_api.figures_reader import Reading
from pipeserve_api.process_families import ProcessFamilies
from pipeserve_api.service_families import ServiceFamilies
from pipeserve_api.services import Services


def wants_text(accept: str) -> bool:
    """Whether an ``Accept`` header names one of Prometheus's formats."""
    return "application/openmetrics-text" in accept or "text/plain" in accept


def exposition(services: Services, reading: Reading, accept: str) -> tuple[bytes, str]:
    """All figures in the text format that ``accept`` asks for, and its media type."""
    registry = CollectorRegistry(auto_describe=False)  # one for each scrape: nothing is kept in the module
    registry.register(ProcessFamilies(services, reading))
    if reading.figures is not None:
        # Without the store they are left out. Zeros would be taken for a restart, and what comes after for new runs.
        registry.register(ServiceFamilies(services.definition.name, reading.figures))
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type
