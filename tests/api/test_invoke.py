"""``POST /invoke``, called synchronously."""

from __future__ import annotations

import asyncio
import json
import logging
import socket

import httpx
import pytest
from tests.api.away import HangingStore
from tests.api.harness import Served, frames, serving, wait_until
from tests.api.pipelines import anything, failing, gated, quiet, rest, shout

from pipeserve.sdk.capture import Capture
from pipeserve.store import DeploymentStore


@pytest.fixture
async def served():
    async with serving(shout) as service:
        yield service


async def test_a_call_answers_with_its_outputs_and_what_it_was(served: Served):
    answer = await served.invoke({"text": "hey", "upper.mark": "?"}, run_name="first")
    assert answer.status_code == 200
    body = answer.json()
    assert body["success"] is True
    assert body["run_id"] == body["job_id"]
    assert body["status"] == "completed"
    assert body["outputs"] == {"loud": "HEY?", "length": 4}
    assert body["taps"] == {}
    assert body["execution_time"] >= 0
    assert body["error"] is None
    metadata = body["metadata"]
    assert metadata["pipeline_name"] == "shout"
    assert metadata["deployment_id"] == served.services.deployment.id
    assert metadata["run_name"] == "first"
    assert metadata["parameters_applied"] == ["text", "upper.mark"]
    assert metadata["cache"] == {"hits": 0, "misses": 0}
    assert [(step["name"], step["status"]) for step in metadata["steps"]] == [
        ("upper", "completed"),
        ("length", "completed"),
    ]
    assert answer.headers["vary"] == "Prefer"


async def test_taps_return_intermediate_outputs(served: Served):
    answer = await served.invoke({"text": "hey"}, taps=["upper.shouted"])
    assert answer.json()["taps"] == {"upper.shouted": "HEY!"}


async def test_a_run_without_a_name_gets_one_with_the_pipelines(served: Served):
    answer = await served.invoke({"text": "hey"})
    assert answer.json()["metadata"]["run_name"].startswith("shout-")


async def test_steps_are_not_told_without_metadata_capture():
    async with serving(quiet) as service:
        answer = await service.invoke({"text": "hey"})
        assert answer.json()["metadata"]["steps"] == []
        assert answer.json()["outputs"] == {"output": "HEY!"} or answer.json()["outputs"] == {"shouted": "HEY!"}


async def test_names_of_parameters_are_logged_and_values_never(served: Served, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.DEBUG):
        await served.invoke({"text": "my-secret-value"})
    record = next(record for record in caplog.records if record.message == "invoked")
    assert vars(record)["parameters_applied"] == "text"
    assert not any("my-secret-value" in str(vars(record)) for record in caplog.records)


# --- bad input


@pytest.mark.parametrize("body", [b"{", b"{'text': 1}", b'{"parameters": {"text": NaN}}', b"\xff\xfe", b'{"a":1} x'])
async def test_malformed_json_is_400(served: Served, body: bytes):
    answer = await served.http.post("/invoke", content=body)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "bad_request"
    assert answer.json()["instance"] == "/invoke"


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b'{"parameters": {"value": 1e400}}', "parameters.value"),
        (b'{"parameters": {"value": [1, {"a": -1E+999}]}}', "parameters.value.1.a"),
        (b'{"parameters": {"value": 1, "keep.factor": 1e309}}', "parameters.keep.factor"),
        (b'{"parameters": {"value": 1}, "timeout": 1e400}', "timeout"),
        (b'{"parameters": {"value": %b.5}}' % (b"9" * 310), "parameters.value"),
        (b"[[1e400]]", "body.0.0"),
    ],
)
@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a_number_that_no_float_can_hold_is_400_and_told_where(body: bytes, place: str, mode: str):
    async with serving(anything) as service:
        answer = await service.http.post("/invoke", content=body, params={"mode": mode})
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
        assert answer.json()["detail"].startswith(f"{place}: the number is too large")
        assert (await service.http.get("/jobs")).json()["total"] == 0


async def test_text_that_looks_like_such_a_number_is_text():
    async with serving(anything) as service:
        answer = await service.invoke({"value": ["1e400", 1e300, "9" * 400]})
        assert answer.json()["outputs"] == {"output": repr(["1e400", 1e300, "9" * 400])}


async def test_whole_numbers_of_any_size_are_run_kept_and_shown_as_sent(deployment_store: DeploymentStore):
    sent = b'{"parameters":{"value":[%d,-%d,0.1,1.0]}}' % (2**70 + 1, 2**70 + 1)
    async with serving(anything, backend=deployment_store) as service:
        answer = await service.http.post("/invoke", content=sent)
        assert answer.json()["outputs"] == {"output": repr([2**70 + 1, -(2**70) - 1, 0.1, 1.0])}
        job_id = (await service.http.post("/invoke", content=sent, params={"mode": "async"})).json()["job_id"]
        for path in (f"/jobs/{job_id}", "/jobs?status=pending"):
            assert f"[{2**70 + 1},{-(2**70) - 1},0.1,1.0]" in (await service.http.get(path)).text
        (claim,) = await deployment_store.ledger.claim("w", 1)
        assert b'{"parameters":%b}' % claim.parameters == sent


