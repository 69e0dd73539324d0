"""``pipeserve jobs`` and the client against ``pipeserve serve``: what one says the other understands."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.cli.conftest import SAMPLE, Pipeserve

from pipeserve.client import AsyncClient, AsyncJob
from pipeserve.errors import IdempotencyMismatchError, InvalidParametersError, InvocationError, NotRetryableError
from pipeserve.jobs import JobStatus

pytestmark = pytest.mark.e2e

UNKNOWN = "00000000-0000-7000-8000-000000000000"


async def test_failed_jobs_are_found_shown_and_retried_once(serving: Callable[..., Any], pipeserve: Pipeserve) -> None:
    async with serving(f"{SAMPLE}:refusing", "--workers", "1") as at, AsyncClient(at.url) as client:
        env = {"PIPESERVE_URL": at.url}
        submitted = await pipeserve("invoke", "--async", "--label", "tenant=a", "--priority", "2", env=env)
        job_id = submitted.out.strip()
        with pytest.raises(InvocationError, match="I am a teapot"):
            await client.job(job_id).result()
        listed = await pipeserve("jobs", "list", "--code", "teapot", "--label", "tenant=a", env=env)
        assert listed.out.split("\t")[:3] == [job_id, "failed", "teapot"]
        shown = await pipeserve("jobs", "show", job_id, env=env)
        assert "teapot: I am a teapot" in shown.out
        assert (await pipeserve("jobs", "watch", job_id, env=env)).code == 1
        assert "It " in (await pipeserve("jobs", "explain", job_id, env=env)).out
        assert (await pipeserve("jobs", "logs", job_id, env=env)).code == 0
        again = ("jobs", "retry", "--all", "--status", "failed", "--label", "tenant=a")
        retried = await pipeserve(*again, env=env)
        old, new = retried.out.strip().split(" → ")
        assert (retried.code, old) == (0, job_id)
        await client.job(new).wait()
        record = await client.job(new).record()
        assert (record.retried_from, record.labels, record.status) == (job_id, {"tenant": "a"}, JobStatus.FAILED)
        # Both are found now. The first one is not run once more.
        assert f"{job_id} → {new}\n" in (await pipeserve(*again, env=env)).out
        assert len([job async for job in client.jobs(labels={"tenant": "a"})]) == 3
        unknown = await pipeserve("jobs", "retry", UNKNOWN, env=env)
        assert (unknown.code, unknown.out, len(unknown.err.splitlines())) == (1, "", 1)


async def test_a_key_makes_one_job_and_a_batch_many(serving: Callable[..., Any]) -> None:
    async with serving(f"{SAMPLE}:greet", "--workers", "1") as at, AsyncClient(at.url) as client:
        keyed = client.with_options(idempotency_key="order-7", labels={"kind": "keyed"})
        first = await keyed.submit(name="Ada")
        assert (await keyed.submit(name="Ada")).job_id == first.job_id
        with pytest.raises(IdempotencyMismatchError):
            await keyed.submit(name="Grace")
        assert (await first.result()).outputs == {"output": ["Hello, Ada!"]}
        assert [job.job_id async for job in client.jobs(labels={"kind": "keyed"})] == [first.job_id]
        assert [line.message async for line in first.logs()] == ["composing"]

        good, bad, other = await client.submit_many([{"name": "Ada"}, {"nobody": 1}, {"name": "Grace"}])
        assert isinstance(good, AsyncJob)
        assert isinstance(bad, InvalidParametersError)
        assert isinstance(other, AsyncJob)
        assert (await other.result()).outputs == {"output": ["Hello, Grace!"]}
        [only] = await client.submit_many([{"nobody": 1}])
        assert isinstance(only, InvalidParametersError)


async def test_a_scheduled_job_waits_can_be_canceled_and_then_retried(
    serving: Callable[..., Any], pipeserve: Pipeserve
) -> None:
    async with serving(f"{SAMPLE}:greet", "--workers", "1") as at, AsyncClient(at.url) as client:
        later = client.with_options(run_at=datetime.now(UTC) + timedelta(days=1), expires_in=2 * 86_400)
        job = await later.submit(name="Ada")
        record = await job.record()
        assert (record.status, record.run_at is not None, record.expires_at is not None) == ("pending", True, True)
        with pytest.raises(NotRetryableError):
            await job.retry()
        canceled = await pipeserve("jobs", "cancel", job.job_id, "--reason", "not needed", "--url", at.url)
        assert (canceled.code, canceled.out) == (0, "canceled\n")
        retried = await job.retry()
        assert (await retried.result()).outputs == {"output": ["Hello, Ada!"]}
