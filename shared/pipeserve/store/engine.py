"""What arq and this store must agree on: how to connect, the one function that arq runs, and JSON on the wire.

arq's own ``RedisSettings.from_dsn`` leaves passwords percent-encoded, and its default serializer is pickle, which
would run whatever a writer to Redis put there.
"""

from __future__ import annotations

from typing import Any

import orjson
from arq.connections import RedisSettings

from pipeserve.store.address import Address
from pipeserve.store.keys import ARQ_JOB_TTL

JOB_FUNCTION = "pipeserve_run"
"""The name under which a worker registers the coroutine that runs a job."""

EXPIRES_EXTRA_MS = ARQ_JOB_TTL * 1000
"""arq lets a queued job expire after a day unless told otherwise."""

CONNECT_TIMEOUT = 2.0
"""Seconds to reach the store."""


def arq_settings(url: str) -> RedisSettings:
    """arq's settings for a store at ``url``. Raises ConfigurationError.

    With sentinels they are good for what arq itself opens; this store's own connections know more (their password).
    """
    address = Address.parse(url)
    place: dict[str, Any] = {}
    if address.master_name is not None:
        place = {"host": list(address.hosts), "sentinel": True, "sentinel_master": address.master_name}
    elif address.unix_socket is not None:
        place = {"unix_socket_path": address.unix_socket}
    else:
        place = dict(zip(("host", "port"), address.hosts[0], strict=True))
    return RedisSettings(
        **place,
        database=address.database,
        username=address.username,
        password=address.password,
        ssl=address.tls,
        ssl_check_hostname=True,
        conn_timeout=int(CONNECT_TIMEOUT),
    )


def serialize(value: dict[str, Any]) -> bytes:
    """arq's ``job_serializer``."""
    return orjson.dumps(value, default=str)


def deserialize(data: bytes) -> dict[str, Any]:
    """arq's ``job_deserializer``."""
    return orjson.loads(data)


def job_blob(enqueued_ms: int) -> bytes:
    """What arq keeps of a job: the function's name. The rest is in the job's record, and a claim hands it over."""
    return serialize({"t": None, "f": JOB_FUNCTION, "a": (), "k": {}, "et": enqueued_ms})
