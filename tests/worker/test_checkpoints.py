"""Durable steps: another attempt at a job goes on after the last step that had finished, if it is the same call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.worker.harness import eventually, lines, scene

from pipeserve import Capture, pipeline, step
from pipeserve.errors import StaleAttemptError, StoreUnavailableError
from pipeserve.jobs import JobStatus
from pipeserve.process_log import get_log
from pipeserve.runtime.memory import MemoryStore
from pipeserve.runtime.ports import NewJob
from pipeserve.runtime.realtime import RealtimeRuntime
from pipeserve.sdk.pipeline import Pipeline
from pipeserve.sdk.target import load_target
from pipeserve.settings import RuntimeSettings
from pipeserve_worker.runner import JobRunner

DURABLE = f"{Path(__file__).parents[1] / 'e2e' / 'pipelines' / 'durable.py'}:durable"


@pytest.mark.e2e
async def test_a_job_whose_process_is_killed_goes_on_after_its_last_finished_step():
    async with scene(DURABLE) as at:
        with at.workers(processes=1, PIPESERVE_LEASE_SECONDS="300"):
            job_id = await at.submit(folder=str(at.folder))
            await eventually(lambda: lines(at.folder / "hold"), "the last step runs")
            await eventually(lambda: outputs_told(at, job_id, 4), "the log of the first attempt is written")
            psutil.Process(int(lines(at.folder / "hold")[0][2])).kill()
            await eventually(lambda: len(lines(at.folder / "hold")) == 2, "it runs again, in another process")
            (at.folder / "until").touch()
            [job] = await at.finished(job_id)
        assert (job.status, job.attempt, job.outputs) == (JobStatus.COMPLETED, 2, {"output": 1.5 + 27})
        for name in ("measure", "spell", "label"):
            assert [attempt for _, attempt, _ in lines(at.folder / name)] == ["1"], f"{name} ran once"
        resumed = {report.name: report.resumed for report in job.steps}
        assert resumed == {"measure": True, "spell": True, "label": True, "hold": False}
        assert await at.jobs.checkpoints.load(job_id) == {}, "nothing is left of them"
        # What a stream has yielded is told again: the log of the first attempt may have been lost with its process.
        assert (await at.log(job_id)).count("output") == 8


async def outputs_told(at: Any, job_id: str, count: int) -> bool:
    return (await at.log(job_id)).count("output") >= count


@pytest.mark.e2e
async def test_a_memory_only_pipeline_records_nothing_and_begins_anew():
    async with scene(DURABLE + "_in_memory") as at:
        with at.workers(processes=1, PIPESERVE_LEASE_SECONDS="300"):
            job_id = await at.submit(folder=str(at.folder))
            await eventually(lambda: lines(at.folder / "hold"), "the last step runs")
            assert await at.jobs.checkpoints.load(job_id) == {}
            psutil.Process(int(lines(at.folder / "hold")[0][2])).kill()
            (at.folder / "until").touch()
            [job] = await at.finished(job_id)
        assert (job.status, job.attempt) == (JobStatus.COMPLETED, 2)
        assert [attempt for _, attempt, _ in lines(at.folder / "measure")] == ["1", "2"]


# ---- by itself


class Kept:
    """Leases that nobody needs to renew."""

    def add(self, job_id: str) -> None:
        pass

    def discard(self, job_id: str) -> None:
        pass


class Attempts:
    """Runs one job in this process, attempt by attempt."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.job_id = ""

    async def submit(self, parameters: bytes = b"{}") -> None:
        self.job_id = "01890000-0000-7000-8000-000000000001"
        await self.store.ledger.submit(NewJob(self.job_id, "d", "p", "test", parameters, max_attempts=9))

    async def run(self, served: Pipeline[..., Any], parameters: bytes | None = None) -> Any:
        """One attempt; the job as it is then."""
        definition = served.definition
        async with RealtimeRuntime(definition, RuntimeSettings.from_environment()) as runtime:
            runner = JobRunner(
                runtime=runtime,
                definition=definition,
                ledger=self.store.ledger,
                deployment_id="d",
                leases=Kept(),
                log=get_log("test"),
                checkpoints=self.store.checkpoints,
            )
            [claim] = await self.store.ledger.claim("me", 1)
            claim = replace(claim, parameters=claim.parameters if parameters is None else parameters)
            runner.accept(claim)
            await runner.run(claim)
            runner.dismiss(claim)
        return await self.store.ledger.get(self.job_id)


class InterruptedLedger:
    """A ledger under which the first attempt's end never arrives, as if its process had died just before."""

    def __init__(self, ledger: Any) -> None:
        self._ledger = ledger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def finish(self, job_id: str, attempt: int, *rest: Any) -> bool:
        if attempt == 1:
            await self._ledger.release("me", lost=True)
        return await self._ledger.finish(job_id, attempt, *rest)


