"""Pages of job ids from the indexes.

A cursor names the last job of its page by creation time and id, so jobs that come or go meanwhile shift nothing.
Labels and codes are compared in this process, chunk by chunk: the server is never held for the whole of a long list.
"""

from __future__ import annotations

import binascii
import math
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

import orjson

from pipeserve.errors import BadRequestError
from pipeserve.runtime.ports import JobQuery
from pipeserve.store.connection import Connection
from pipeserve.store.keys import Keys

CHUNK = 1000


@dataclass(frozen=True, slots=True)
class IdPage:
    """The ids of one page, newest first."""

    job_ids: list[str]
    total: int
    next_cursor: str | None


@dataclass(frozen=True, slots=True, order=True)
class _Position:
    """A place in an index; greater is newer."""

    created_ms: float
    job_id: str

    def encode(self) -> str:
        return urlsafe_b64encode(f"{self.created_ms!r}:{self.job_id}".encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, cursor: str) -> _Position:
        try:
            text = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
            created, _, job_id = text.partition(":")
            created_ms = float(created)
            if not math.isfinite(created_ms):  # it compares with nothing, and the server refuses it
                raise ValueError(created)
            return cls(created_ms, job_id)
        except (binascii.Error, ValueError):
            raise BadRequestError(f"cursor: {cursor!r} is not one that this service gave") from None


async def list_page(connection: Connection, keys: Keys, query: JobQuery) -> IdPage:
    """The page that ``query`` asks for."""
    after = _Position.decode(query.cursor) if query.cursor is not None else None
    found: list[_Position] = []
    if query.labels or query.code is not None or (query.caller is not None and query.status is not None):
        every = [position async for position in _scan(connection, keys, query)]
        matching = await _matching(connection, keys, every, query)
        total = len(matching)
        found = [position for position in matching if after is None or position < after][: query.limit + 1]
    else:
        total = await _count(connection, keys, query)
        async for position in _scan(connection, keys, query, after):
            found.append(position)
            if len(found) > query.limit:
                break
    page, more = found[: query.limit], len(found) > query.limit
    return IdPage(
        job_ids=[position.job_id for position in page],
        total=total,
        next_cursor=page[-1].encode() if more and page else None,
    )


def _index(keys: Keys, query: JobQuery) -> str:
    """Where all jobs stand that ``query`` may ask for, unless it is for one caller's."""
    return keys.jobs if query.status is None else keys.status(query.status)


async def _count(connection: Connection, keys: Keys, query: JobQuery) -> int:
    if query.caller is None:
        return await connection.call("ZCARD", _index(keys, query))
    return await connection.call("ZLEXCOUNT", keys.owned, f"[{query.caller}:", f"({query.caller};")


async def _scan(
    connection: Connection, keys: Keys, query: JobQuery, after: _Position | None = None
) -> AsyncIterator[_Position]:
    """What is older than ``after``, newest first, in the index that fits ``query`` best."""
    if query.caller is None:
        async for position in _scan_by_score(connection, _index(keys, query), after):
            yield position
        return
    # ";" follows ":", so it is the end of what begins with the name and a colon.
    end = f"({query.caller};"
    if after is not None:
        end = f"({query.caller}:{round(after.created_ms * 1000):016d}:{after.job_id}"
    while True:
        rows: list[bytes] = await connection.call(
            "ZREVRANGEBYLEX", keys.owned, end, f"[{query.caller}:", "LIMIT", 0, CHUNK
        )
        for row in rows:
            created_us, job_id = row.decode().split(":")[-2:]
            yield _Position(int(created_us) / 1000, job_id)
        if len(rows) < CHUNK:
            return
        end = f"({rows[-1].decode()}"


async def _scan_by_score(connection: Connection, index: str, after: _Position | None) -> AsyncIterator[_Position]:
    """All of ``index`` that is older than ``after``, newest first."""
    newest: Any = "+inf" if after is None else after.created_ms
    offset = 0
    while True:
        rows: list[tuple[bytes, float]] = await connection.call(
            "ZREVRANGEBYSCORE", index, newest, "-inf", "WITHSCORES", "LIMIT", offset, CHUNK, withscores=True
        )
        for job_id, created in rows:
            position = _Position(created, job_id.decode())
            if after is None or position < after:
                yield position
        if len(rows) < CHUNK:
            return
        offset += CHUNK


async def _matching(connection: Connection, keys: Keys, positions: list[_Position], query: JobQuery) -> list[_Position]:
    """Those of ``positions`` that have the state, the labels and the error's code that ``query`` asks for."""
    wanted = dict(query.labels).items()
    code = None if query.code is None else query.code.encode()
    matching: list[_Position] = []
    for start in range(0, len(positions), CHUNK):
        chunk = positions[start : start + CHUNK]
        if query.caller is not None and query.status is not None:
            scores = await connection.call(
                "ZMSCORE", keys.status(query.status), *(position.job_id for position in chunk)
            )
            chunk = [position for position, score in zip(chunk, scores, strict=True) if score is not None]
        if code is not None and chunk:
            codes = await connection.call("HMGET", keys.codes, *(position.job_id for position in chunk))
            chunk = [position for position, found in zip(chunk, codes, strict=True) if found == code]
        if wanted and chunk:
            found = await connection.call("HMGET", keys.labels, *(position.job_id for position in chunk))
            chunk = [
                position
                for position, labels in zip(chunk, found, strict=True)
                if labels is not None and wanted <= _labels(labels).items()
            ]
        matching += chunk
    return matching


def _labels(stored: bytes) -> dict[str, str]:
    """A job's labels; none where what is stored is no JSON object: one bad entry must not fail a listing."""
    try:
        labels = orjson.loads(stored)
    except orjson.JSONDecodeError:
        return {}
    return cast(dict[str, str], labels) if isinstance(labels, dict) else {}
