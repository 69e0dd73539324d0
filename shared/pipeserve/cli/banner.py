"""What ``serve`` says once the service answers: where it is, and three calls to try that work as they stand."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson

from pipeserve.cli.samples import sample_parameters

if TYPE_CHECKING:
    from pipeserve.sdk.deployment import Deployment

_PLACES = (
    ("/docs", "the interface, to read and to try"),
    ("/info", "the pipeline: its steps, what goes in, what comes out"),
    ("/jobs", "the jobs"),
    ("/metrics", "figures"),
    ("/status", "the processes and their configuration"),
)


@dataclass(frozen=True, slots=True)
class Service:
    """What the banner tells of."""

    url: str
    deployment: Deployment
    worker_processes: int
    store: str
    """Where the jobs are kept, for people."""
    needs_key: bool


def banner(service: Service) -> str:
    """The text, several lines."""
    deployment = service.deployment
    workers = f"{service.worker_processes} worker process{'' if service.worker_processes == 1 else 'es'}"
    width = max(len(path) for path, _ in _PLACES) + 2
    calls = "\n\n".join(f"  # {what}\n  {line}" for what, line in curl_lines(service))
    places = "\n".join(f"  {service.url}{path.ljust(width)}{what}" for path, what in _PLACES)
    return f"""
Serving {deployment.pipeline_name} at {service.url}
deployment {deployment.id}, {workers}, jobs in {service.store}

{places}

Try it from another terminal:

{calls}

Ctrl-C ends it.
"""


def curl_lines(service: Service) -> list[tuple[str, str]]:
    """What each call does, and the line that makes it."""
    body = orjson.dumps({"parameters": sample_parameters(service.deployment.input_schema)}).decode()
    # The key stays in the environment: what a terminal shows is often copied on.
    key = ' -H "Authorization: Bearer ${ZENML_SERVING_AUTH_KEY%%,*}"' if service.needs_key else ""
    data = f"{key} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    invoke = f"{service.url}/invoke"
    return [
        ("the answer at once", f"curl -s {invoke}{data}"),
        ("as a job of the workers: the answer says where it can be followed", f"curl -s '{invoke}?mode=async'{data}"),
        ("every event as it happens", f"curl -s --no-buffer {invoke} -H 'Accept: text/event-stream'{data}"),
    ]
