"""Webhooks in an API process: wired to its store, and told of by its settings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.contracts.stores import NO_VIEW, new_job, outcome
from tests.store_fixtures import wait_until
from tests.webhooks.receiver import SECRET, receiving

import pipeserve
from pipeserve import pipeline, step
from pipeserve.errors import ConfigurationError
from pipeserve.runtime.memory import MemoryStore
from pipeserve.runtime.ports import Webhook
from pipeserve.sdk.snapshot import snapshot
from pipeserve.settings import ArtifactSettings, WebhookSettings
from pipeserve.webhooks import DEFAULT_EVENTS
from pipeserve_api.drain import Drain
from pipeserve_api.services import services_over
from pipeserve_api.settings import MASK, ApiSettings


@step
def echo(text: str) -> str:
    return text


@pipeline
def echoing(text: str) -> str:
    return echo(text)


def told(**webhooks: Any) -> ApiSettings:
    return ApiSettings(
        artifacts=ArtifactSettings.from_environment(url="memory://pipeserve-tests"),
        webhooks=WebhookSettings.from_environment(**webhooks),
    )


@asynccontextmanager
async def opened(settings: ApiSettings, store: MemoryStore) -> AsyncIterator[None]:
    async with services_over(echoing, snapshot(echoing, "tests:echoing"), store, settings, Drain()):
        yield


async def test_an_api_process_sends_what_is_due() -> None:
    store = MemoryStore()
    settings = told(secret=SECRET, allow="127.0.0.1")
    async with receiving() as receiver, opened(settings, store):
        job = new_job(webhook=Webhook(receiver.url, DEFAULT_EVENTS))
        await store.ledger.submit(job)
        await store.ledger.claim("test:1:abc", 1)
        await store.ledger.finish(job.job_id, 1, [], NO_VIEW, outcome(job.job_id))
        await wait_until(lambda: receiver.requests, description="the event has come")
    assert receiver.requests[0].headers["user-agent"] == f"pipeserve/{pipeserve.__version__}"


async def test_without_a_secret_nothing_is_sent() -> None:
    store: Any = MemoryStore()
    del store.webhooks
    async with opened(told(), store):
        pass


async def test_a_wrong_secret_stops_the_start() -> None:
    with pytest.raises(ConfigurationError, match="PIPESERVE_WEBHOOK_SECRET"):
        async with opened(told(secret="hunter2"), MemoryStore()):
            pass


async def test_a_wrong_network_stops_the_start() -> None:
    with pytest.raises(ConfigurationError, match="PIPESERVE_WEBHOOK_ALLOW"):
        async with opened(told(secret=SECRET, allow="10.0.0.0/99"), MemoryStore()):
            pass


def test_the_status_shows_the_settings_without_the_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    shown = told(secret=SECRET, allow="*.internal").masked()
    assert shown["PIPESERVE_WEBHOOK_SECRET"] == MASK
    assert shown["PIPESERVE_WEBHOOK_ALLOW"] == "*.internal"
    assert shown["PIPESERVE_WEBHOOK_TIMEOUT"] == 15.0
    assert shown["PIPESERVE_WEBHOOK_ATTEMPTS"] == 10
    assert told().masked()["PIPESERVE_WEBHOOK_SECRET"] is None