@pytest.mark.parametrize(
    ("body", "name", "kind"),
    [
        ({}, "text", "missing"),
        ({"parameters": {"text": 5}}, "text", "string_type"),
        ({"parameters": {"text": "a", "txet": "b"}}, "txet", "unknown"),
        ({"parameters": {"text": "a", "times": "many"}}, "times", "int_parsing"),
        ({"parameters": {"text": "a", "length.text": "b"}}, "length.text", "unknown"),
        ({"parameters": ["text"]}, "parameters", None),
        ({"parameters": {"text": "a"}, "webhok": {}}, "webhok", "unknown"),
        ({"parameters": {"text": "a"}, "timeout": 0}, "timeout", "greater_than"),
        ({"parameters": {"text": "a"}, "run_name": ""}, "run_name", "string_too_short"),
        ({"parameters": {"text": "a"}, "labels": {"a": 1}}, "labels.a", "string_type"),
        ({"parameters": {"text": "a"}, "taps": ["upper.nothing"]}, "taps", "unknown"),
        ([1, 2], "body", "dict_type"),
    ],
)
async def test_a_wrong_key_is_422_and_named(served: Served, body: object, name: str, kind: str | None):
    answer = await served.http.post("/invoke", json=body)
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["code"] == "invalid_parameters"
    assert problem["errors"][0]["name"] == name
    assert kind is None or problem["errors"][0]["type"] == kind
    assert name.split(".", maxsplit=1)[0].rstrip("s") in problem["detail"]


async def test_every_wrong_key_is_named_at_once(served: Served):
    answer = await served.http.post("/invoke", json={"parameters": {"times": "x", "more": 1}, "extra": 1})
    assert {error["name"] for error in answer.json()["errors"]} == {"text", "times", "more", "extra"}


async def test_an_empty_body_is_an_invocation_without_parameters(served: Served):
    answer = await served.http.post("/invoke")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["name"] == "text"


async def test_an_unknown_mode_is_refused(served: Served):
    answer = await served.invoke({"text": "a"}, mode="later")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["name"] == "mode"


async def test_a_body_over_the_limit_is_413_when_announced():
    async with serving(shout, service={"max_body": 100}) as service:
        answer = await service.invoke({"text": "x" * 100})
        assert answer.status_code == 413
        assert answer.json()["code"] == "payload_too_large"
        assert (await service.invoke({"text": "x"})).status_code == 200


async def test_a_body_over_the_limit_is_413_while_it_streams():
    async def chunks():
        for _ in range(1000):
            yield b" " * 100

    async with serving(shout, service={"max_body": 100}) as service:
        answer = await service.http.post("/invoke", content=chunks())
        assert answer.status_code == 413


async def test_get_is_405_as_a_problem(served: Served):
    answer = await served.http.get("/invoke")
    assert answer.status_code == 405
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["allow"] == "POST"


async def test_a_405_names_every_method_that_the_path_takes(served: Served):
    answer = await served.http.delete("/jobs/any")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, PUT")


# --- failures


async def test_a_failed_step_is_500_without_its_inside():
    async with serving(failing) as service:
        answer = await service.invoke({"kind": "rude"})
        problem = answer.json()
        assert answer.status_code == 500
        assert answer.headers["content-type"] == "application/problem+json"
        assert (problem["code"], problem["step"], problem["instance"]) == ("step_failed", "refuse", "/invoke")
        assert problem["job_id"]
        assert "Traceback" not in answer.text


async def test_a_step_answers_the_caller_in_its_own_words():
    async with serving(failing) as service:
        answer = await service.invoke({"kind": "polite"})
        assert answer.status_code == 404
        assert answer.json()["code"] == "document_not_found"
        assert answer.json()["detail"] == "no such document"


async def test_words_that_utf_8_cant_carry_reach_the_caller_all_the_same():
    async with serving(failing) as service:
        answer = await service.invoke({"kind": "garbled"})
        assert (answer.status_code, answer.json()["detail"]) == (422, "no file ?.txt")


@pytest.mark.parametrize("expose", [False, True])
async def test_a_traceback_is_an_event_only_where_callers_may_see_it(expose: bool):
    async with serving(failing, runtime={"expose_tracebacks": expose}) as service:
        answer = await service.invoke({"kind": "rude"}, headers={"Accept": "text/event-stream"})
        assert ("Traceback" in answer.text) is expose


async def test_a_run_past_its_timeout_is_504():
    async with serving(rest) as service:
        answer = await service.invoke({"seconds": 30}, timeout=0.05)
        assert answer.status_code == 504
        assert answer.json()["code"] == "timed_out"


