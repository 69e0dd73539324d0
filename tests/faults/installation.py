"""A whole installation as processes that a test may kill, stop and start again: store, API processes, supervisors.

Leases are short, so that what a lease decides is decided within a test.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from tests.service import ROOT, free_port
from tests.worker.harness import Valkey, eventually, own_valkey

from pipeserve.parent import preexec_die_with_parent
from pipeserve.sdk.snapshot import snapshot
from pipeserve.sdk.target import load_target
from pipeserve.settings import StoreSettings
from pipeserve.store import open_store

PIPELINES = Path(__file__).with_name("pipelines.py")
LEASE = 2.0
"""Seconds."""


class Part:
    """One process of the installation; its children too, if it has any."""

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.environment = dict(environment)
        self.log_file = folder / f"{name}.log"
        self._arguments = tuple(arguments)
        self.wanted = False
        """Whether it should run: it was started, and neither killed nor told to stop since."""
        self._process: subprocess.Popen[bytes] | None = None
        self._family: list[psutil.Process] = []

    @property
    def pid(self) -> int:
        """Of the process that was started last."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What it and its children have written, over all its lives."""
        return self.log_file.read_text(errors="replace")

    def start(self) -> None:
        """Start it, or a successor of one that has ended."""
        assert not self.running, f"{self.name} runs already"
        self.wanted = True
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self._arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                preexec_fn=preexec_die_with_parent(),  # noqa: PLW1509 - it only calls prctl
            )

    def children(self) -> list[psutil.Process]:
        """Its living children: a supervisor's worker processes."""
        with contextlib.suppress(psutil.NoSuchProcess):
            found = psutil.Process(self.pid).children()
            self._family = list({*self._family, *found})
            return [child for child in found if child.status() != psutil.STATUS_ZOMBIE]
        return []

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        if number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
            self.wanted = False
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for its end. Its children learn of that by themselves."""
        self.children()  # to know them at the end
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    async def ended(self, *, seconds: float = 30.0) -> int:
        """Its exit code, once it has ended."""
        process = self._process
        assert process is not None
        await eventually(lambda: process.poll() is not None, f"{self.name} ends", seconds=seconds)
        return process.returncode

    def end_all(self) -> None:
        """Kill what is left of it and of all children that it ever had."""
        if self._process is None:
            return
        self.children()
        for child in self._family:
            with contextlib.suppress(psutil.NoSuchProcess):  # psutil knows a pid that was given away again
                child.kill()
        self._process.kill()
        self._process.wait()


@dataclass
class Installation:
    """Everything that serves one deployment."""

    folder: Path
    target: str
    store: Valkey
    deployment_id: str
    apis: list[Part]
    supervisors: list[Part]
    children: int
    """Worker processes of each supervisor."""
    urls: list[str] = field(default_factory=list[str])

    @property
    def effects(self) -> Path:
        """Where steps leave their lines."""
        return self.folder / "effects"

    @property
    def parts(self) -> list[Part]:
        """All but the store."""
        return [*self.apis, *self.supervisors]

    @property
    def logs(self) -> str:
        """What all parts have written."""
        return "\n".join(part.log for part in self.parts)

    def workers(self) -> list[psutil.Process]:
        """The living worker processes."""
        return [child for supervisor in self.supervisors for child in supervisor.children()]

    def busy(self) -> list[psutil.Process]:
        """The living worker processes in which a step has begun and not ended."""
        open_steps: Counter[int] = Counter()
        for _, _, pid, what, _ in effect_lines(self.effects):
            open_steps[int(pid)] += 1 if what == "begin" else -1
        return [worker for worker in self.workers() if open_steps[worker.pid] > 0]

    async def serving(self) -> list[int]:
        """The living worker processes that take jobs, as ``/status`` lists them. Empty: nobody answers."""
        alive = {worker.pid for worker in self.workers()}
        for at, _ in enumerate(self.urls):
            with contextlib.suppress(httpx.HTTPError):
                return [
                    worker["pid"] for worker in (await self.get("/status", api=at))["workers"] if worker["pid"] in alive
                ]
        return []

    def store_pid(self) -> int:
        """The store's process."""
        with self.store.client() as client:
            return client.info("server")["process_id"]

    async def restart_store(self) -> None:
        """SIGKILL the store and start it again on its files."""
        await asyncio.to_thread(self.store.kill)
        await asyncio.to_thread(self.store.start)

    async def get(self, path: str, *, api: int = 0) -> Any:
        """JSON of a GET from one API process."""
        async with httpx.AsyncClient(base_url=self.urls[api], timeout=30) as http:
            answer = await http.get(path)
            answer.raise_for_status()
            return answer.json()

    async def submit(self, *, api: int = 0, **parameters: Any) -> str:
        """A new job with these parameters; its id."""
        async with httpx.AsyncClient(base_url=self.urls[api], timeout=30) as http:
            answer = await http.post("/invoke?mode=async", json={"parameters": parameters})
            assert answer.status_code == 202, answer.text
            return answer.json()["job_id"]

    async def job(self, job_id: str) -> dict[str, Any]:
        """The job as it is now."""
        return await self.get(f"/jobs/{job_id}")

    async def log_of(self, job_id: str) -> list[dict[str, Any]]:
        """The job's events."""
        page = await self.get(f"/jobs/{job_id}/events")
        events = page["events"]
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        return events

    async def finished(self, job_id: str, *, seconds: float = 25.0) -> dict[str, Any]:
        """The job, once it has ended."""

        async def has_ended() -> bool:
            return (await self.job(job_id))["completed_at"] is not None

        await eventually(has_ended, f"job {job_id} ends", seconds=seconds)
        return await self.job(job_id)

    async def ready(self, *, seconds: float = 30.0) -> None:
        """Return once every API process takes requests and every worker process takes jobs."""

        async def is_ready() -> bool:
            try:
                for at, _ in enumerate(self.urls):
                    await self.get("/health/ready", api=at)
            except httpx.HTTPError:
                return False
            return len(await self.serving()) == self.children * len(self.supervisors)

        try:
            await eventually(is_ready, "all parts are ready", seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs[-5000:]}") from None

    def begun(self) -> list[tuple[str, int, int]]:
        """The begins of steps so far: job, attempt, process."""
        return [
            (job_id, int(attempt), int(pid))
            for job_id, attempt, pid, what, _ in effect_lines(self.effects)
            if what == "begin"
        ]


