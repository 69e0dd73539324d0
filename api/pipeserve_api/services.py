"""Everything that an API process has open, as one frozen value, and how it comes to be.

There are two ways in: :func:`open_services` starts from settings, as ``python -m pipeserve_api`` does;
:func:`services_over` takes a pipeline and a store, for tests and for a service inside another program.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeserve import __version__
from pipeserve.errors import StoreUnavailableError
from pipeserve.runtime.cache.teller import CacheTeller
from pipeserve.runtime.deployed import find_deployment
from pipeserve.runtime.inline import InlineRuns
from pipeserve.runtime.ports import (
    Attachments,
    CancelSignals,
    EventLog,
    JobLedger,
    Leases,
    Limits,
    Operations,
    SharedCache,
    WebhookOutbox,
)
from pipeserve.runtime.realtime import RealtimeRuntime
from pipeserve.runtime.tasks import end_tasks
from pipeserve.runtime.tracing import Tracing
from pipeserve.runtime.upkeep import Upkeep
from pipeserve.runtime.values.artifact_writer import ArtifactWriter
from pipeserve.runtime.values.artifacts import ArtifactStore
from pipeserve.sdk.definition import PipelineDefinition
from pipeserve.sdk.deployment import Deployment
from pipeserve.sdk.pipeline import Pipeline
from pipeserve.sdk.snapshot import check_code
from pipeserve.sdk.target import load_target
from pipeserve.telemetry import existing_tracing
from pipeserve.webhooks import Signer
from pipeserve_api.drain import Drain
from pipeserve_api.figures_reader import FiguresReader
from pipeserve_api.forecast import Forecast
from pipeserve_api.limits import CallLimits
from pipeserve_api.lookup import JobDirectory
from pipeserve_api.loop_lag import LoopLag
from pipeserve_api.request_figures import RequestFigures
from pipeserve_api.schemas import InvocationReader
from pipeserve_api.settings import ApiSettings
from pipeserve_api.tokens import TokenSigner, signing_keys

SIGNALS_RETRY = 1.0
"""Seconds between tries to listen for cancels while the store is away."""


class Backend(Protocol):
    """One deployment's part of a store."""

    @property
    def ledger(self) -> JobLedger: ...
    @property
    def log(self) -> EventLog: ...
    @property
    def signals(self) -> CancelSignals: ...
    @property
    def operations(self) -> Operations: ...
    @property
    def attachments(self) -> Attachments: ...
    @property
    def cache(self) -> SharedCache: ...
    @property
    def webhooks(self) -> WebhookOutbox: ...
    @property
    def limits(self) -> Limits: ...


@dataclass(frozen=True, slots=True)
class Services:
    """What the routes work with. It lives from the start of the process to its end."""

    settings: ApiSettings
    deployment: Deployment
    definition: PipelineDefinition
    invocations: InvocationReader
    runtime: RealtimeRuntime
    inline: InlineRuns
    ledger: JobLedger
    log: EventLog
    operations: Operations
    directory: JobDirectory
    forecast: Forecast
    artifacts: ArtifactStore
    cache_teller: CacheTeller | None
    """None: what this process's step cache holds is told to nobody."""
    drain: Drain
    tokens: TokenSigner
    limits: CallLimits
    requests: RequestFigures
    """What this process has answered."""
    figures: FiguresReader
    loop_lag: LoopLag
    tracing: Tracing | None = None
    """Who is told of requests, runs and steps; None: nobody."""
    started_at: float = field(default_factory=time.time)
    """Unix time in seconds."""


ServicesOpener = Callable[[Drain], AbstractAsyncContextManager[Services]]
"""Opens the services of one application, which end their waits when the given drain begins."""


@asynccontextmanager
async def open_services(
    settings: ApiSettings, drain: Drain, *, patience: float = 0.0, tracing: Tracing | None = None
) -> AsyncGenerator[Services]:
    """Open the store, load the deployment and its code, and start the runtime. All is closed in reverse.

    Raises ConfigurationError when there is no such deployment, or the code is not what was deployed; TargetError when
    it can't be loaded. Waits for a store that is away, and ``patience`` seconds for a deployment that is missing.
    """
    from pipeserve.store import LeaseKeeper, open_store  # here: a service over memory needs no Redis client

    wanted = settings.deployment.required()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(settings.store))
        deployment = await find_deployment(store.registry, wanted, patience=patience)
        pipeline = load_target(deployment.target).pipeline
        check_code(deployment, pipeline.definition)
        backend = await stack.enter_async_context(store.deployment(deployment.id))
        await backend.operations.log_faults()
        loop = asyncio.get_running_loop()

        def emptied() -> None:
            loop.call_soon_threadsafe(backend.hub.interrupt)  # who follows a job that is gone learns it

        def keeper(owner: str, stop: Callable[[str], None]) -> LeaseKeeper:
            # Nothing on a lost lease: the record is lost then, and the caller who waits still gets the answer.
            return LeaseKeeper(
                store.url,
                backend.keys,
                owner,
                settings.store.lease_seconds,
                on_cancel=stop,
                on_emptied=emptied,
                deployment=deployment,
                event_log_max=settings.store.event_log_max,
                result_ttl=settings.store.result_ttl,
            )

        services = _services(settings, deployment, pipeline, backend, drain, keeper, tracing)
        yield await stack.enter_async_context(services)


