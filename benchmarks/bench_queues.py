"""Jobs a second and CPU per job: pipeserve's workers against arq, SAQ, streaq, taskiq and Celery.

The same job that does almost nothing, the same store, one worker each, one after another in one run. A queue is filled
first; then its worker starts, and the time from the first job to the last is taken. CPU is that of the worker with its
children from the first job on, and that of the store.

What they promise differs: taskiq's list broker and Celery as it comes lose the jobs of a killed worker; arq, SAQ and
streaq find them after minutes. All keep results. pipeserve also keeps a record and a log of six events for each job
(``full``), or the record alone (``memory only``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis

from benchmarks._machine import ROOT, deployed, free_port, table, wait_for
from pipeserve.jobs import new_job_id
from pipeserve.runtime.ports import NewJob
from pipeserve.settings import StoreSettings
from pipeserve.store import open_store
from pipeserve.store.valkey_process import find_server

JOBS = 4_000
ROUNDS = 2
_ENVIRONMENTS = ROOT / "benchmarks" / ".environments"
_OTHERS = {
    "arq": ("arq==0.28.*",),
    "saq": ("saq[redis]==0.26.*", "typing-extensions"),
    "streaq": ("streaq==7.*",),
    "taskiq": ("taskiq==0.13.*", "taskiq-redis==1.*"),
    "celery": ("celery[redis]==5.*",),
}
_CONCURRENCY = 100


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run of one queue. Times are in seconds."""

    seconds: float
    cpu: float
    store_cpu: float


def python_of(name: str) -> str:
    """The Python of this queue's environment, which is made at first."""
    folder = _ENVIRONMENTS / name
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-qq", *_OTHERS[name]], check=True)
        (folder / "ready").touch()
    return str(python)


@contextlib.contextmanager
def store() -> Iterator[tuple[str, psutil.Process]]:
    """A store on a free port of the loopback interface, as durable as the embedded one."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="psq-") as folder:
        options = ("--bind", "127.0.0.1", "--appendonly", "yes", "--appendfsync", "everysec", "--save", "")
        server = subprocess.Popen(
            [find_server(), "--port", str(port), "--dir", folder, *options], stdout=subprocess.DEVNULL
        )
        url = f"redis://127.0.0.1:{port}/0"
        client = redis.Redis.from_url(url)
        try:
            wait_for(lambda: _answers(client), "the store answers")
            yield url, psutil.Process(server.pid)
        finally:
            client.close()
            server.terminate()
            server.wait()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def cpu_of(process: psutil.Process) -> float:
    """CPU seconds of a process and its children, so far."""
    family = [process, *process.children(recursive=True)]
    return sum(times.user + times.system for times in (member.cpu_times() for member in family))


def run(worker: Sequence[str], environment: dict[str, str], marks: Path, server: psutil.Process) -> Figures:
    """Start ``worker`` and watch it run ``JOBS`` jobs."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            worker, env=os.environ | environment, cwd=ROOT, stdout=output, stderr=output, start_new_session=True
        )
        family = psutil.Process(process.pid)
        try:
            wait_for(lambda: _size(marks) > 0, "the first job", 60)
            started, cpu, store_cpu = time.monotonic(), cpu_of(family), cpu_of(server)
            already = _size(marks)
            wait_for(lambda: _size(marks) >= JOBS, "the last job", 120)
            seconds = time.monotonic() - started
            share = JOBS / (JOBS - already)
            return Figures(seconds * share, (cpu_of(family) - cpu) * share, (cpu_of(server) - store_cpu) * share)
        except BaseException:
            output.seek(0)
            sys.stderr.write(output.read().decode(errors="replace")[-4000:])
            raise
        finally:
            for member in [*family.children(recursive=True), family]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            process.wait()


def _size(marks: Path) -> int:
    return marks.stat().st_size if marks.exists() else 0


def other(name: str) -> Figures:
    """One run of another queue."""
    script = str(ROOT / "benchmarks" / "queues" / f"run_{name}.py")
    with store() as (url, server), tempfile.TemporaryDirectory(prefix="psq-") as folder:
        marks = Path(folder) / "marks"
        environment = {"BENCH_REDIS_URL": url, "BENCH_FILE": str(marks)}
        command = [python_of(name), script]
        subprocess.run([*command, "enqueue", str(JOBS)], env=os.environ | environment, check=True, cwd=ROOT)
        return run([*command, "worker"], environment, marks, server)


async def ours(pipeline: str) -> Figures:
    """One run of pipeserve's."""
    with store() as (url, server), tempfile.TemporaryDirectory(prefix="psq-") as folder:
        marks = Path(folder) / "marks"
        os.environ["BENCH_FILE"] = str(marks)  # the pipeline's module reads it
        settings = StoreSettings.from_environment(redis_url=url)
        async with open_store(settings) as opened:
            deployment_id = await deployed(opened, pipeline, "_noop")
            async with opened.deployment(deployment_id) as jobs:
                keep = pipeline == "noop"
                for _ in range(0, JOBS, 20):
                    await jobs.ledger.submit_many(
                        [
                            NewJob(
                                new_job_id(), deployment_id, pipeline, "bench", b"{}", total_steps=1, keep_events=keep
                            )
                            for _ in range(20)
                        ]
                    )
        environment = {
            "PIPESERVE_REDIS_URL": url,
            "ZENML_PIPELINE_DEPLOYMENT_ID": deployment_id,
            "ZENML_LOG_LEVEL": "warning",
            "BENCH_FILE": str(marks),
        }
        worker = (sys.executable, "-m", "pipeserve_worker", "--processes", "1", "--concurrency", str(_CONCURRENCY))
        return await asyncio.to_thread(run, worker, environment, marks, server)


def main() -> None:
    """Measure and print."""
    found: dict[str, list[Figures]] = {}
    for _ in range(ROUNDS):
        for pipeline, name in (("noop", "pipeserve, full"), ("noop_in_memory", "pipeserve, memory only")):
            found.setdefault(name, []).append(asyncio.run(ours(pipeline)))
        for name in _OTHERS:
            found.setdefault(name, []).append(other(name))
    rows: list[tuple[str, ...]] = []
    for name, runs in found.items():
        best = min(runs, key=lambda figures: figures.seconds)
        rows.append(
            (
                name,
                f"{JOBS / best.seconds:,.0f}",
                f"{min(figures.cpu for figures in runs) / JOBS * 1e3:.2f}",
                f"{min(figures.store_cpu for figures in runs) / JOBS * 1e3:.2f}",
            )
        )
    table(
        f"{JOBS:,} jobs that do nothing, one worker, the best of {ROUNDS} rounds",
        ("", "jobs/s", "worker CPU ms/job", "store CPU ms/job"),
        rows,
    )


if __name__ == "__main__":
    main()
