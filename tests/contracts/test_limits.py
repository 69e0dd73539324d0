"""Budgets of callers: what may be taken, when it comes back, and that no two callers share one."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from tests.contracts.stores import Ports
from tests.store_fixtures import wait_until

from pipeserve.runtime.memory.limits import MemoryLimits
from pipeserve.runtime.ports import Budget

HOURLY = Budget("requests", 10, 3600.0)


async def test_a_budget_is_spent_exactly_however_many_ask_at_once(ports: Ports) -> None:
    verdicts = await asyncio.gather(*(ports.limits.spend("a", [HOURLY]) for _ in range(30)))
    assert sum(verdict.allowed for verdict in verdicts) == 10
    refused = [verdict for verdict in verdicts if not verdict.allowed]
    assert all(0 < verdict.wait <= 360 and verdict.spent[0].left == 0 for verdict in refused)
    assert sorted(verdict.spent[0].left for verdict in verdicts if verdict.allowed) == list(range(10))


async def test_callers_and_budgets_are_apart(ports: Ports) -> None:
    assert (await ports.limits.spend("a", [HOURLY], 10)).allowed
    assert not (await ports.limits.spend("a", [HOURLY])).allowed
    assert (await ports.limits.spend("b", [HOURLY])).allowed
    assert (await ports.limits.spend("a", [Budget("runs", 1, 60.0)])).allowed


async def test_all_budgets_are_taken_from_or_none(ports: Ports) -> None:
    small = Budget("runs", 1, 3600.0)
    assert (await ports.limits.spend("a", [HOURLY, small])).allowed
    refused = await ports.limits.spend("a", [HOURLY, small])
    assert not refused.allowed
    assert [one.left for one in refused.spent] == [9, 0]


async def test_what_is_given_back_may_be_taken_again_and_never_more(ports: Ports) -> None:
    await ports.limits.spend("a", [HOURLY], 4)
    assert (await ports.limits.spend("a", [HOURLY], -1)).spent[0].left == 7
    assert (await ports.limits.spend("a", [HOURLY], -100)).spent[0].left == 10
    assert (await ports.limits.spend("a", [HOURLY], 10)).allowed
    assert not (await ports.limits.spend("a", [HOURLY])).allowed


async def test_more_than_the_budget_is_never_allowed(ports: Ports) -> None:
    assert not (await ports.limits.spend("a", [HOURLY], 11)).allowed
    assert (await ports.limits.spend("a", [HOURLY])).spent[0].left == 9


async def test_it_comes_back_steadily(ports: Ports) -> None:
    quick = Budget("requests", 5, 0.5)
    await ports.limits.spend("a", [quick], 5)
    refused = await ports.limits.spend("a", [quick])
    assert refused.wait <= 0.1

    async def allowed() -> bool:
        return (await ports.limits.spend("a", [quick])).allowed

    await wait_until(allowed, description="a part of the budget is back")


@given(st.lists(st.floats(min_value=0, max_value=5), max_size=200), st.integers(1, 20))
def test_no_window_ever_holds_more_than_the_budget_and_what_it_refills(pauses: list[float], size: int) -> None:
    now = [1000.0]
    limits = MemoryLimits(lambda: now[0])
    budget = Budget("requests", size, 10.0)
    taken: list[float] = []
    for pause in pauses:
        now[0] += pause
        if asyncio.run(limits.spend("a", [budget])).allowed:
            taken.append(now[0])
    for first, start in enumerate(taken):
        within = sum(start <= moment < start + 10.0 for moment in taken[first:])
        assert within <= 2 * size
