"""What ``/metrics`` says about recording in the background."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from tests.api.away import AwayStore
from tests.api.harness import serving, wait_until
from tests.api.pipelines import shout


async def test_metrics_show_an_open_breaker_and_what_it_costs():
    runtime = {"breaker_min_events": 1, "breaker_open_seconds": 3600}
    async with serving(shout, backend=AwayStore(), runtime=runtime) as service:
        for _ in range(70):
            assert (await service.invoke({"text": "a"})).status_code == 200

        async def opened() -> bool:
            return (await service.http.get("/metrics")).json()["publisher"]["breaker"] == "open"

        await wait_until(opened, "the breaker is open")
        body = (await service.http.get("/metrics")).json()
        assert body["publisher"]["queued"] == 70
        assert (body["publisher"]["dropped"], body["publisher"]["queue_depth"]) == (6, 64)
        assert 0 < body["event_buffer"]["bytes"] < body["event_buffer"]["max_bytes"]

        text = (await service.http.get("/metrics?format=prometheus")).text
        families = {family.name: family for family in text_string_to_metric_families(text)}
        states = {sample.labels["state"]: sample.value for sample in families["pipeserve_publisher_breaker"].samples}
        assert states == {"closed": 0.0, "half_open": 0.0, "open": 1.0}
        assert families["pipeserve_publisher_dropped"].samples[0].value == 6
        assert families["pipeserve_events_dropped"].samples[0].value == 0
        assert families["pipeserve_event_buffer_bytes"].samples[0].value > 0


async def test_nothing_is_held_once_the_store_has_it():
    async with serving(shout) as service:
        await service.invoke({"text": "a"})

        async def written() -> bool:
            body = (await service.http.get("/metrics")).json()
            return body["publisher"]["processed"] == 1 and body["event_buffer"]["bytes"] == 0

        await wait_until(written, "the run is recorded and its memory given back")
