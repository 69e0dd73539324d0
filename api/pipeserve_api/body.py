"""Reads a request's body, no more of it than the service accepts."""

from __future__ import annotations

from starlette.types import Receive

from pipeserve.errors import PayloadTooLargeError


async def read_body(receive: Receive, *, limit: int, announced: int | None) -> bytes | None:
    """The request's body; None when the caller left meanwhile.

    Raises PayloadTooLargeError as soon as the body is known to be larger than ``limit`` bytes.
    """
    if announced is not None and announced > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunk if len(chunks) == 1 else b"".join(chunks)


def _too_large(limit: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(f"The body may have {limit} bytes (PIPESERVE_MAX_BODY).")
