"""Lets only callers with a key of the service in, once there is one, and readers of one job with a token for it.

Pure ASGI: nothing around a stream buffers it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeserve.errors import ForbiddenError, ProblemError, UnauthorizedError
from pipeserve_api.problems import error_response
from pipeserve_api.services import Services
from pipeserve_api.tokens import PREFIX

CALLER = "caller"
"""The name in the request's state under which the middleware notes whose key was presented."""
GRANT = "grant"
"""The name under which it notes the one job that the request may read, if it came with a token."""
_DIGEST_LENGTH = 16


def caller_of(scope: Scope) -> str:
    """Who sent the request: a digest of the key that was presented; empty while none is needed."""
    return scope["state"].get(CALLER, "")


def granted_job(scope: Scope) -> str | None:
    """The only job that the request may read, and do nothing else; None: it came with a key, or none is needed."""
    return scope["state"].get(GRANT)


class KeyMiddleware:
    """Refuses requests and WebSocket handshakes without one of ``keys``. Only ``/health*`` stays open, for probes.

    A token (``?token=``, or in the place of a key) opens what there is to read of its job.
    """

    def __init__(self, app: ASGIApp, *, keys: Sequence[str]) -> None:
        self._app = app
        self._callers = {key.encode(): hashlib.sha256(key.encode()).hexdigest()[:_DIGEST_LENGTH] for key in keys}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan" or _is_open(scope):
            await self._app(scope, receive, send)
            return
        caller = self._caller(scope)
        if caller is not None:
            scope.setdefault("state", {})[CALLER] = caller
            await self._app(scope, receive, send)
            return
        try:
            scope.setdefault("state", {})[GRANT] = _job_to_read(scope)
        except ProblemError as error:
            await _refuse(error, scope, receive, send)
        else:
            await self._app(scope, receive, _private(send))

    def _caller(self, scope: Scope) -> str | None:
        for name, value in scope["headers"]:
            if name == b"x-api-key":
                given = value.strip()
            elif name == b"authorization" and value[:7].lower() == b"bearer ":
                given = value[7:].strip()
            else:
                continue
            found: str | None = None
            for key, caller in self._callers.items():  # all of them: the time taken tells nothing
                if hmac.compare_digest(given, key):
                    found = caller
            if found is not None:
                return found
        return None


def _is_open(scope: Scope) -> bool:
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    return scope["type"] == "http" and (path == "/health" or path.startswith("/health/"))


async def _refuse(error: ProblemError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await receive()  # the handshake; only then may it be refused
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = {"www-authenticate": 'Bearer realm="pipeserve"'} if error.status == UnauthorizedError.status else None
    response = error_response(error, instance=scope["path"], headers=headers)
    await response(scope, receive, send)


def _private(send: Send) -> Send:
    """Marks the answer as one reader's. Shared caches know that of an answer to a key, but not to a token in a URL."""

    async def marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message.get("headers", [])
            if all(name.lower() != b"cache-control" for name, _ in headers):
                message = {**message, "headers": [*headers, (b"cache-control", b"private")]}
        await send(message)

    return marked


def _job_to_read(scope: Scope) -> str:
    """The job that the request's token opens. Raises UnauthorizedError, ForbiddenError."""
    token = _token(scope)
    if token is None:
        raise UnauthorizedError()
    services: Services = scope["state"]["services"]
    job_id = services.tokens.job_of(token)
    if not _reads_only(scope, job_id):
        raise ForbiddenError(f"The token is for reading job {job_id} and nothing else.")
    return job_id


def _token(scope: Scope) -> str | None:
    given = _query(scope).get("token")
    if given is not None:
        return given[-1]
    for name, value in scope["headers"]:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            text = value[7:].strip().decode("latin-1")
            return text if text.startswith(PREFIX) else None
    return None


def _reads_only(scope: Scope, job_id: str) -> bool:
    """Whether the request is for something to read of this job. A WebSocket sees to the rest by itself."""
    parts = scope["path"].removeprefix(scope.get("root_path", "")).split("/")[1:]
    if scope["type"] == "websocket":
        return parts == ["stream"]
    if scope["method"] not in ("GET", "HEAD"):
        return False
    match parts:
        case ["jobs", named, *_] | ["stream", named]:
            return named.lower() == job_id
        case ["events"]:
            named_jobs = _query(scope).get("job", [])
            return bool(named_jobs) and all(named.lower() == job_id for named in named_jobs)
        case _:
            return False


def _query(scope: Scope) -> dict[str, list[str]]:
    return parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
