"""How a caller wants an invocation answered: the query string, ``Prefer`` (RFC 7240), ``Accept``, ``Cache-Control``
and ``Idempotency-Key``, read as one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from urllib.parse import parse_qs

from starlette.types import Scope

from pipeserve.errors import InvalidParametersError
from pipeserve.runtime.ports import CacheUse
from pipeserve_api.idempotency import HEADER, read_key


@dataclass(frozen=True, slots=True)
class CallPreferences:
    """What a request to ``/invoke`` says outside its body."""

    queued: bool
    """Asked for as a job of the workers (``?mode=async`` or ``Prefer: respond-async``)."""
    wait: float | None
    """Seconds after which the caller would rather have a 202 (``Prefer: wait=N``)."""
    events: bool
    """Wants the run's events as they happen (``Accept: text/event-stream``)."""
    content_length: int | None
    applied: str | None
    """The ``Preference-Applied`` header."""
    cache: CacheUse
    """What the step cache may do for it (``Cache-Control``)."""
    idempotency_key: str | None

    @property
    def headers(self) -> dict[str, str]:
        """What every answer to this request carries."""
        return {"vary": "Prefer"} if self.applied is None else {"vary": "Prefer", "preference-applied": self.applied}

    @classmethod
    def read(cls, scope: Scope) -> CallPreferences:
        """Read a request. Preferences not understood are ignored.

        Raises InvalidParametersError for an unknown mode, BadRequestError for an Idempotency-Key that is none.
        """
        respond_async = False
        wait: float | None = None
        events = False
        length: int | None = None
        cache: CacheUse = "use"
        key: str | None = None
        for name, value in scope["headers"]:
            if name == b"prefer":
                respond_async, wait = _prefer(value.decode("latin-1"), respond_async, wait)
            elif name == b"accept":
                events = b"text/event-stream" in value
            elif name == b"content-length":
                length = int(value)
            elif name == b"cache-control":
                cache = _cache_control(value.decode("latin-1"), cache)
            elif name == HEADER:
                key = read_key(scope["headers"])
        mode = _mode(scope["query_string"])
        queued = respond_async if mode is None else mode == "async"
        if events:
            wait = None  # a stream ends when the run does
        applied = ["respond-async"] if respond_async and queued else []
        if wait is not None:
            applied.append(f"wait={wait:g}")
        return cls(queued, wait, events, length, ", ".join(applied) or None, cache, key)


def _mode(query: bytes) -> str | None:
    if not query:
        return None
    mode = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("mode", [None])[-1]
    if mode not in (None, "sync", "async"):
        detail = f"mode must be sync or async, not {mode!r}"
        raise InvalidParametersError(detail, errors=[{"name": "mode", "type": "enum", "detail": detail}])
    return mode


def _prefer(header: str, respond_async: bool, wait: float | None) -> tuple[bool, float | None]:
    for preference in header.split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        match name.strip().lower():
            case "respond-async":
                respond_async = True
            case "wait" if wait is None:  # the first of several counts
                wait = _seconds(value.strip().strip('"'))
            case _:
                pass
    return respond_async, wait


def _cache_control(header: str, cache: CacheUse) -> CacheUse:
    """The stricter of ``cache`` and what this header asks for. Directives about other caches are not meant here."""
    directives = {directive.partition("=")[0].strip().lower() for directive in header.split(",")}
    if "no-store" in directives or cache == "no-store":
        return "no-store"
    return "no-cache" if "no-cache" in directives else cache


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