def effect_lines(path: Path) -> Iterable[tuple[str, str, str, str, str]]:
    """The lines of ``tests/faults/pipelines.py``: job, attempt, process, what, when."""
    if path.exists():
        for line in path.read_text().splitlines():
            job_id, attempt, pid, what, at = line.split()
            yield job_id, attempt, pid, what, at


@contextlib.asynccontextmanager
async def installation(
    pipeline: str = "drill",
    *,
    apis: int = 2,
    supervisors: int = 2,
    children: int = 2,
    concurrency: int = 4,
    **environment: str,
) -> AsyncIterator[Installation]:
    """The pipeline of ``tests/faults/pipelines.py``, served by processes that all run when the block begins.

    ``environment`` goes to every process. What is left at the end is killed.
    """
    target = f"{PIPELINES}:{pipeline}"
    loaded = load_target(target)
    with own_valkey() as store:
        async with open_store(StoreSettings.from_environment(redis_url=store.url)) as opened:
            deployment = await opened.registry.save(snapshot(loaded.pipeline, loaded.target))
        given = {name: value for name, value in os.environ.items() if not name.startswith(("ZENML_", "PIPESERVE_"))}
        given |= {
            "PIPESERVE_REDIS_URL": store.url,
            "PIPESERVE_DATA_DIR": str(store.folder / "data"),
            "PIPESERVE_LEASE_SECONDS": str(LEASE),
            "ZENML_PIPELINE_DEPLOYMENT_ID": deployment.id,
            "PYTHONFAULTHANDLER": "1",
            **environment,
        }
        ports = [free_port() for _ in range(apis)]
        worker = ("-m", "pipeserve_worker", "--processes", str(children), "--concurrency", str(concurrency))
        at = Installation(
            folder=store.folder,
            target=target,
            store=store,
            deployment_id=deployment.id,
            apis=[
                Part(f"api-{port}", ("-m", "pipeserve_api"), given | {"ZENML_SERVICE_PORT": str(port)}, store.folder)
                for port in ports
            ],
            supervisors=[Part(f"workers-{number}", worker, given, store.folder) for number in range(supervisors)],
            children=children,
            urls=[f"http://127.0.0.1:{port}" for port in ports],
        )
        try:
            for part in at.parts:
                part.start()
            await at.ready()
            yield at
            for part in at.parts:
                assert part.running or not part.wanted, f"{part.name} ended by itself:\n{part.log[-5000:]}"
        finally:
            for part in at.parts:
                part.end_all()


def now() -> float:
    """Unix time in seconds, by the clock that the store and all processes of this machine go by."""
    return time.time()


async def paused(pid: int, seconds: float) -> None:
    """SIGSTOP ``pid`` for so long. The length of the pause is the fault itself."""
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
