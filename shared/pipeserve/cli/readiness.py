"""Waits until a service that was just started answers, and all its workers have reported."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from pipeserve.cli.output import tell
from pipeserve.errors import StoreUnavailableError

if TYPE_CHECKING:
    from pipeserve.store import DeploymentStore, Store

LOOK_EVERY = 0.05
PATIENCE = 10.0
"""Seconds between words to somebody who waits; ``on_init`` may train a model, so there is no limit."""
_REPLY_SECONDS = 5.0
_EVERY_ADDRESS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


class Readiness:
    """Knows where the service is to be asked, and what it still lacks."""

    def __init__(self, host: str, port: int, *, workers: int) -> None:
        self._host = _EVERY_ADDRESS.get(host, host)
        self._port = port
        self._workers = workers
        shown = f"[{self._host}]" if ":" in self._host else self._host
        self.url = f"http://{shown}:{port}"

    async def wait(self, store: Store, deployment_id: str) -> None:
        """Return when it is ready. Tells on stderr now and then what is missing."""
        jobs = store.deployment(deployment_id)
        last_word = time.monotonic()
        try:
            while (missing := await self._missing(jobs)) is not None:
                if time.monotonic() - last_word > PATIENCE:
                    last_word = time.monotonic()
                    tell(f"pipeserve: still waiting: {missing}")
                await asyncio.sleep(LOOK_EVERY)
        finally:
            await jobs.aclose()

    async def _missing(self, jobs: DeploymentStore) -> str | None:
        """What is lacking, in words; None when the service is ready."""
        answer = await self._ask()
        if answer is not None:
            return answer
        try:
            reported = len((await jobs.operations.figures()).workers)
        except StoreUnavailableError as error:
            return error.detail
        return None if reported >= self._workers else f"{reported} of {self._workers} worker processes have reported"

    async def _ask(self) -> str | None:
        """One GET of /health/ready, by hand: the reply's status line is all that matters, but for a 503 its reason."""
        try:
            async with asyncio.timeout(_REPLY_SECONDS):
                reader, writer = await asyncio.open_connection(self._host, self._port)
                try:
                    writer.write(f"GET /health/ready HTTP/1.0\r\nHost: {self._host}\r\n\r\n".encode())
                    reply = await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return f"the API does not answer at {self.url} yet"
        if reply.split(b" ", 2)[1:2] == [b"200"]:
            return None
        reason = reply.rpartition(b"\r\n\r\n")[2]
        return f"the API is not ready: {reason[:500].decode(errors='replace')}"
