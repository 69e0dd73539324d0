"""Lets only callers with a key of the service in, once there is one, and readers of one job with a token for it.

Pure ASGI: nothing around a stream buffers it.
"""

from __future__ import annotations

from functools import partial
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeserve.errors import ForbiddenError, ProblemError, UnauthorizedError
from pipeserve.key_file import KeyScope
from pipeserve_api.callers import CALLER, Caller, caller_in, check_may
from pipeserve_api.key_ring import KeyRing
from pipeserve_api.paths import is_probe, path_parts
from pipeserve_api.problems import error_response
from pipeserve_api.services import Services
from pipeserve_api.tokens import PREFIX

RENEWAL = "renewal"
"""The name in the request's state of what tells whether its key is still good."""


class KeyMiddleware:
    """Refuses requests and WebSocket handshakes without a key of ``ring``. Only ``/health*`` stays open, for probes.

    A key opens what its scopes name; a WebSocket asks for each of its operations. A token (``?token=``, or in the place
    of a key) opens what there is to read of its job.
    """

    def __init__(self, app: ASGIApp, *, ring: KeyRing) -> None:
        self._app = app
        self._ring = ring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan" or is_probe(scope):
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        try:
            key, caller = self._presented(scope)
            if caller is not None:
                if scope["type"] == "http":
                    check_may(caller, _scope_for(scope))
                state[CALLER] = caller
                state[RENEWAL] = partial(self._ring.caller_with, key)
            else:
                job_id = _job_to_read(scope)
                # The name is for limits: readers of one link share a budget, and use up nobody else's.
                state[CALLER] = Caller(f"token:{job_id}", frozenset({KeyScope.READ}), grant=job_id)
                send = _private(send)
        except ProblemError as error:
            await _refuse(error, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _presented(self, scope: Scope) -> tuple[bytes, Caller | None]:
        """The first key of the request's that opens something, and whose it is."""
        for name, value in scope["headers"]:
            if name == b"x-api-key":
                given = value.strip()
            elif name == b"authorization" and value[:7].lower() == b"bearer ":
                given = value[7:].strip()
            else:
                continue
            found = self._ring.caller_with(given)
            if found is not None:
                return given, found
        return b"", None


def renewed(scope: Scope) -> Caller | None:
    """Who sent the request, as that stands now: a key's scopes may have changed. None: the key is good no more."""
    ask = scope["state"].get(RENEWAL)
    return caller_in(scope) if ask is None else ask()


def _scope_for(scope: Scope) -> KeyScope:
    """What a key must open for this request."""
    parts = path_parts(scope)
    if parts[0] == "status":
        return KeyScope.ADMIN
    if scope["method"] not in ("POST", "PUT", "PATCH", "DELETE"):
        return KeyScope.READ
    match parts:
        case ["jobs", _, "cancel"]:
            return KeyScope.CANCEL
        case ["jobs", _, "token"]:
            return KeyScope.READ
        case _:
            return KeyScope.INVOKE


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
    parts = path_parts(scope)
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
