"""A service in this process, with its spans kept, and a worker that runs its queued jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler
from tests.api.harness import Served, serving

from pipeserve.process_log import get_log
from pipeserve.runtime.ports import Claim
from pipeserve.runtime.realtime import RealtimeRuntime
from pipeserve.sdk.pipeline import Pipeline
from pipeserve.telemetry.spans import OpenTelemetry
from pipeserve_worker.runner import JobRunner


def trace_id(number: int) -> str:
    """A trace id."""
    return f"{number:032x}"


def traceparent(number: int, *, parent: int = 0xABC, sampled: bool = True) -> dict[str, str]:
    """The header of a caller who is in the trace ``number``."""
    return {"traceparent": f"00-{trace_id(number)}-{parent:016x}-{'01' if sampled else '00'}"}


@dataclass
class Spans:
    """What was exported."""

    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)

    def tracing(self, sampler: Sampler | None = None) -> OpenTelemetry:
        """Tracing that exports here."""
        provider = TracerProvider(sampler=sampler or ParentBased(ALWAYS_ON), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        return OpenTelemetry(provider, owned=True)

    @property
    def all(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        found = self.named(name)
        assert len(found) == 1, f"{len(found)} of {name!r} in {sorted(span.name for span in self.all)}"
        return found[0]


def in_trace(span: ReadableSpan) -> str:
    """The id of its trace."""
    return trace_id(span.context.trace_id)  # type: ignore[union-attr]


def is_child(span: ReadableSpan, parent: ReadableSpan) -> bool:
    """Whether ``parent`` is its parent, in the same trace."""
    return (
        span.parent is not None
        and parent.context is not None
        and in_trace(span) == in_trace(parent)
        and (span.parent.span_id == parent.context.span_id)
    )


def said(span: ReadableSpan) -> dict[str, Any]:
    """Its attributes."""
    return dict(span.attributes or {})


class _NoLeases:
    def add(self, job_id: str) -> None: ...
    def discard(self, job_id: str) -> None: ...


class Worker:
    """One worker process's part, in this one."""

    def __init__(self, served: Served, runner: JobRunner) -> None:
        self._served = served
        self.runner = runner

    async def claim(self, owner: str = "worker") -> Claim:
        """The next job that waits."""
        [claim] = await self._served.store.ledger.claim(owner, 1)
        return claim

    async def work(self, claim: Claim | None = None) -> Claim:
        """Run it."""
        claim = claim or await self.claim()
        self.runner.accept(claim)
        await self.runner.run(claim)
        self.runner.dismiss(claim)
        return claim


@asynccontextmanager
async def working(served: Served, spans: Spans, sampler: Sampler | None = None) -> AsyncIterator[Worker]:
    """A worker for the jobs of ``served``, which knows nothing of the process that took them."""
    definition = served.services.definition
    async with RealtimeRuntime(definition, served.services.settings.runtime, tracing=spans.tracing(sampler)) as runtime:
        runner = JobRunner(
            runtime=runtime,
            definition=definition,
            ledger=served.store.ledger,
            deployment_id=served.services.deployment.id,
            leases=_NoLeases(),
            log=get_log("pipeserve_worker"),
        )
        yield Worker(served, runner)


@dataclass
class Traced:
    """A service, a worker and the spans of both."""

    served: Served
    spans: Spans
    worker: Worker


@asynccontextmanager
async def traced(
    pipeline: Pipeline[..., Any], *, sampler: Sampler | None = None, **options: Any
) -> AsyncIterator[Traced]:
    """Serve ``pipeline`` and tell of it."""
    spans = Spans()
    async with (
        serving(pipeline, tracing=spans.tracing(sampler), **options) as served,
        working(served, spans, sampler) as worker,
    ):
        yield Traced(served, spans, worker)
