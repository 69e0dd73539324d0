"""Faults under load, and the verdict on what is left afterwards."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from tests.faults.history import History, check
from tests.faults.installation import Installation
from tests.faults.load import Load, Shape
from tests.faults.pipelines import demanded

from pipeserve.events import EventType


def chance() -> random.Random:
    """What decides the moments and victims of a test. Its seed is printed; ``FAULTS_SEED=…`` gives the same again."""
    seed = int(os.environ.get("FAULTS_SEED") or secrets.randbelow(1_000_000))
    print(f"FAULTS_SEED={seed}")
    return random.Random(seed)


@contextlib.asynccontextmanager
async def loading(
    at: Installation, moments: random.Random, *, seconds: float = 0.2, **shape: Any
) -> AsyncIterator[Load]:
    """Load on the pipeline ``drill`` meanwhile, until every client has had its job's end; nothing is judged."""
    asked = Shape(
        parameters=lambda number: {"number": number, "seconds": seconds, "effects": str(at.effects)},
        outputs=demanded,
        patience=20.0,
        **shape,
    )
    load = Load(at.urls, asked, name="faults", seed=moments.randrange(1_000_000))
    async with load.running():
        yield load


@contextlib.asynccontextmanager
async def loaded(
    at: Installation, moments: random.Random, *, frozen: bool = False, **options: Any
) -> AsyncIterator[Load]:
    """As :func:`loading`; and then its history must have kept every promise.

    ``frozen``: a process may be stopped for longer than its lease.
    """
    async with loading(at, moments, **options) as load:
        yield load
    history = await load.collect(at.effects)
    history.frozen = frozen
    assert load.gave_up == 0, f"requests that were never answered: {load.gave_up}\n{at.logs[-3000:]}"
    assert len(history.accepted) > 20, "there was a load"
    judge(history)


def losses(history: History) -> Counter[str]:
    """Why attempts ended before their jobs did: ``worker_died``, ``lease_expired``, ``drained``; and how often."""
    events = (event for events in history.events.values() for event in events)
    return Counter(event["data"]["reason"] for event in events if event["event_type"] == EventType.ATTEMPT_LOST)


def judge(history: History) -> None:
    """Fail with the violations and what is known of the jobs that they are about."""
    violations = check(history)
    if not violations:
        return
    told = [str(violation) for violation in violations[:20]]
    for job_id in dict.fromkeys(violation.job_id for violation in violations[:3]):
        told += [
            f"--- {job_id}",
            str(history.jobs.get(job_id)),
            *(str(event) for event in history.events.get(job_id, [])),
            *(str(effect) for effect in history.effects if effect.job_id == job_id),
        ]
    raise AssertionError(f"{len(violations)} violations over {len(history.accepted)} jobs:\n" + "\n".join(told))
