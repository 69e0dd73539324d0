"""Webhooks of a whole service, in its own processes."""

from __future__ import annotations

import httpx
import pytest
from tests.service import ServeFixture
from tests.store_fixtures import wait_until
from tests.webhooks.receiver import SECRET, receiving

from pipeserve.webhooks import verify

BODY = {"parameters": {"text": "A text. Another one."}}

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("mode", ["async", "sync"])
async def test_a_request_names_its_receiver(serve: ServeFixture, mode: str) -> None:
    async with receiving() as receiver:
        with serve(
            "examples/quickstart.py:quickstart", PIPESERVE_WEBHOOK_SECRET=SECRET, PIPESERVE_WEBHOOK_ALLOW="127.0.0.1"
        ) as service:
            async with httpx.AsyncClient(base_url=service.url) as http:
                sent = {**BODY, "webhook": {"url": receiver.url}}
                accepted = await http.post("/invoke", params={"mode": mode}, json=sent)
                assert accepted.is_success, accepted.text
                job_id = accepted.json()["job_id"]

                async def done() -> bool:
                    return (await http.get(f"/jobs/{job_id}")).json()["webhook"]["status"] == "done"

                await wait_until(done, description="the webhook is done")
            assert SECRET.removeprefix("whsec_") not in service.log
    (request,) = receiver.requests
    message = verify(request.headers, request.body, SECRET)
    assert (message["type"], message["data"]["job_id"]) == ("pipeline_completed", job_id)
