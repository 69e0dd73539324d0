"""The look at the ledger that every process takes now and then."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from pipeserve.errors import StoreUnavailableError
from pipeserve.runtime.ports import JobLedger, Reconciliation
from pipeserve.runtime.upkeep import Upkeep

Answer = Reconciliation | Exception | None


class Asked:
    """A ledger that answers as the test says, and lets it wait for each question."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.owners: list[str] = []
        self._news = asyncio.Condition()

    async def reconcile(self, owner: str) -> Reconciliation | None:
        async with self._news:
            self.owners.append(owner)
            self._news.notify_all()
        answer = self._answers.pop(0) if self._answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def times(self, count: int) -> None:
        """Return once it was asked so often."""
        async with self._news:
            await self._news.wait_for(lambda: len(self.owners) >= count)


def upkeep(ledger: Asked, interval: float = 0.001) -> Upkeep:
    return Upkeep(cast(JobLedger, ledger), "me", interval=interval)


async def test_it_asks_at_once_and_then_again_and_again():
    ledger = Asked()
    async with upkeep(ledger):
        await ledger.times(3)
    assert set(ledger.owners) == {"me"}


async def test_what_was_set_right_is_logged_as_a_warning_with_its_figures(caplog: pytest.LogCaptureFixture):
    ledger = Asked(Reconciliation(queued=2, released=1))
    async with upkeep(ledger):
        await ledger.times(2)
    [record] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert (record.__dict__["queued"], record.__dict__["released"]) == (2, 1)


async def test_nothing_is_said_where_all_is_right(caplog: pytest.LogCaptureFixture):
    ledger = Asked(Reconciliation(), None)
    async with upkeep(ledger):
        await ledger.times(3)
    assert caplog.text == ""


@pytest.mark.parametrize("error", [StoreUnavailableError("away"), RuntimeError("a defect")])
async def test_it_survives_what_the_ledger_raises(error: Exception):
    ledger = Asked(error, error)
    async with upkeep(ledger):
        await ledger.times(3)


def test_an_interval_must_be_above_zero():
    with pytest.raises(ValueError, match="interval > 0"):
        upkeep(Asked(), 0)
