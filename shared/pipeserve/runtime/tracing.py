"""What the product needs of a tracing system, as Protocols; :mod:`pipeserve.telemetry` has OpenTelemetry behind them.

Where no tracing is set up there is None in the place of a :class:`Tracing`, so that it costs one comparison.

A span is *current* from its start to its end, in the context that started it and in all that is copied from it: the
threads and tasks of a run have the run's span, and a step's code has the step's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, Protocol

Attribute = str | int | float | bool
Attributes = Mapping[str, Attribute]
SpanKind = Literal["internal", "server", "producer", "consumer"]


class Span(Protocol):
    """Something that takes time, and is told of once it has ended."""

    @property
    def carrier(self) -> str:
        """What makes a span elsewhere a child of this one: a W3C ``traceparent``, and after a space ``tracestate``."""
        ...

    def note(self, attributes: Attributes) -> None:
        """Add to what is told of it."""
        ...

    def rename(self, name: str) -> None:
        """It has a better name than the one with which it was started."""
        ...

    def leave(self) -> None:
        """It is current no more, though it goes on; in the context that started it."""
        ...

    def end(self, attributes: Attributes | None = None, *, error: str | None = None) -> None:
        """It has ended; ``error``: what kind of error it ended with. Never an error's own words: they tell values.

        Makes what was current before current again, unless :meth:`leave` has.
        """
        ...


class Tracing(Protocol):
    """Starts spans. Nothing here raises or waits for whatever it tells."""

    def start(self, name: str, kind: SpanKind = "internal", attributes: Attributes | None = None) -> Span:
        """One in what is current now."""
        ...

    def start_request(self, name: str, headers: Iterable[tuple[bytes, bytes]], attributes: Attributes) -> Span:
        """One of a request with these ``headers``, which may say what it belongs to."""
        ...

    def join(self, headers: Iterable[tuple[bytes, bytes]]) -> Span:
        """No span of this process, but the caller's, as the ``headers`` of a long conversation say."""
        ...

    def start_attempt(self, name: str, carrier: str | None, job_id: str, attempt: int, attributes: Attributes) -> Span:
        """One of an attempt at a job that was submitted in ``carrier``; it has links to the attempts before."""
        ...

    def note(self, attributes: Attributes) -> None:
        """Add to what is told of the current span, if there is one."""
        ...

    def ids(self) -> tuple[str, str] | None:
        """The ids, in hexadecimal, of the trace and the span that are current; None: there is none."""
        ...

    def close(self) -> None:
        """Tell what is not told yet, within a bound. Nothing is told afterwards."""
        ...
