"""Follows one job's event stream over as many connections as it takes. No I/O: the clients bring the bytes.

The stream's promise is checked here: events come as 1, 2, 3, … without a hole or a repeat, whatever happens to the
connections in between.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import orjson

from pipeserve.client._jobs import parse_event, stream_request
from pipeserve.client._protocol import Reply, Request, error_of, retry_after
from pipeserve.client._retries import Retries
from pipeserve.client._sse import Message, SseParser
from pipeserve.client.errors import UnexpectedReplyError, UnreachableError
from pipeserve.events import Event

logger = logging.getLogger("pipeserve.client")


class HoleError(UnreachableError):
    """The stream left an event out. Asking again from the last one delivered gets it."""


class EventFollower:
    """The state of one follower: what it has, what it asks for next, and whether it is done."""

    def __init__(self, job_id: str, after: int = 0) -> None:
        self._job_id = job_id
        self._last: int = after
        self._retry: float | None = None
        self._retries = Retries()
        self._parser = SseParser()
        self.done = False
        """The terminal event was delivered, or the log was already read to its end."""

    def request(self) -> Request:
        """The request for all that follows what was delivered so far."""
        self._parser = SseParser()
        return stream_request(self._job_id, self._last)

    def accepts(self, status: int, content_type: str) -> bool:
        """Whether this reply's body is the stream. If not, read it and give it to :meth:`refused`."""
        return status == 200 and content_type.startswith("text/event-stream")

    def refused(self, reply: Reply) -> float:
        """A reply that is no stream. Returns the seconds to wait before the next try; raises what can't be retried."""
        if reply.status == 204:
            self.done = True
            return 0.0
        error = error_of(reply)
        if not error.retryable:
            raise error
        return self._retries.failed(error, at_least=retry_after(reply))

    def lost(self, cause: UnreachableError | None = None) -> float:
        """The connection ended, or never came to be. Returns the seconds to wait before the next try."""
        cause = cause or UnreachableError("the event stream ends again and again", job_id=self._job_id)
        return self._retries.failed(cause, at_least=self._retry)

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that ``chunk`` completes. Raises HoleError where one is left out."""
        messages = self._parser.feed(chunk)
        if self._parser.retry is not None:
            self._retry = self._parser.retry
        for message in messages:
            if message.event == "gap":
                self._skip(message)
            elif message.event != "snapshot":
                event = parse_event(message.data)
                if event.seq <= self._last:
                    continue
                if event.seq != self._last + 1:
                    raise HoleError(f"event {event.seq} follows event {self._last}", job_id=self._job_id)
                self._last = event.seq
                self._retries.progressed()
                self.done = event.event_type.terminal
                yield event
                if self.done:
                    return

    def _skip(self, message: Message) -> None:
        try:
            gap: dict[str, Any] = orjson.loads(message.data)
            first, last = int(gap["from"]), int(gap["to"])
        except (ValueError, KeyError, TypeError):
            raise UnexpectedReplyError(f"unreadable gap in the stream: {message.data[:200]!r}") from None
        logger.warning("job %s: events %d to %d are gone: %s", self._job_id, first, last, gap.get("reason", "trimmed"))
        self._last = max(self._last, last)
