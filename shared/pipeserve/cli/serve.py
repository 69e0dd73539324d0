"""``pipeserve serve``: everything on one machine: the store, the HTTP service and worker processes.

This process runs no pipeline. It owns the store, starts ``pipeserve_api`` and ``pipeserve_worker`` as processes, starts
one again that dies, and ends them in order: first both (they drain together), then the store that they write to.

Ctrl-C is how one ends it, so the exit code after it is 0: ``make run`` then ends without an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeserve.cli.banner import Service, banner
from pipeserve.cli.children import Child, StartError
from pipeserve.cli.extras import require_server
from pipeserve.cli.output import tell
from pipeserve.cli.port import free_port
from pipeserve.cli.readiness import Readiness
from pipeserve.errors import ConfigurationError
from pipeserve.settings import DeploymentSettings, ServiceSettings, StoreSettings, WorkerSettings

if TYPE_CHECKING:
    from pipeserve.runtime.ports import DeploymentRegistry
    from pipeserve.sdk.deployment import Deployment
    from pipeserve.store import Store

DRAIN_SECONDS = 1.0
"""What running jobs get after Ctrl-C unless PIPESERVE_DRAIN_SECONDS says: one doesn't want to wait at a terminal. What
does not end in time goes back to the queue and costs no attempt."""
KILL_AFTER = 1.75
"""Seconds past the drain before a part is killed. Longer than what a part needs then by its own rules: the API half a
second for its calls and one for its connections, a worker half a second for its jobs and as much for its threads. And
with ``DRAIN_SECONDS`` less than three: nobody waits longer at a terminal."""
AT_ONCE_GRACE = 0.3
"""Seconds that a part has after the second Ctrl-C."""


def serve(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[TARGET]",
            help="package.module:pipeline or path/file.py:pipeline; without: ZENML_PIPELINE_DEPLOYMENT_ID is served.",
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (ZENML_SERVICE_HOST).")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on (ZENML_SERVICE_PORT); 0 takes a free one.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes (PIPESERVE_WORKER_PROCESSES).")] = None,
) -> None:
    """Deploy TARGET and serve it on this machine: store, HTTP service and workers, until Ctrl-C.

    Jobs are kept in an embedded Valkey under PIPESERVE_DATA_DIR, or in the Redis at PIPESERVE_REDIS_URL.
    """
    require_server()
    plan = ServePlan(
        target=target,
        service=ServiceSettings.from_environment(host=host, port=port),
        worker=WorkerSettings.from_environment(
            processes=workers, drain_seconds=None if "PIPESERVE_DRAIN_SECONDS" in os.environ else DRAIN_SECONDS
        ),
        store=StoreSettings.from_environment(),
        deployment=DeploymentSettings.from_environment(),
    )
    if target is None:
        plan.deployment.required()
    asyncio.run(run_service(plan))


@dataclass(frozen=True, slots=True)
class ServePlan:
    """What to serve, and how."""

    target: str | None
    service: ServiceSettings
    worker: WorkerSettings
    store: StoreSettings
    deployment: DeploymentSettings


@dataclass(frozen=True, slots=True)
class StopSignals:
    """Set by SIGINT, SIGTERM and SIGHUP: the first asks for the end, the second for the end at once."""

    asked: asyncio.Event = field(default_factory=asyncio.Event)
    at_once: asyncio.Event = field(default_factory=asyncio.Event)

    @contextmanager
    def installed(self) -> Generator[None]:
        """Take the signals over from Python's defaults."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, self._received)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _received(self) -> None:
        (self.at_once if self.asked.is_set() else self.asked).set()


async def run_service(plan: ServePlan) -> None:
    """Serve until a signal. Raises ConfigurationError, TargetError, StartError, … when it can't begin."""
    from pipeserve.store import open_store

    port = free_port(plan.service.host, plan.service.port)
    stop = StopSignals()
    with stop.installed():
        async with open_store(plan.store) as store:
            deployment = await _find_deployment(plan, store.registry)
            children = _children(plan, deployment, store.url, port)
            running = [asyncio.create_task(child.run(), name=child.name) for child in children]
            try:
                await _serve_until_asked(plan, deployment, store, port, children, running, stop)
            finally:
                await _end(children, running, stop, plan.worker.drain_seconds + KILL_AFTER)


