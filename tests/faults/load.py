"""Clients that submit jobs, cancel some, wait for their ends, and write down what they saw. Bounded in count and time.

A client behaves as a careful caller does: each request has an idempotency key, and is sent again with the same key,
to any API process, until it is answered; a 429 or 503 is waited out.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tests.faults.history import Accepted, Cancel, Effect, History, Sighting
from tests.faults.installation import effect_lines

from pipeserve.jobs import JobStatus

Parameters = Callable[[int], Mapping[str, Any]]
"""The parameters of request number n."""
Outputs = Callable[[int], Mapping[str, Any]]
"""The outputs that they demand."""

_AGAIN = frozenset({429, 502, 503})
_REQUEST_SECONDS = 10.0
_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0


class GaveUpError(Exception):
    """A request got no answer in all the time that it had."""


class RefusedError(Exception):
    """The service does not take what is submitted."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How much load, and of what."""

    parameters: Parameters
    outputs: Outputs | None = None
    """None: nobody knows what a job must give."""
    clients: int = 12
    """Each has one job under way at a time."""
    cancel_share: float = 0.1
    cancel_after: float = 0.3
    """Seconds after its acceptance by which a job is canceled, if at all."""
    patience: float = 60.0
    """Seconds for which a request, or a job's end, is waited for before it counts as missing."""
    most: int = 20_000
    """Jobs."""


class Load:
    """Clients of one service, at several URLs; ``history`` is what they have seen."""

    def __init__(
        self, urls: list[str], shape: Shape, *, name: str, seed: int, headers: Mapping[str, str] | None = None
    ) -> None:
        self.history = History()
        self.gave_up = 0
        """Requests that were never answered: their jobs may exist or not."""
        self._urls = urls
        self._shape = shape
        self._name = name
        self._random = random.Random(seed)
        self._numbers = iter(range(shape.most))
        self._stop = asyncio.Event()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=shape.clients * 2)
        self._http = httpx.AsyncClient(timeout=_REQUEST_SECONDS, limits=limits, headers=headers)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The clients work meanwhile; at the end each still waits for its job, as long as its patience lasts.

        Raises an exception group with RefusedError.
        """
        try:
            async with asyncio.TaskGroup() as clients:
                for number in range(self._shape.clients):
                    clients.create_task(self._client(), name=f"client-{number}")
                try:
                    yield
                finally:
                    self._stop.set()
        except BaseException:
            await self._http.aclose()
            raise

    async def collect(self, effects: Path | None = None) -> History:
        """The history with what the store says in the end, and what steps left outside; then the clients close."""
        try:
            self.history.listed = await self._listed()
            waiting = iter(dict.fromkeys(accepted.job_id for accepted in self.history.accepted))

            async def look() -> None:
                for job_id in waiting:
                    await self._look(job_id)

            await asyncio.gather(*(look() for _ in range(8)))
        finally:
            await self._http.aclose()
        if effects is not None:
            self.history.effects = [
                Effect(job_id, int(attempt), int(pid), what, float(at))
                for job_id, attempt, pid, what, at in effect_lines(effects)
            ]
        return self.history

    async def _client(self) -> None:
        while not self._stop.is_set():
            number = next(self._numbers, None)
            if number is None:
                return
            try:
                await self._one(number)
            except GaveUpError:
                self.gave_up += 1

    async def _one(self, number: int) -> None:
        """Submit, perhaps cancel, and wait for the end."""
        request = f"{self._name}-{number}"
        body = {
            "parameters": dict(self._shape.parameters(number)),
            "labels": {"load": self._name, "request": request},
        }
        sent_at = time.time()
        answer = await self._send("POST", "/invoke?mode=async", json=body, headers={"Idempotency-Key": request})
        if answer.status_code != 202:
            raise RefusedError(f"HTTP {answer.status_code}: {answer.text}")
        job_id = answer.json()["job_id"]
        outputs = None if self._shape.outputs is None else self._shape.outputs(number)
        self.history.accepted.append(Accepted(job_id, request, time.time(), sent_at, outputs))
        if self._random.random() < self._shape.cancel_share:
            await asyncio.sleep(self._random.uniform(0, self._shape.cancel_after))
            await self._cancel(job_id)
        await self._wait(job_id)

    async def _cancel(self, job_id: str) -> None:
        asked_at = time.time()
        self.history.cancels.append(Cancel(job_id, asked_at))
        answer = await self._send("POST", f"/jobs/{job_id}/cancel?reason=drill")
        if answer.status_code == 202:
            at = next(at for at, cancel in enumerate(self.history.cancels) if cancel.job_id == job_id)
            self.history.cancels[at] = Cancel(job_id, asked_at, answer.json()["status"])

    async def _wait(self, job_id: str) -> None:
        deadline = time.monotonic() + self._shape.patience
        while time.monotonic() < deadline:
            answer = await self._send("GET", f"/jobs/{job_id}?wait=2")
            if answer.status_code == 404:
                return  # the last look will judge that
            if answer.status_code != 200:
                raise RefusedError(f"HTTP {answer.status_code}: {answer.text}")
            status = answer.json()["status"]
            self.history.sightings.append(Sighting(job_id, status, time.time()))
            if JobStatus(status).terminal:
                return

    async def _look(self, job_id: str) -> None:
        """What every API process says of a job, and its log."""
        for url in self._urls:
            answer = await self._send("GET", f"/jobs/{job_id}", url=url)
            if answer.status_code == 200:
                self.history.jobs[job_id] = job = answer.json()
                self.history.sightings.append(Sighting(job_id, job["status"], time.time()))
        events: list[dict[str, Any]] = []
        while True:
            after = events[-1]["seq"] if events else 0
            answer = await self._send("GET", f"/jobs/{job_id}/events?after={after}")
            if answer.status_code != 200:
                break
            page = answer.json()
            events += page["events"]
            if not page["events"]:  # not "done": what stands after a terminal event must be seen
                break
        self.history.events[job_id] = events

    async def _listed(self) -> dict[str, str]:
        found: dict[str, str] = {}
        cursor: str | None = ""
        while cursor is not None:
            more = f"&cursor={cursor}" if cursor else ""
            page = (await self._send("GET", f"/jobs?label.load={self._name}&limit=1000{more}")).json()
            found |= {job["job_id"]: job["labels"]["request"] for job in page["jobs"]}
            cursor = page["next_cursor"]
        return found

    async def _send(self, method: str, path: str, *, url: str | None = None, **options: Any) -> httpx.Response:
        """One request until it is answered otherwise than "later". Raises GaveUpError."""
        deadline = time.monotonic() + self._shape.patience
        while time.monotonic() < deadline:
            pause = _PAUSE_SECONDS
            with contextlib.suppress(httpx.TransportError):
                answer = await self._http.request(method, (url or self._random.choice(self._urls)) + path, **options)
                if answer.status_code not in _AGAIN:
                    return answer
                pause = min(float(answer.headers.get("retry-after", pause)), _LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(pause)
        raise GaveUpError(f"{method} {path}")
