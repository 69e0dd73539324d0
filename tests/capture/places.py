"""Everywhere that something of a run may be found: the store's keys, every route, the process's output and log."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from tests.api.harness import Served, serving

from pipeserve import Pipeline
from pipeserve.process_log import configure_logging, get_log
from pipeserve.runtime.realtime import RealtimeRuntime
from pipeserve.settings import StoreSettings
from pipeserve.store import DeploymentStore, open_store
from pipeserve_worker.runner import JobRunner


@dataclass
class Places:
    """One service with a worker, over a store of its own, and all that they leave behind."""

    served: Served
    backend: DeploymentStore
    process_output: io.TextIOWrapper
    answers: list[bytes] = field(default_factory=list)
    """The bodies of all answers but those of synchronous calls that succeeded: these are the caller's own values."""

    async def call(self, parameters: dict[str, Any], *, mode: str, **options: Any) -> tuple[str, httpx.Response]:
        """Call the pipeline and wait for its record: the job's id, and the answer."""
        answer = await self.served.invoke(parameters, mode=mode, **options)
        if mode == "async" or answer.status_code != 200:
            self.answers.append(answer.content)
        job_id = answer.json()["job_id"]
        await self.recorded(job_id)
        return job_id, answer

    async def recorded(self, job_id: str) -> None:
        """Wait until the store has the job's end, if it is to have it."""
        if self.served.services.definition.capture.memory_only and not await self.redis.exists(
            self.backend.keys.job(job_id)
        ):
            return
        while True:
            status = await self.redis.hget(self.backend.keys.job(job_id), "status")
            if status in (b"completed", b"failed", b"canceled", b"timed_out"):
                break
            await self.served.http.get(f"/jobs/{job_id}", params={"wait": "0.05"})
        while self.served.services.inline.find(job_id) is not None:
            await self.served.http.get(f"/jobs/{job_id}", params={"wait": "0.05"})

    @property
    def redis(self) -> Any:
        """The store's own client; redis-py types its asyncio replies as if they were not."""
        return self.backend.redis

    async def stored(self) -> bytes:
        """Every key of the store with its value."""
        found: list[bytes] = []
        async for key in self.redis.scan_iter(count=1000):
            found.append(key)
            match await self.redis.type(key):
                case b"hash":
                    found += [part for pair in (await self.redis.hgetall(key)).items() for part in pair]
                case b"stream":
                    found += [part for _, entry in await self.redis.xrange(key) for part in entry.values()]
                case b"zset":
                    found += await self.redis.zrange(key, 0, -1)
                case b"set":
                    found += await self.redis.smembers(key)
                case b"list":
                    found += await self.redis.lrange(key, 0, -1)
                case _:
                    found.append(await self.redis.get(key) or b"")
        return b"\n".join(found)

    async def told(self, *job_ids: str) -> bytes:
        """What every route that can be read answers, for each of these jobs, and all that calls were answered."""
        http = self.served.http
        document = (await http.get("/openapi.json")).json()
        found = [*self.answers, (await http.get("/docs")).content, str(document).encode()]
        for path, operations in document["paths"].items():
            if "get" not in operations:
                continue
            for job_id in job_ids if "{job_id}" in path else [""]:
                for index in range(1, 9) if "{index}" in path else [1]:
                    place = path.replace("{job_id}", job_id).replace("{index}", str(index)).replace("{name}", "none")
                    answer = await http.get(place)
                    assert answer.status_code < 500 or path.endswith("/result"), (path, answer.text)
                    found.append(answer.content)
        for job_id in job_ids:
            found.append((await http.get(f"/jobs/{job_id}/logs", params={"format": "text"})).content)
        found.append((await http.get("/metrics", params={"format": "prometheus"})).content)
        return b"\n".join(found)

    @property
    def printed(self) -> bytes:
        """What the process has written to its output and its log."""
        buffer: Any = self.process_output.buffer
        return buffer.getvalue()

    async def everything(self, *job_ids: str) -> dict[str, bytes]:
        """All of it, by where it is."""
        return {"store": await self.stored(), "routes": await self.told(*job_ids), "process": self.printed}


@contextmanager
def _as_a_service_logs() -> Iterator[io.TextIOWrapper]:
    """Let this process write and log as one that is a service, into a buffer."""
    buffer, root = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True), logging.getLogger()
    handlers, level, streams = root.handlers[:], root.level, (sys.stdout, sys.stderr)
    hook = threading.excepthook
    quiet = {name: logging.getLogger(name).level for name in ("uvicorn", "arq")}
    sys.stdout = sys.stderr = buffer
    threading.excepthook = threading.__excepthook__  # not pytest's
    configure_logging("debug")
    try:
        yield buffer
    finally:
        sys.stdout, sys.stderr = streams
        threading.excepthook = hook
        root.handlers[:] = handlers
        root.setLevel(level)
        for name, old in quiet.items():
            logging.getLogger(name).setLevel(old)


class _Leases:
    """Nobody renews them: they outlast a test."""

    def add(self, job_id: str) -> None: ...
    def discard(self, job_id: str) -> None: ...


@asynccontextmanager
async def _working(served: Served, backend: DeploymentStore) -> AsyncIterator[None]:
    """Run queued jobs as a worker process does, one after the other."""
    services = served.services
    async with RealtimeRuntime(services.definition, services.settings.runtime) as runtime:
        runner = JobRunner(
            runtime=runtime,
            definition=services.definition,
            ledger=backend.ledger,
            deployment_id=services.deployment.id,
            leases=_Leases(),
            log=get_log("pipeserve_worker"),
            attachments=backend.attachments,
        )
        stop = asyncio.Event()

        async def work() -> None:
            while not stop.is_set():
                for claim in await backend.ledger.claim("test-worker", 1):
                    runner.accept(claim)
                    await runner.run(claim)
                    runner.dismiss(claim)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), 0.005)

        task = asyncio.create_task(work())
        yield
        stop.set()
        await task


@asynccontextmanager
async def places(
    pipeline: Pipeline[..., Any], store_url: str, *, worker: bool = True, **runtime: Any
) -> AsyncIterator[Places]:
    """Serve ``pipeline``, with a worker, over the store at ``store_url``. ``runtime``: settings by field name."""
    settings = StoreSettings.from_environment(redis_url=store_url, lease_seconds=30.0)
    with _as_a_service_logs() as output:
        async with (
            open_store(settings) as store,
            store.deployment(str(uuid.uuid4())) as backend,
            serving(pipeline, backend=backend, runtime=runtime) as served,
            _working(served, backend) if worker else contextlib.nullcontext(),
        ):
            await store.registry.save(served.services.deployment)
            yield Places(served, backend, output)
