"""Which web pages may use the service through their visitors' browsers.

A browser says with ``Origin`` which page sends a request, and sends requests for any page that asks. Without a look at
it, each page on the web could call a service on its visitor's machine or network: a WebSocket and a simple POST need no
permission. Programs send no ``Origin`` and are not concerned.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from pipeserve.errors import ConfigurationError, ForbiddenError
from pipeserve_api.problems import error_response

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_PORTS = {"http": 80, "https": 443}


def read_origins(setting: str) -> tuple[str, ...]:
    """The origins in ``PIPESERVE_ALLOWED_ORIGINS``. Raises ConfigurationError for what is none."""
    origins = tuple(part.strip().rstrip("/") for part in setting.split(",") if part.strip())
    for origin in origins:
        parts = urlsplit(origin)
        if origin != "*" and (
            parts.scheme not in _PORTS or not parts.hostname or f"{parts.scheme}://{parts.netloc}" != origin
        ):
            raise ConfigurationError(
                f"wrong setting: PIPESERVE_ALLOWED_ORIGINS: {origin!r} is not an origin, such as https://app.example.com"
            )
    return origins


class OriginMiddleware:
    """Refuses WebSockets, and requests that do something, of pages that are neither the service's own nor allowed.

    ``check_host``: refuse host names too that could be anybody's. A page can have its own name lead to 127.0.0.1 and is
    then, for the browser, the service's own. So a service that is open to its machine is called by an address, by
    ``localhost``, by a name without a dot, or by that of an allowed origin.
    """

    def __init__(self, app: ASGIApp, *, allowed: Iterable[str], check_host: bool) -> None:
        self._app = app
        self._allowed = frozenset(allowed)
        self._hosts = {urlsplit(origin).hostname for origin in self._allowed} if check_host else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        origin = host = None
        for name, value in scope["headers"]:
            if name == b"origin":
                origin = value.decode("latin-1")
            elif name == b"host":
                host = value.decode("latin-1")
        refusal = None
        if self._hosts is not None and not self._is_known(host):
            refusal = (
                f"This service needs no key, so it takes requests for this machine, not for the host {host!r:.80}. "
                "Set a key, or name the page that calls it in PIPESERVE_ALLOWED_ORIGINS."
            )
        elif origin is not None and self._is_foreign(scope, origin, host):
            refusal = f"Pages of {origin!r:.80} may not use this service (PIPESERVE_ALLOWED_ORIGINS)."
        if refusal is None:
            await self._app(scope, receive, send)
            return
        response = error_response(ForbiddenError(refusal), instance=scope["path"])
        await response(scope, receive, send)

    def _is_foreign(self, scope: Scope, origin: str, host: str | None) -> bool:
        if scope["type"] == "http" and scope["method"] in _SAFE:
            return False  # the browser keeps the answer from the page, unless CORS lets it have it
        if origin in self._allowed or "*" in self._allowed:
            return False
        scheme = origin.partition("://")[0]
        return _place(origin) != _place(f"{scheme}://{host}")

    def _is_known(self, host: str | None) -> bool:
        """Whether no stranger can have made this name lead here."""
        name = _hostname(host)
        if name is None or "." not in name or name.endswith(".localhost") or name in (self._hosts or ()):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _hostname(host: str | None) -> str | None:
    if host is None:
        return None
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:  # brackets around what is no address
        return host


def _place(origin: str) -> tuple[str | None, int | None]:
    """Host and port. Not the scheme: TLS may end before the service."""
    try:
        parts = urlsplit(origin)
        return parts.hostname, parts.port or _PORTS.get(parts.scheme)
    except ValueError:  # not a URL; as such it is the same as nothing
        return origin, None