@asynccontextmanager
async def interrupted(parameters: bytes = b"{}") -> AsyncIterator[Attempts]:
    """A job whose first attempt is lost at its very end."""
    store: Any = MemoryStore()
    store.ledger = InterruptedLedger(store.ledger)
    attempts = Attempts(store)
    await attempts.submit(parameters)
    yield attempts


def counted(*, durable: bool = True, capture: Capture | None = None) -> tuple[Pipeline[..., Any], list[int]]:
    """A pipeline of one step, and the arguments with which it was called."""
    calls: list[int] = []

    @step(checkpoint=durable)
    def square(value: int) -> int:
        calls.append(value)
        return value * value

    @pipeline(capture=capture)
    def squared(value: int = 3) -> int:
        return square(value)

    return squared, calls


async def test_the_same_call_is_not_run_again():
    served, calls = counted()
    async with interrupted() as attempts:
        await attempts.run(served)
        job = await attempts.run(served)
        assert (job.status, job.attempt, job.outputs) == (JobStatus.COMPLETED, 2, {"output": 9})
        assert calls == [3]
        assert job.steps[0].resumed


async def test_a_step_that_is_not_durable_runs_again():
    served, calls = counted(durable=False)
    async with interrupted() as attempts:
        await attempts.run(served)
        job = await attempts.run(served)
        assert (job.outputs, calls, job.steps[0].resumed) == ({"output": 9}, [3, 3], False)


async def test_other_inputs_make_it_another_call():
    served, calls = counted()
    async with interrupted() as attempts:
        await attempts.run(served)
        job = await attempts.run(served, b'{"value": 4}')
        assert (job.outputs, calls) == ({"output": 16}, [3, 4])


async def test_other_code_makes_it_another_call(tmp_path: Path):
    source = "from pipeserve import pipeline, step\n\n\n@step(checkpoint=True)\ndef shift(value: int) -> int:\n"
    source += "    return value + {by}\n\n\n@pipeline\ndef shifted(value: int = 1) -> int:\n    return shift(value)\n"
    served: list[Pipeline[..., Any]] = []
    for by in (1, 10):
        file = tmp_path / f"shifted_{by}.py"
        file.write_text(source.format(by=by))
        served.append(load_target(f"{file}:shifted").pipeline)
    for second, output in ((served[0], 2), (served[1], 11)):
        async with interrupted() as attempts:
            await attempts.run(served[0])
            job = await attempts.run(second)
            assert job.outputs == {"output": output}
            assert job.steps[0].resumed is (second is served[0])


async def test_inputs_that_cannot_be_compared_are_never_taken_for_the_same():
    calls: list[object] = []

    @step
    def make() -> object:
        return object()

    @step(checkpoint=True)
    def use(thing: object) -> str:
        calls.append(thing)
        return "used"

    @pipeline
    def used() -> str:
        return use(make())

    async with interrupted() as attempts:
        await attempts.run(used)
        job = await attempts.run(used)
        assert (job.outputs, len(calls)) == ({"output": "used"}, 2)


async def test_a_result_without_a_stored_form_fails_the_job_and_names_the_step():
    @step(checkpoint=True)
    def unstorable() -> object:
        return object()

    @step
    def after(thing: object) -> str:
        return "never"

    @pipeline
    def doomed() -> str:
        return after(unstorable())

    async with interrupted() as attempts:
        await attempts.run(doomed)
        job = await attempts.run(doomed)
        assert job.status is JobStatus.FAILED
        assert job.error is not None
        assert job.error.step == "unstorable"
        assert "checkpoint=True" in job.error.detail


class AwayAtFirst:
    """Checkpoints of a store that is away for the first calls."""

    def __init__(self, checkpoints: Any, failures: int) -> None:
        self._checkpoints = checkpoints
        self.failures = failures

    def _ask(self) -> None:
        if self.failures:
            self.failures -= 1
            raise StoreUnavailableError("away")

    async def save(self, *arguments: Any) -> None:
        self._ask()
        await self._checkpoints.save(*arguments)

    async def load(self, job_id: str) -> Mapping[str, bytes]:
        self._ask()
        return await self._checkpoints.load(job_id)


async def test_a_store_that_is_away_is_waited_for():
    served, calls = counted()
    async with interrupted() as attempts:
        attempts.store.checkpoints = away = AwayAtFirst(attempts.store.checkpoints, 2)
        await attempts.run(served)
        away.failures = 2
        job = await attempts.run(served)
        assert (job.outputs, calls) == ({"output": 9}, [3])


async def test_an_attempt_that_lost_its_job_while_it_recorded_writes_nothing():
    served, _ = counted()

    class Stale:
        async def save(self, *_: object) -> None:
            raise StaleAttemptError("another attempt owns the job")

        async def load(self, _: str) -> Mapping[str, bytes]:
            return {}

    async with interrupted() as attempts:
        attempts.store.checkpoints = Stale()
        job = await attempts.run(served)
        assert job.status is JobStatus.PENDING
