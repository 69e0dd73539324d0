"""What an operator, a load balancer and a scraper ask: health, what is served, figures, configuration."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Header, Query
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from pipeserve.errors import DrainingError, ProblemError, StoreUnavailableError
from pipeserve.events import rfc3339
from pipeserve_api import metrics, prometheus
from pipeserve_api.dependencies import ServicesDep
from pipeserve_api.drill import DrillReport
from pipeserve_api.exposure import exposure
from pipeserve_api.models import Health
from pipeserve_api.openapi import problems
from pipeserve_api.problems import error_response
from pipeserve_api.services import Services

router = APIRouter(tags=["operations"])
JSON = "application/json"


@router.get(
    "/health",
    response_model=Health,
    responses={503: {"model": Health, "description": "Unhealthy: ``problems`` says why"}},
    summary="Whether the service is healthy, for people",
)
async def health(services: ServicesDep) -> Response:
    """``problems`` says in sentences what is wrong; the status is then 503."""
    error = await _unready(services)
    last = await _last_execution(services, ask_store=error is None)  # a frozen store makes each question slow
    body = {
        "status": "healthy" if error is None else "unhealthy",
        "deployment_id": services.deployment.id,
        "pipeline_name": services.definition.name,
        "uptime": time.time() - services.started_at,
        "last_execution": None if last is None else rfc3339(last),
        "problems": [] if error is None else [item["detail"] for item in error.errors or []] or [error.detail],
    }
    return Response(orjson.dumps(body), 200 if error is None else 503, media_type=JSON)


@router.get("/health/live", summary="Whether the process answers")
async def live() -> Response:
    """200 for as long as the process can answer at all."""
    return Response(b'{"status":"alive"}', media_type=JSON)


@router.get("/health/ready", responses=problems(503), summary="Whether to send requests here")
async def ready(request: Request, services: ServicesDep) -> Response:
    """200 when the store is reachable and fit to keep jobs, and the process does not drain. Otherwise 503 says why.

    ``warnings`` says where strangers can call the service.
    """
    error = await _unready(services)
    if error is not None:
        return error_response(error, instance=request.url.path)
    body: dict[str, Any] = {"status": "ready", "deployment_id": services.deployment.id}
    said = exposure(services.settings.service)
    if said is not None:
        body["warnings"] = [said]
    return Response(orjson.dumps(body), media_type=JSON)


async def _unready(services: Services) -> ProblemError | None:
    if services.drain.begun:
        return DrainingError()
    try:
        faults = await services.operations.check()
    except ProblemError as error:
        return error
    if faults:
        return StoreUnavailableError(
            f"The job store is not fit to keep jobs: {' '.join(faults)}",
            errors=[{"name": "store", "type": "unfit", "detail": fault} for fault in faults],
        )
    return None


async def _last_execution(services: Services, *, ask_store: bool) -> float | None:
    """Unix time at which the last run of the whole service ended, as far as can be told now."""
    times = [services.inline.figures().last_execution]
    if ask_store:
        with suppress(StoreUnavailableError):  # then this process's own runs are what can be told
            times.append((await services.operations.figures()).last_execution)
    return max((moment for moment in times if moment is not None), default=None)


@router.get("/info", summary="What is served")
async def info(services: ServicesDep) -> Response:
    """The pipeline, its steps and schemas, and the deployment."""
    deployment = services.deployment
    body = {
        "pipeline": {
            "name": deployment.pipeline_name,
            "description": deployment.description,
            "dynamic": deployment.dynamic,
            "steps": deployment.steps,
            "input_schema": deployment.input_schema,
            "output_schema": deployment.output_schema,
        },
        "deployment": {
            "id": deployment.id,
            "name": deployment.name,
            "target": deployment.target,
            "created_at": deployment.created_at,
            "source": deployment.source,
            "fingerprint": deployment.fingerprint,
            "capture": deployment.capture,
        },
        "version": package_version(),
    }
    return Response(orjson.dumps(body, option=orjson.OPT_UTC_Z), media_type=JSON)


@router.get(
    "/metrics",
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    summary="The whole service's figures",
)
async def get_metrics(
    services: ServicesDep,
    accept: Annotated[str, Header(include_in_schema=False)] = "*/*",
    format_: Annotated[Literal["json", "prometheus"] | None, Query(alias="format")] = None,
) -> Response:
    """JSON; Prometheus text where ``Accept`` names it, or with ``?format=prometheus``.

    While the store is away, ``store_available`` is false and the figures are this process's own.
    """
    reading = await services.figures.read()
    if format_ == "prometheus" or (format_ is None and prometheus.wants_text(accept)):
        body, media_type = prometheus.exposition(services, reading, accept)
        return Response(body, headers={"content-type": media_type, "vary": "Accept"})
    body = orjson.dumps(metrics.collect(services, reading.figures))
    return Response(body, headers={"vary": "Accept"}, media_type=JSON)


@router.get("/status", summary="How the service is set up")
async def status(services: ServicesDep) -> Response:
    """The configuration with its secrets masked, the processes that run jobs, and the last drill's report.

    ``store`` has ``warnings``, in sentences, and ``emptied_at``: when it was noticed that all jobs had gone from it.
    """
    workers: list[dict[str, Any]] = []
    drill: Mapping[str, object] | None = None
    store = dict(services.operations.describe())
    try:
        workers = [asdict(worker) for worker in (await services.operations.figures()).workers]
        drill = await services.operations.last_drill()
        store |= await services.operations.condition()
        state = "draining" if services.drain.begun else "running"
    except StoreUnavailableError:
        state = "store_unavailable"
    body = {
        "service_name": services.deployment.name,
        "version": package_version(),
        "deployment_id": services.deployment.id,
        "status": state,
        "started_at": rfc3339(services.started_at),
        "configuration": services.settings.masked(),
        "workers": workers,
        "store": store,
        "last_drill": drill,
    }
    return Response(orjson.dumps(body), media_type=JSON)


@router.put(
    "/status/drill",
    status_code=204,
    responses=problems(400, 422, 503),
    summary="Tell the figures of a drill",
)
async def put_drill(report: DrillReport, services: ServicesDep) -> Response:
    """``GET /status`` shows them as ``last_drill``, in place of those before."""
    await services.operations.tell_drill(report.model_dump_json().encode())
    return Response(status_code=204)


@router.get("/", include_in_schema=False)
async def landing(services: ServicesDep) -> Response:
    """A page to start from."""
    name = services.definition.name  # a Python identifier: nothing to escape
    links = "".join(
        f'<li><a href="{path}">{path}</a></li>' for path in ("/docs", "/info", "/jobs", "/metrics", "/health")
    )
    return HTMLResponse(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title>'
        f"<h1>{name}</h1><p>Served by pipeserve {package_version()}.</p><ul>{links}</ul></html>"
    )


def package_version() -> str:
    """The version of the installed package."""
    try:
        return version("pipeserve")
    except PackageNotFoundError:  # a source tree on the path
        return "0.0.0"
