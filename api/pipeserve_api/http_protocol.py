"""uvicorn's HTTP connections, with an end for those that send too slowly or too much.

uvicorn waits for ever for a request that has begun, so whoever sends a byte now and then could hold as many connections
as a process may open; and it keeps as much of a request's head as comes. Here a head has to come within some seconds
and bytes, and its body at a least rate. (How long a body may be is for the routes to say.)
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pipeserve.errors import BadRequestError, Problem
from pipeserve_api.problems import MEDIA_TYPE, encode

HEAD_SECONDS = 10.0
"""What a client has from connecting, or from a request's first byte, to the end of its head."""
BODY_GRACE = 30.0
"""Seconds after which a body has to have come at the least rate."""
LEAST_RATE = 1024.0
"""Bytes a second."""
MOST_URL = 16 * 1024
"""Bytes of a path and its query: 400 job ids fit in."""
MOST_HEAD = 64 * 1024
"""Bytes of a request's URL and headers, and of the trailers behind its body. Each counts 32 more, as in RFC 9113: many
empty ones are many too."""
_HEADER_COST = 32
_LOOK_EVERY = 2.0


class _TooLarge(Exception):
    """Ends the parsing of a request."""


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    head_seconds = HEAD_SECONDS
    body_grace = BODY_GRACE
    look_every = _LOOK_EVERY

    def connection_made(self, transport: asyncio.Transport) -> None:
        """asyncio."""
        super().connection_made(transport)
        self._begun: float | None = self.loop.time()
        self._in_body = False
        self._body_bytes = 0
        self._head_bytes = 0
        self._unparsed = 0
        self._progress = False
        self._refusal: Problem | None = None
        self._watch: asyncio.TimerHandle | None = self.loop.call_later(self.look_every, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio."""
        self._begun = None
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """asyncio."""
        self._progress = False
        super().data_received(data)
        if self._progress:
            self._unparsed = 0
            return
        # The parser keeps a header until its end has come, and tells nobody of it before.
        self._unparsed += len(data)
        if self._unparsed > MOST_HEAD and not self.transport.is_closing():
            self._refusal = _head_too_large()
            self.send_400_response("")

    def on_message_begin(self) -> None:
        """httptools."""
        self._begun, self._in_body, self._body_bytes, self._head_bytes = self.loop.time(), False, 0, 0
        if self._watch is None:  # it stays for a while: most requests need none of their own
            self._watch = self.loop.call_later(self.look_every, self._look)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """httptools."""
        super().on_url(url)
        self._progress = True
        self._head_bytes += len(url)
        if self._head_bytes > MOST_URL:
            self._refuse(_url_too_long())

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools."""
        self._progress = True
        self._head_bytes += len(name) + len(value) + _HEADER_COST
        if self._head_bytes > MOST_HEAD:
            self._refuse(_head_too_large())
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """httptools."""
        self._in_body = self._progress = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """httptools."""
        self._progress = True
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """httptools."""
        self._begun = None
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn does about what is no request, and here also about one that is too large: answer, and close."""
        before: Any = self.cycle  # None before the first request
        if before is not None and not before.response_complete:
            # What comes now would stand in the middle of the answer to the request before.
            self.transport.close()
            return
        problem = self._refusal or _problem(HTTPStatus.BAD_REQUEST, msg)
        body = encode(problem.as_dict())
        fields = [*self.server_state.default_headers, (b"content-type", MEDIA_TYPE.encode())]
        fields += [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        status = HTTPStatus(problem.status)
        head = [b"HTTP/1.1 %d %s" % (status.value, status.phrase.encode())]
        head += [b"%s: %s" % field for field in fields]
        self.transport.write(b"\r\n".join([*head, b"", body]))
        self.transport.close()

    def _refuse(self, problem: Problem) -> None:
        """From within the parser, which then ends with an error, so that uvicorn calls ``send_400_response``."""
        self._refusal = problem
        raise _TooLarge

    def _look(self) -> None:
        self._watch = None
        if self._begun is None or self.transport.is_closing() or self._upgraded():
            return
        if self._too_slow(self.loop.time() - self._begun):
            self.transport.abort()
        else:
            self._watch = self.loop.call_later(self.look_every, self._look)

    def _too_slow(self, seconds: float) -> bool:
        if not self._in_body:
            return seconds > self.head_seconds
        if self.flow.read_paused:  # it is the application that takes nothing
            return False
        return seconds > self.body_grace and self._body_bytes < (seconds - self.body_grace) * LEAST_RATE

    def _upgraded(self) -> bool:
        """Whether the connection is a WebSocket's by now."""
        transport: Any = self.transport
        return transport.get_protocol() is not self


def _url_too_long() -> Problem:
    return _problem(HTTPStatus.REQUEST_URI_TOO_LONG, f"A request's path and query have at most {MOST_URL} bytes.")


def _head_too_large() -> Problem:
    status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    return _problem(status, f"A request's URL and headers have at most {MOST_HEAD} bytes.")


def _problem(status: HTTPStatus, detail: str) -> Problem:
    code = BadRequestError.code
    return Problem(type=f"urn:pipeserve:problem:{code}", title=status.phrase, status=status, detail=detail, code=code)
