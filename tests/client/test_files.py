"""What is asked of the service besides jobs' records: what is deployed, what a job shows, and its artifacts."""

from __future__ import annotations

import pytest
from tests.client.conftest import Canned, CannedService, canned, canned_server, problem, service

from pipeserve.client import AsyncClient, Client, UnexpectedReplyError, Visualization
from pipeserve.errors import NotFoundError

__all__ = ["canned_server", "service"]  # fixtures

LISTED = {"index": 1, "name": "dot", "step_name": "draw", "media_type": "image/png", "size": 3, "href": "/x"}
SHOWN = Visualization(index=1, name="dot", media_type="image/png", size=3, step_name="draw")


def prepare(service: CannedService) -> None:
    service.answer("GET /info", canned({"pipeline": {"name": "p"}, "version": "1"}))
    service.answer("GET /jobs/j/visualizations", canned({"visualizations": [LISTED]}))
    service.answer("GET /jobs/j/visualizations/1", Canned(200, [b"a", b"bc"], "image/png"))
    service.answer("GET /jobs/j/artifacts/a b.bin", Canned(200, [b"\x00"], "application/octet-stream"))


def test_the_blocking_client_brings_them(service: CannedService) -> None:
    prepare(service)
    with Client(service.url) as client:
        job = client.job("j")
        assert client.info()["pipeline"]["name"] == "p"
        assert (job.visualizations(), job.visualization(1), job.artifact("a b.bin")) == ([SHOWN], b"abc", b"\x00")


async def test_the_async_client_brings_them(service: CannedService) -> None:
    prepare(service)
    async with AsyncClient(service.url) as client:
        job = client.job("j")
        assert (await client.info())["pipeline"]["name"] == "p"
        assert await job.visualizations() == [SHOWN]
        assert (await job.visualization(1), await job.artifact("a b.bin")) == (b"abc", b"\x00")


def test_what_is_not_there_and_what_no_service_says_are_errors(service: CannedService) -> None:
    service.answer("GET /jobs/j/artifacts/a", problem(404, "not_found"))
    service.answer("GET /jobs/j/visualizations", canned({"visualizations": [{"index": 1}]}))
    with Client(service.url) as client:
        with pytest.raises(NotFoundError):
            client.job("j").artifact("a")
        with pytest.raises(UnexpectedReplyError):
            client.job("j").visualizations()
