"""What arq and this store must agree on: how to connect, the one function that arq runs, and JSON on the wire.

arq's own ``RedisSettings.from_dsn`` leaves passwords percent-encoded, and its default serializer is pickle, which
would run whatever a writer to Redis put there.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import orjson
from arq.connections import RedisSettings

from pipeserve.errors import ConfigurationError
from pipeserve.store.keys import ARQ_JOB_TTL

JOB_FUNCTION = "pipeserve_run"
"""The name under which a worker registers the coroutine that runs a job."""

EXPIRES_EXTRA_MS = ARQ_JOB_TTL * 1000
"""arq lets a queued job expire after a day unless told otherwise."""

CONNECT_TIMEOUT = 2.0
"""Seconds to reach the store."""


def arq_settings(url: str) -> RedisSettings:
    """arq's settings for a store: ``redis://``, ``rediss://`` or ``unix://``. Raises ConfigurationError."""
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ConfigurationError(
            f"PIPESERVE_REDIS_URL: unknown scheme {parts.scheme!r}; use redis://, rediss:// or unix://"
        )
    query = parse_qs(parts.query)
    unix = parts.scheme == "unix"
    named = query.get("db", ["0" if unix else parts.path.lstrip("/") or "0"])[0]
    try:
        database, port = int(named), parts.port or 6379
    except ValueError as error:
        raise ConfigurationError(f"PIPESERVE_REDIS_URL: {error}") from None
    return RedisSettings(
        host=parts.hostname or "localhost",
        port=port,
        unix_socket_path=unquote(parts.path) if unix else None,
        database=database,
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        ssl=parts.scheme == "rediss",
        ssl_check_hostname=True,
        conn_timeout=int(CONNECT_TIMEOUT),
    )


def masked(url: str) -> str:
    """``url`` without its secrets, for people."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    user = f"{parts.username}:***" if parts.username else ":***"
    return parts._replace(netloc=f"{user}@{parts.netloc.rpartition('@')[2]}").geturl()


def serialize(value: dict[str, Any]) -> bytes:
    """arq's ``job_serializer``."""
    return orjson.dumps(value, default=str)


def deserialize(data: bytes) -> dict[str, Any]:
    """arq's ``job_deserializer``."""
    return orjson.loads(data)


def job_blob(enqueued_ms: int) -> bytes:
    """What arq keeps of a job: the function's name. The rest is in the job's record, and a claim hands it over."""
    return serialize({"t": None, "f": JOB_FUNCTION, "a": (), "k": {}, "et": enqueued_ms})
