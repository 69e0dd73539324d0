"""What makes a repeated request the same job: its caller's key, and a digest of what it asks for.

No key and no body is kept as it is. The digest of a body is made with the caller's own key, so that whoever reads the
store can't try out what short secrets it held.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from pipeserve.errors import BadRequestError
from pipeserve.runtime.ports import CacheUse, IdempotencyKey

HEADER = b"idempotency-key"
REPLAYED = {"idempotency-replayed": "true"}
"""What the answer carries when the job was there already."""
MAX_LENGTH = 255


def read_key(headers: list[tuple[bytes, bytes]]) -> str | None:
    """The ``Idempotency-Key`` of a request. Raises BadRequestError for one that can't be a key, and for several."""
    values = [value for name, value in headers if name == HEADER]
    if not values:
        return None
    if len(values) > 1:
        raise BadRequestError("Idempotency-Key: give one")
    key = values[0].decode("latin-1")
    if not 1 <= len(key) <= MAX_LENGTH or not all("!" <= character <= "~" for character in key):
        raise BadRequestError(f"Idempotency-Key: 1 to {MAX_LENGTH} visible ASCII characters, without spaces")
    return key


def of_key(
    key: str, caller: str, body: Mapping[str, Any], cache: CacheUse, *, index: int | None = None
) -> IdempotencyKey:
    """The identity of a request with a key. ``index``: its place in a batch."""
    place = "" if index is None else str(index)
    digest = hashlib.sha256("\n".join((caller, key, place)).encode()).hexdigest()  # a key has no line breaks
    return IdempotencyKey(_fingerprint(body, cache, key), digest)


def of_job(job_id: str, owner: str, body: Mapping[str, Any], cache: CacheUse) -> IdempotencyKey:
    """The identity of a request whose caller chose the job's id. ``owner``: whose job it will be."""
    return IdempotencyKey(_fingerprint(body, cache, f"{owner}:{job_id}"))


def _fingerprint(body: Mapping[str, Any], cache: CacheUse, key: str) -> str:
    """The same for every way to write the same request, and however its caller wants to be answered."""
    said = {name: value for name, value in body.items() if value is not None}
    # Not orjson: whole numbers may have more than 64 bits.
    canonical = json.dumps([{"parameters": {}, **said}, cache], sort_keys=True, separators=(",", ":"))
    return hmac.digest(key.encode(), canonical.encode(), "sha256").hex()