async def _serve_until_asked(
    plan: ServePlan,
    deployment: Deployment,
    store: Store,
    port: int,
    children: list[Child],
    running: list[asyncio.Task[None]],
    stop: StopSignals,
) -> None:
    asked = asyncio.create_task(stop.asked.wait())
    readiness = Readiness(plan.service.host, port, workers=plan.worker.processes)
    ready = asyncio.create_task(readiness.wait(store, deployment.id))
    try:
        await asyncio.wait([*running, ready, asked], return_when=asyncio.FIRST_COMPLETED)
        _raise_failures(running)
        if asked.done():
            return
        await ready
        for child in children:
            child.proven = True
        sys.stdout.write(
            banner(
                Service(
                    url=readiness.url,
                    deployment=deployment,
                    worker_processes=plan.worker.processes,
                    store=_describe_store(plan.store),
                    needs_key=plan.service.auth_key is not None,
                )
            )
        )
        sys.stdout.flush()
        await asyncio.wait([*running, asked], return_when=asyncio.FIRST_COMPLETED)
        _raise_failures(running)
    finally:
        for task in (ready, asked):
            task.cancel()
        await asyncio.gather(ready, asked, return_exceptions=True)


async def _find_deployment(plan: ServePlan, registry: DeploymentRegistry) -> Deployment:
    from pipeserve.sdk.snapshot import snapshot
    from pipeserve.sdk.target import load_target

    if plan.target is not None:
        loaded = load_target(plan.target)
        return await registry.save(snapshot(loaded.pipeline, loaded.target))
    wanted = plan.deployment.required()
    found = await registry.get(wanted)
    if found is None:
        raise ConfigurationError(
            f"ZENML_PIPELINE_DEPLOYMENT_ID={wanted}: there is no such deployment in {_describe_store(plan.store)}; "
            "`pipeserve deployments` lists those that are there, `pipeserve deploy TARGET` makes one"
        )
    return found


def _children(plan: ServePlan, deployment: Deployment, store_url: str, port: int) -> list[Child]:
    environment = {
        **os.environ,
        "PIPESERVE_DRAIN_SECONDS": f"{plan.worker.drain_seconds:g}",
        "PIPESERVE_REDIS_URL": store_url,
        "ZENML_PIPELINE_DEPLOYMENT_ID": deployment.id,
        "ZENML_SERVICE_HOST": plan.service.host,
        "ZENML_SERVICE_PORT": str(port),
    }
    python = (sys.executable, "-m")
    workers = ("pipeserve_worker", "--processes", str(plan.worker.processes))
    return [
        Child("the API", (*python, "pipeserve_api"), environment),
        Child("the workers' supervisor", (*python, *workers), environment),
    ]


async def _end(children: list[Child], running: list[asyncio.Task[None]], stop: StopSignals, grace: float) -> None:
    """Ask all to end; kill what is left after ``grace`` seconds, or soon after the second signal."""
    for child in children:
        child.end()
    at_once = asyncio.create_task(stop.at_once.wait())
    everything = asyncio.gather(*running, return_exceptions=True)
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait([everything, at_once], timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        if at_once.done():
            for child in children:
                child.end()
            await asyncio.wait([everything], timeout=AT_ONCE_GRACE)
    at_once.cancel()
    if not everything.done():
        left = [child for child, task in zip(children, running, strict=True) if not task.done()]
        tell(f"pipeserve: killing {' and '.join(child.name for child in left)}")
        for child in left:
            child.kill()
    await everything


def _raise_failures(running: list[asyncio.Task[None]]) -> None:
    for task in running:
        if task.done():
            task.result()
            raise StartError(f"{task.get_name()} ended")


def _describe_store(settings: StoreSettings) -> str:
    if settings.redis_url is not None:
        from pipeserve.store.address import masked

        return masked(settings.redis_url)
    return f"embedded Valkey under {_short_path(settings.data_dir)}"


def _short_path(path: Path) -> str:
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)