async def test_more_runs_than_allowed_are_503_with_retry_after():
    held, gate = gated()
    async with serving(held, runtime={"max_concurrency": 1}) as service:
        first = asyncio.create_task(service.invoke())
        await wait_until(gate.entered.is_set, "the first run is under way")
        answer = await service.invoke()
        assert answer.status_code == 503
        assert answer.json()["code"] == "overloaded"
        assert int(answer.headers["retry-after"]) >= 1
        gate.opened.set()
        assert (await first).status_code == 200


# --- waiting


async def test_a_call_that_takes_longer_than_its_caller_waits_becomes_a_job():
    held, gate = gated()
    async with serving(held) as service:
        answer = await service.invoke({"text": "kept"}, headers={"Prefer": "wait=0.05"})
        assert answer.status_code == 202
        assert answer.headers["preference-applied"] == "wait=0.05"
        body = answer.json()
        assert answer.headers["location"] == f"/jobs/{body['job_id']}" == body["links"]["self"]
        assert body["status"] == "running"
        gate.opened.set()
        job = (await service.http.get(f"/jobs/{body['job_id']}", params={"wait": 5})).json()
        assert job["status"] == "completed"
        assert job["outputs"] == {"output": "kept"}
        assert not gate.cancelled


async def test_a_run_that_ends_while_the_store_hangs_is_answered_at_once():
    held, gate = gated()
    store = HangingStore()
    async with serving(held, backend=store) as service:
        call = asyncio.create_task(service.invoke({"text": "x"}, headers={"Prefer": "wait=0.02"}))
        await wait_until(store.ledger.asked.is_set, "the service wants to keep the run")
        gate.opened.set()
        async with asyncio.timeout(2):
            answer = await call
        assert (answer.status_code, answer.json()["outputs"]) == (200, {"output": "x"})
        store.ledger.thawed.set()

        async def recorded() -> bool:
            job = await store.ledger.get(answer.json()["job_id"])
            return job is not None and job.status.terminal

        await wait_until(recorded, "the run is recorded all the same")


async def test_the_service_has_a_longest_wait_of_its_own():
    held, gate = gated()
    async with serving(held, service={"sync_wait": 0.05}) as service:
        answer = await service.invoke()
        assert answer.status_code == 202
        assert "preference-applied" not in answer.headers
        gate.opened.set()


async def test_a_caller_who_leaves_cancels_its_run():
    held, gate = gated()
    async with serving(held) as service:
        call = asyncio.create_task(service.invoke())
        await wait_until(gate.entered.is_set, "the run is under way")
        call.cancel()
        await wait_until(lambda: gate.cancelled, "the run is cancelled")
        await wait_until(lambda: service.services.runtime.active == 0, "the run has ended")


async def test_a_caller_who_leaves_in_the_middle_of_the_body_starts_nothing(served: Served):
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as half:
        half.sendall(b'POST /invoke HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"par')
    assert (await served.invoke({"text": "a"})).status_code == 200
    assert served.services.runtime.active == 0


# --- as a stream


async def test_a_call_can_stream_its_events(served: Served):
    answer = await served.invoke({"text": "hey"}, headers={"Accept": "text/event-stream"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = frames(answer.text)
    assert blocks[0]["retry"] == "2000"
    events = [json.loads(block["data"]) for block in blocks]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["event_type"] == "pipeline_completed"
    assert events[-1]["data"]["outputs"] == {"loud": "HEY!", "length": 4}
    assert answer.headers["location"] == f"/jobs/{events[0]['job_id']}"


async def test_a_caller_who_leaves_its_stream_cancels_the_run():
    held, gate = gated(capture=Capture(memory_only=True))
    async with serving(held) as service:
        request = service.http.stream("POST", "/invoke", json={}, headers={"Accept": "text/event-stream"})
        async with request as answer:
            assert answer.status_code == 200
            await wait_until(gate.entered.is_set, "the run is under way")
        await wait_until(lambda: gate.cancelled, "the run is cancelled")


async def test_no_new_run_starts_while_the_service_drains(served: Served):
    served.drain.begin()
    answer = await served.invoke({"text": "a"})
    assert answer.status_code == 503
    assert answer.json()["code"] == "draining"
    assert "retry-after" in answer.headers


async def test_many_callers_at_once_each_get_their_own_answer(served: Served):
    answers = await asyncio.gather(*(served.invoke({"text": f"t{number}"}) for number in range(50)))
    assert [answer.json()["outputs"]["loud"] for answer in answers] == [f"T{number}!" for number in range(50)]


async def test_an_unknown_route_is_a_404_problem(served: Served):
    answer = await served.http.get("/nowhere")
    assert answer.status_code == 404
    assert answer.json()["code"] == "not_found"
    assert isinstance(answer, httpx.Response)
