"""Spans by OpenTelemetry's API: what is current is OpenTelemetry's own context, so authors' code finds it there."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable
from contextvars import Token
from importlib.metadata import version
from typing import Any

from opentelemetry import context as contexts
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pipeserve.runtime.tracing import Attributes, SpanKind

CLOSE_SECONDS = 2.0
"""The longest that an ending process waits for its last spans to be told."""
MOST_LINKS = 16
"""Earlier attempts that one has links to: the latest."""
_KINDS = {
    "internal": trace.SpanKind.INTERNAL,
    "server": trace.SpanKind.SERVER,
    "producer": trace.SpanKind.PRODUCER,
    "consumer": trace.SpanKind.CONSUMER,
}
_W3C = TraceContextTextMapPropagator()


class OpenTelemetry:
    """A :class:`~pipeserve.runtime.tracing.Tracing` by one tracer provider."""

    def __init__(self, provider: trace.TracerProvider, *, owned: bool) -> None:
        """``owned``: whether the provider ends with this."""
        self._provider = provider
        self._owned = owned
        self._tracer = provider.get_tracer("pipeserve", version("pipeserve"))
        self._attempts: _AttemptIds | None = None
        ids = getattr(self._tracer, "id_generator", None)
        if ids is not None:  # the SDK's, which takes its ids from here; another's can't be known in advance
            self._attempts = ids if isinstance(ids, _AttemptIds) else _AttemptIds(ids)
            vars(self._tracer)["id_generator"] = self._attempts

    def start(self, name: str, kind: SpanKind = "internal", attributes: Attributes | None = None) -> CurrentSpan:
        """One in what is current now."""
        return CurrentSpan(self._tracer.start_span(name, kind=_KINDS[kind], attributes=attributes))

    def start_request(self, name: str, headers: Iterable[tuple[bytes, bytes]], attributes: Attributes) -> CurrentSpan:
        """One of a request with these headers. What is current here is another request's at best, and left out."""
        within = _extracted(headers)
        span = self._tracer.start_span(name, within, trace.SpanKind.SERVER, attributes)
        return CurrentSpan(span, within)

    def join(self, headers: Iterable[tuple[bytes, bytes]]) -> CurrentSpan:
        """The caller's own span, made current here."""
        within = _extracted(headers)
        return CurrentSpan(trace.get_current_span(within), within)

    def start_attempt(
        self, name: str, carrier: str | None, job_id: str, attempt: int, attributes: Attributes
    ) -> CurrentSpan:
        """One of an attempt at a job; a child of the span that ``carrier`` tells of, or a root."""
        parent, _, state = (carrier or "").partition(" ")
        within = _W3C.extract({"traceparent": parent, "tracestate": state}, Context())
        of_parent = trace.get_current_span(within).get_span_context()
        consumer = trace.SpanKind.CONSUMER
        if self._attempts is None or not of_parent.is_valid:
            return CurrentSpan(self._tracer.start_span(name, within, consumer, attributes), within)
        own, earlier = self._attempts.own_id, range(max(1, attempt - MOST_LINKS), attempt)
        links = [trace.Link(_sibling(of_parent, own(job_id, number)), {_ATTEMPT: number}) for number in earlier]
        with self._attempts.next_is(own(job_id, attempt)):
            return CurrentSpan(self._tracer.start_span(name, within, consumer, attributes, links), within)

    def note(self, attributes: Attributes) -> None:
        """Add to what is told of the current span."""
        trace.get_current_span().set_attributes(attributes)

    def ids(self) -> tuple[str, str] | None:
        """Of what is current."""
        span = trace.get_current_span().get_span_context()
        return (f"{span.trace_id:032x}", f"{span.span_id:016x}") if span.is_valid else None

    def close(self) -> None:
        """Tell what is not told yet, for two seconds at most; in a thread, for exporters have no such bound."""
        name = "shutdown" if self._owned else "force_flush"
        end: Callable[[], object] | None = getattr(self._provider, name, None)
        if end is None:
            return
        closing = threading.Thread(target=end, name="close-tracing", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


_ATTEMPT = "pipeserve.attempt"


class CurrentSpan:
    """A span, current from the moment that this is made."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: trace.Span, within: Context | None = None) -> None:
        self._span = span
        self._token: Token[Context] | None = contexts.attach(trace.set_span_in_context(span, within))

    @property
    def carrier(self) -> str:
        """W3C ``traceparent``, and ``tracestate`` if there is one."""
        carried: dict[str, str] = {}
        _W3C.inject(carried, trace.set_span_in_context(self._span, Context()))
        parent, state = carried.get("traceparent", ""), carried.get("tracestate")
        return f"{parent} {state}" if state else parent

    def note(self, attributes: Attributes) -> None:
        """Add to what is told of it."""
        self._span.set_attributes(attributes)

    def rename(self, name: str) -> None:
        """A better name."""
        self._span.update_name(name)

    def leave(self) -> None:
        """It is current no more."""
        if self._token is not None:
            token, self._token = self._token, None
            contexts.detach(token)

    def end(self, attributes: Attributes | None = None, *, error: str | None = None) -> None:
        """It has ended."""
        self.leave()
        if attributes:
            self._span.set_attributes(attributes)
        if error is not None:
            self._span.set_attribute("error.type", error)
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end()


class _AttemptIds:
    """An ``IdGenerator`` for the SDK: an attempt's span has an id that follows from the job and its number.

    All others have theirs from ``others``. So an attempt knows the spans of those before it, though the processes that
    had these may have died without a word.
    """

    def __init__(self, others: Any) -> None:
        self._others = others
        self._next = threading.local()

    @staticmethod
    def own_id(job_id: str, attempt: int) -> int:
        """The id of an attempt's span; never 0, which is none."""
        digest = hashlib.sha256(f"{job_id}:{attempt}".encode()).digest()
        return int.from_bytes(digest[:8], "big") or 1

    def next_is(self, span_id: int) -> _Next:
        """While entered, the span that this thread starts has this id."""
        return _Next(self._next, span_id)

    def generate_span_id(self) -> int:
        """The next span's."""
        wanted: int | None = getattr(self._next, "span_id", None)
        return self._others.generate_span_id() if wanted is None else wanted

    def generate_trace_id(self) -> int:
        """The next trace's."""
        return self._others.generate_trace_id()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._others, name)  # what later versions of OpenTelemetry ask of it


class _Next:
    """See :meth:`_AttemptIds.next_is`."""

    __slots__ = ("_place", "_span_id")

    def __init__(self, place: threading.local, span_id: int) -> None:
        self._place = place
        self._span_id = span_id

    def __enter__(self) -> None:
        self._place.span_id = self._span_id

    def __exit__(self, *_: object) -> None:
        self._place.span_id = None


def _sibling(parent: trace.SpanContext, span_id: int) -> trace.SpanContext:
    return trace.SpanContext(parent.trace_id, span_id, True, parent.trace_flags, parent.trace_state)


def _extracted(headers: Iterable[tuple[bytes, bytes]]) -> Context:
    """What the headers say, by the propagators that are set (``OTEL_PROPAGATORS``), and nothing of what is here."""
    fields = propagate.get_global_textmap().fields
    carrier: dict[str, str] = {}
    for name, value in headers:
        field = name.decode("latin-1").lower()
        if field in fields:
            text = value.decode("latin-1")
            carrier[field] = f"{carrier[field]},{text}" if field in carrier else text
    return propagate.extract(carrier, Context())
