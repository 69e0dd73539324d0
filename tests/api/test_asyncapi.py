"""The AsyncAPI document tells what really comes: every event and frame is held against it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator
from tests.api.harness import Served, serving
from tests.api.worker import working
from websockets.asyncio.client import connect

from pipeserve import HTML, Cache, Retry, emit, log_metadata, pipeline, progress, step, visualize
from pipeserve.events import EventType
from pipeserve_api.event_data import EVENT_DATA
from pipeserve_api.socket import frames

CALLS: list[str] = []


@step(cache=Cache(ttl=60), retry=Retry(attempts=3, backoff=0))
def talk(text: str) -> str:
    CALLS.append(text)
    progress(0.5, "half")
    emit({"said": text})
    emit(object())
    log_metadata({"length": len(text)})
    visualize(HTML("<b>hello</b>"), name="greeting")
    print("printed")
    if text == "retry" and len(CALLS) == 1:
        raise ConnectionError("not yet")
    if text == "fail":
        raise ValueError("no")
    return text


@pipeline
def talking(text: str) -> str:
    return talk(text)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(talking) as service:
        yield service


async def document_of(served: Served) -> dict[str, Any]:
    return (await served.http.get("/asyncapi.json")).json()


def check(document: dict[str, Any], schema: str, value: Any) -> None:
    """Fail unless ``value`` is what the document says."""
    whole = {"$ref": f"#/components/schemas/{schema}", "components": document["components"]}
    Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(value)


def references(value: Any) -> list[str]:
    """Every ``$ref`` in a document."""
    if isinstance(value, list):
        return [found for inner in value for found in references(inner)]
    if not isinstance(value, dict):
        return []
    own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
    return own + [found for inner in value.values() for found in references(inner)]


async def test_every_reference_leads_somewhere(served: Served) -> None:
    document = await document_of(served)
    assert document["asyncapi"] == "3.0.0"
    for reference in references(document):
        place: Any = document
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
        assert isinstance(place, dict), reference


async def test_every_message_of_an_operation_is_one_of_its_channel(served: Served) -> None:
    document = await document_of(served)
    told: set[str] = set()
    for operation in document["operations"].values():
        channel = operation["channel"]["$ref"]
        for message in operation["messages"]:
            assert message["$ref"].startswith(f"{channel}/messages/")
            told.add(message["$ref"].rpartition("/")[2])
    assert told == set(document["components"]["messages"])


async def test_no_type_of_event_and_no_frame_is_left_out(served: Served) -> None:
    document = await document_of(served)
    assert set(EVENT_DATA) == set(EventType)
    ops = {
        schema["properties"]["op"]["const"]
        for name, schema in document["components"]["schemas"].items()
        if name.endswith("Frame")
    }
    unions = (frames.ClientFrame, frames.ServerFrame)
    models = [model for union in unions for model in get_args(get_args(union)[0])]
    assert ops == {get_args(model.model_fields["op"].annotation)[0] for model in models}


async def test_the_pipelines_own_schemas_are_in_it(served: Served) -> None:
    schemas = (await document_of(served))["components"]["schemas"]
    assert schemas["Parameters"]["properties"]["text"]["type"] == "string"
    assert schemas["invokeFrame"]["properties"]["parameters"] == {"$ref": "#/components/schemas/Parameters"}


@pytest.mark.parametrize("text", ["plain", "retry", "fail"])
async def test_the_events_of_runs_and_jobs_are_as_described(served: Served, text: str) -> None:
    CALLS.clear()
    document = await document_of(served)
    job_ids = [await served.submit({"text": text})]
    async with working(served):
        await served.http.get(f"/jobs/{job_ids[0]}", params={"wait": 10})
    CALLS.clear()
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
    run = await served.invoke({"text": text}, headers=headers)
    seen: set[str] = set()
    events = [json.loads(line[6:]) for line in run.text.splitlines() if line.startswith("data: ")]
    for job_id in job_ids:
        events += (await served.http.get(f"/jobs/{job_id}/events")).json()["events"]
    for event in events:
        check(document, "Event", event)
        check(document, f"{event['event_type']}Event", event)
        seen.add(event["event_type"])
    expected = {"job_queued", "pipeline_started", "step_started", "progress_update", "output", "metadata", "log"}
    expected |= {"visualization", "step_failed" if text == "fail" else "step_completed"}
    expected |= {"pipeline_failed" if text == "fail" else "pipeline_completed"}
    expected |= {"step_retrying"} if text == "retry" else set()
    assert expected <= seen


async def test_the_end_of_a_canceled_job_is_as_described(served: Served) -> None:
    document = await document_of(served)
    job_id = await served.submit({"text": "a"})
    await served.http.post(f"/jobs/{job_id}/cancel", params={"reason": "enough"})
    events = (await served.http.get(f"/jobs/{job_id}/events")).json()["events"]
    assert events[-1]["event_type"] == "pipeline_canceled"
    for event in events:
        check(document, f"{event['event_type']}Event", event)


async def test_the_snapshot_of_a_stream_is_as_described(served: Served) -> None:
    document = await document_of(served)
    job_id = await served.submit({"text": "a"})
    async with served.http.stream("GET", f"/stream/{job_id}") as stream:
        async for line in stream.aiter_lines():
            if line.startswith("data: "):
                check(document, "Job", json.loads(line[6:]))
                break


async def test_the_frames_of_a_socket_are_as_described(served: Served) -> None:
    document = await document_of(served)
    sent = [
        {"op": "ping", "ref": "1"},
        {"op": "credit", "n": 1000},
        {"op": "invoke", "ref": "2", "parameters": {"text": "a"}},
        {"op": "invoke", "ref": "3", "parameters": {}},
    ]
    ops: set[str] = set()
    async with asyncio.timeout(20), connect(served.url.replace("http", "ws") + "/stream") as socket:
        for frame in sent:
            if frame.get("ref") != "3":
                check(document, f"{frame['op']}Frame", frame)
            await socket.send(json.dumps(frame))
        job_id = ""
        while not {"end", "error", "pong", "ack", "event"} <= ops:
            frame = json.loads(await socket.recv())
            check(document, f"{frame['op']}Frame", frame)
            ops.add(frame["op"])
            job_id = frame.get("job_id", job_id)
        later = await served.submit({"text": "b"})
        await socket.send(json.dumps({"op": "subscribe", "job_id": later}))
        while "snapshot" not in ops:
            frame = json.loads(await socket.recv())
            check(document, f"{frame['op']}Frame", frame)
            ops.add(frame["op"])
