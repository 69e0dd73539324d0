"""A keyed synchronous run whose opening the store did, and could not confirm."""

from __future__ import annotations

from typing import Any

import pytest
from tests.store_fixtures import wait_until

from pipeserve import pipeline, step
from pipeserve.errors import StoreUnavailableError
from pipeserve.jobs import JobStatus
from pipeserve.runtime.inline import InlineRuns
from pipeserve.runtime.memory import MemoryStore
from pipeserve.runtime.ports import Admission, IdempotencyKey, NewJob
from pipeserve.runtime.realtime import RealtimeRuntime
from pipeserve.settings import RuntimeSettings

KEY = IdempotencyKey("body", "key")


class Mute:
    """A ledger in memory that does the first opening and does not answer it."""

    def __init__(self, store: MemoryStore) -> None:
        self._ledger = store.ledger
        self.opened: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def open(self, job: NewJob, owner: str) -> Admission:
        admission = await self._ledger.open(job, owner)
        self.opened.append(job.job_id)
        if len(self.opened) == 1:
            raise StoreUnavailableError()
        return admission


@step
def one() -> int:
    return 1


@pipeline
def served() -> int:
    return one()


async def test_the_same_request_again_runs_the_job_that_was_opened_in_vain():
    store = MemoryStore()
    ledger: Any = Mute(store)  # the rest of the ledger is the store's own
    settings = RuntimeSettings.from_environment()
    async with (
        RealtimeRuntime(served.definition, settings) as runtime,
        InlineRuns(runtime, ledger, served.definition, "deployment", "owner", settings) as runs,
    ):
        parameters = served.definition.parameters.validate({})
        with pytest.raises(StoreUnavailableError):
            await runs.open(parameters, raw_parameters=b"{}", idempotency=KEY)
        admission, run = await runs.open(parameters, raw_parameters=b"{}", idempotency=KEY)
        assert not admission.replayed
        assert run is not None
        assert (await run.wait()).status is JobStatus.COMPLETED
        assert ledger.opened == [run.job_id, run.job_id]

        async def is_recorded() -> bool:
            job = await store.ledger.get(run.job_id)
            return job is not None and job.status is JobStatus.COMPLETED

        await wait_until(is_recorded, description="the record is complete")
        replay, _ = await runs.open(parameters, raw_parameters=b"{}", idempotency=KEY)
        assert (replay.job_id, replay.replayed) == (run.job_id, True)
