"""``pipeserve api`` and ``pipeserve worker``: one part of the service each, in the foreground.

This process becomes the part (``exec``): signals, exit code and log are the part's own, and nothing stands in between.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from pipeserve.cli.extras import require_server
from pipeserve.settings import DeploymentSettings, ServiceSettings, WorkerSettings


def api(
    host: Annotated[str | None, typer.Option(help="Address to listen on (ZENML_SERVICE_HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (ZENML_SERVICE_PORT).")] = None,
) -> None:
    """Run the HTTP service of one deployment, which ZENML_PIPELINE_DEPLOYMENT_ID names."""
    DeploymentSettings.from_environment().required()
    settings = ServiceSettings.from_environment(host=host, port=port)
    environment = {"ZENML_SERVICE_HOST": settings.host, "ZENML_SERVICE_PORT": str(settings.port)}
    _become("pipeserve_api", environment=environment)


def worker(
    processes: Annotated[int | None, typer.Option(help="Worker processes (PIPESERVE_WORKER_PROCESSES).")] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Jobs at once in each (PIPESERVE_WORKER_CONCURRENCY).")
    ] = None,
    max_jobs_per_child: Annotated[
        int | None, typer.Option(help="Jobs after which a process is replaced (PIPESERVE_MAX_JOBS_PER_CHILD).")
    ] = None,
    max_rss: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory above which one is replaced, such as 2GiB (PIPESERVE_MAX_RSS)."),
    ] = None,
) -> None:
    """Run queued jobs of one deployment, which ZENML_PIPELINE_DEPLOYMENT_ID names."""
    DeploymentSettings.from_environment().required()
    settings = WorkerSettings.from_environment(
        processes=processes, concurrency=concurrency, max_jobs_per_child=max_jobs_per_child, max_rss=max_rss
    )
    arguments = ["--processes", str(settings.processes), "--concurrency", str(settings.concurrency)]
    if settings.max_jobs_per_child is not None:
        arguments += ["--max-jobs-per-child", str(settings.max_jobs_per_child)]
    if settings.max_rss is not None:
        arguments += ["--max-rss", str(int(settings.max_rss))]
    _become("pipeserve_worker", *arguments)


def _become(module: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
    require_server()
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], os.environ | (environment or {}))