@asynccontextmanager
async def services_over(
    pipeline: Pipeline[..., Any],
    deployment: Deployment,
    backend: Backend,
    settings: ApiSettings,
    drain: Drain,
    *,
    tracing: Tracing | None = None,
) -> AsyncGenerator[Services]:
    """The services of ``pipeline`` over a store that the caller has open, such as a MemoryStore.

    Nobody renews the leases of runs that outlive their callers' wait: the store should not let them run out.
    """
    async with _services(settings, deployment, pipeline, backend, drain, None, tracing) as services:
        yield services


class _LeaseKeeper(Leases, AbstractContextManager[Any], Protocol):
    """Keeps leases alive while it is entered."""


_MakeKeeper = Callable[[str, Callable[[str], None]], _LeaseKeeper]
"""From this process's owner token, and what to call (from any thread) with the id of a job that must stop."""


@asynccontextmanager
async def _services(
    settings: ApiSettings,
    deployment: Deployment,
    pipeline: Pipeline[..., Any],
    backend: Backend,
    drain: Drain,
    make_keeper: _MakeKeeper | None,
    tracing: Tracing | None,
) -> AsyncGenerator[Services]:
    definition = pipeline.definition
    owner = owner_token()
    loop = asyncio.get_running_loop()
    capture = definition.capture
    shared_cache = None if capture.memory_only else backend.cache
    tracing = tracing or existing_tracing()  # the embedding program's, or one that the pipeline's module has set up
    runtime = RealtimeRuntime(definition, settings.runtime, shared_cache=shared_cache, tracing=tracing)
    teller = None
    if capture.metrics and not capture.memory_only:
        teller = CacheTeller(runtime.cache, backend.operations, owner)

    def stop(job_id: str) -> None:
        loop.call_soon_threadsafe(inline.cancel, job_id)

    keeper = make_keeper(owner, stop) if make_keeper is not None else None
    artifacts = ArtifactStore(
        settings.artifacts.root(settings.store.data_dir), deployment.id, settings.store.result_ttl
    )
    writer = ArtifactWriter(artifacts, settings.runtime.event_buffer)
    inline = InlineRuns(
        runtime, backend.ledger, definition, deployment.id, owner, settings.runtime, keeper, writer, backend.attachments
    )
    async with AsyncExitStack() as stack:
        if keeper is not None:
            stack.enter_context(keeper)
        await stack.enter_async_context(runtime)
        await stack.enter_async_context(artifacts)
        await stack.enter_async_context(inline)
        forecast = await stack.enter_async_context(Forecast(backend.operations, capture, runtime.plan))
        listening = asyncio.create_task(_obey(backend.signals, inline), name="cancel-signals")
        stack.push_async_callback(end_tasks, [listening])
        if settings.webhooks.secret is not None:
            await stack.enter_async_context(_webhooks(settings.webhooks.secret.get_secret_value(), settings, backend))
        await stack.enter_async_context(Upkeep(backend.ledger, owner))
        if teller is not None:
            await stack.enter_async_context(teller.telling())
        figures = await stack.enter_async_context(FiguresReader(backend.operations, teller))
        loop_lag = stack.enter_context(LoopLag())
        yield Services(
            settings=settings,
            deployment=deployment,
            definition=definition,
            invocations=InvocationReader(definition),
            runtime=runtime,
            inline=inline,
            ledger=backend.ledger,
            log=backend.log,
            operations=backend.operations,
            directory=JobDirectory(inline, backend.ledger, backend.log, backend.attachments),
            forecast=forecast,
            cache_teller=teller,
            artifacts=artifacts,
            drain=drain,
            tokens=TokenSigner(signing_keys(settings.service), deployment.id),
            limits=CallLimits(backend.limits, settings.service),
            requests=RequestFigures(),
            figures=figures,
            loop_lag=loop_lag,
            tracing=tracing,
        )


def _webhooks(secret: str, settings: ApiSettings, backend: Backend) -> AbstractAsyncContextManager[object]:
    """Sends jobs' events to their receivers while it is entered. Raises ConfigurationError."""
    from pipeserve.webhooks.dispatcher import WebhookDispatcher  # here: a service without webhooks needs no HTTP client

    signer = Signer.from_secrets(secret)
    return WebhookDispatcher(
        backend.webhooks,
        backend.ledger,
        backend.log,
        signer,
        settings.webhooks,
        user_agent=f"pipeserve/{__version__}",
    )


async def _obey(signals: CancelSignals, inline: InlineRuns) -> None:
    """Cancel the runs of this process whose cancel another process has accepted, until the store is closed."""
    while True:
        try:
            async with signals.listen() as job_ids:
                async for job_id in job_ids:
                    inline.cancel(job_id)
                return
        except StoreUnavailableError:
            await asyncio.sleep(SIGNALS_RETRY)


def owner_token() -> str:
    """Names this process as the owner of the runs that it executes."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
