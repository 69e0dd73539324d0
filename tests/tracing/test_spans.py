"""What a trace has of a request, its job, and each of its steps."""

from __future__ import annotations

import asyncio

from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import SpanKind, StatusCode
from tests.tracing import pipelines
from tests.tracing.harness import in_trace, is_child, said, trace_id, traced, traceparent, working

CALLER = 0xABC


async def test_a_synchronous_call_is_a_request_a_run_and_its_steps_in_the_callers_trace():
    async with traced(pipelines.three) as on:
        answer = await on.served.invoke({"word": "a"}, headers=traceparent(7, parent=CALLER))
        assert answer.status_code == 200
        request, run = on.spans.one("POST /invoke"), on.spans.one("run three")
        steps = [on.spans.one(f"step {name}") for name in ("first", "second", "third")]
    assert in_trace(request) == trace_id(7)
    assert request.parent is not None
    assert request.parent.span_id == CALLER
    assert is_child(run, request)
    assert all(is_child(step, run) for step in steps)
    job_id = answer.json()["job_id"]
    told = said(request)
    assert request.kind is SpanKind.SERVER
    assert told["http.request.method"] == "POST"
    assert told["http.route"] == "/invoke"
    assert told["http.response.status_code"] == 200
    assert told["pipeserve.job_id"] == job_id
    assert said(run)["pipeserve.status"] == "completed"
    assert said(steps[0]) == {
        "pipeserve.job_id": job_id,
        "pipeserve.attempt": 1,
        "pipeserve.step.name": "first",
        "pipeserve.step.status": "completed",
        "pipeserve.step.cached": False,
        "pipeserve.step.calls": 1,
        "author": "a",
    }


async def test_authors_code_finds_its_steps_span_in_its_threads_too():
    async with traced(pipelines.three) as on:
        answer = await on.served.invoke({"word": "a"}, headers=traceparent(8))
        spans = [on.spans.one(f"step {name}").context for name in ("first", "second", "third")]
    first, second, third, thread, pool = next(iter(answer.json()["outputs"].values())).split()
    ids = [f"{span.trace_id:032x}-{span.span_id:016x}" for span in spans if span is not None]
    assert [first, second, third] == ids
    assert thread == third
    assert pool == third


async def test_a_queued_job_is_run_in_the_trace_of_who_submitted_it():
    async with traced(pipelines.three) as on:
        job_id = await on.served.submit({"word": "a"}, headers=traceparent(9))
        await on.worker.work()
        request, submit = on.spans.one("POST /invoke"), on.spans.one("submit three")
        run, step = on.spans.one("run three"), on.spans.one("step first")
    assert in_trace(request) == trace_id(9)
    assert is_child(submit, request)
    assert submit.kind is SpanKind.PRODUCER
    assert is_child(run, submit)
    assert run.kind is SpanKind.CONSUMER
    assert is_child(step, run)
    assert said(run)["messaging.message.id"] == job_id
    assert said(run)["pipeserve.status"] == "completed"


async def test_the_jobs_of_a_batch_are_children_of_its_one_submission():
    async with traced(pipelines.three) as on:
        items = [{"parameters": {"word": word}} for word in "ab"]
        answer = await on.served.http.post("/invoke/batch", json={"items": items}, headers=traceparent(10))
        assert answer.status_code == 202, answer.text
        for _ in items:
            await on.worker.work()
        submit, runs = on.spans.one("submit three"), on.spans.named("run three")
    assert said(submit)["messaging.batch.message_count"] == 2
    assert len(runs) == 2
    assert all(is_child(run, submit) for run in runs)


async def test_a_later_attempt_has_the_same_parent_and_links_to_those_before():
    async with traced(pipelines.three) as on:
        await on.served.submit({"word": "a"}, headers=traceparent(11))
        first = await on.worker.claim("one")
        on.worker.runner.accept(first)
        on.worker.runner.hand_back()
        await on.worker.runner.run(first)
        on.worker.runner.dismiss(first)
        await on.served.store.ledger.release("one", lost=True)
        async with working(on.served, on.spans) as another:
            second = await another.work()
        earlier, later = on.spans.named("run three")
        submit = on.spans.one("submit three")
    assert second.attempt == 2
    assert is_child(earlier, submit)
    assert is_child(later, submit)
    assert said(earlier)["pipeserve.status"] == "handed_back"
    [link] = later.links
    assert earlier.context is not None
    assert (link.context.trace_id, link.context.span_id) == (earlier.context.trace_id, earlier.context.span_id)
    assert said(later)["pipeserve.attempt"] == 2


async def test_the_retry_of_a_job_is_in_the_trace_of_who_asked_for_it():
    async with traced(pipelines.breaking) as on:
        job_id = await on.served.submit({"word": "a"}, headers=traceparent(12))
        await on.worker.work()
        answer = await on.served.http.post(f"/jobs/{job_id}/retry", headers=traceparent(13))
        assert answer.status_code == 202, answer.text
        await on.worker.work()
        assert [in_trace(run) for run in on.spans.named("run breaking")] == [trace_id(12), trace_id(13)]


async def test_a_failed_step_is_told_by_its_kind_of_error_and_without_values():
    async with traced(pipelines.breaking) as on:
        answer = await on.served.invoke({"word": pipelines.SECRET})
        assert answer.status_code >= 400
        step, run = on.spans.one("step breaks"), on.spans.one("run breaking")
        everything = " ".join(span.to_json() for span in on.spans.all)
    assert step.status.status_code is StatusCode.ERROR
    assert said(step)["error.type"] == "ValueError"
    assert said(step)["pipeserve.step.status"] == "failed"
    assert said(run)["error.type"] == "step_failed"
    assert pipelines.SECRET not in everything


async def test_retries_cache_and_batch_are_told():
    pipelines.calls.clear()
    async with traced(pipelines.policies) as on:
        for _ in range(2):
            assert (await on.served.invoke({"word": "a"})).status_code == 200
        [retried, _] = on.spans.named("step unsteady")
        kept = on.spans.named("step kept")
        [gathered, _] = on.spans.named("step gathered")
    assert said(retried)["pipeserve.step.calls"] == 3
    assert [said(span)["pipeserve.step.cached"] for span in kept] == [False, True]
    assert said(gathered)["pipeserve.step.batch"] == 1


async def test_a_caller_who_does_not_sample_has_no_spans_and_its_trace_goes_on():
    async with traced(pipelines.three, sampler=ParentBased(ALWAYS_ON)) as on:
        answer = await on.served.invoke({"word": "a"}, headers=traceparent(14, sampled=False))
        await on.served.submit({"word": "a"}, headers=traceparent(14, sampled=False))
        claim = await on.worker.claim()
        await on.worker.work(claim)
        assert on.spans.all == ()
    assert trace_id(14) in answer.text
    assert claim.trace is not None
    assert claim.trace.startswith(f"00-{trace_id(14)}-")
    assert claim.trace.endswith("-00")


async def test_what_vendors_add_reaches_the_worker():
    async with traced(pipelines.three) as on:
        await on.served.submit({"word": "a"}, headers=traceparent(15) | {"tracestate": "vendor=a b,other=1"})
        await on.worker.work()
        run = on.spans.one("run three")
    assert run.context is not None
    assert run.context.trace_state.get("vendor") == "a b"
    assert run.context.trace_state.get("other") == "1"


async def test_a_wrong_traceparent_begins_a_new_trace():
    async with traced(pipelines.three) as on:
        for wrong in ("nonsense", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "\xff" * 55, "0" * 5000):
            answer = await on.served.invoke({"word": "a"}, headers={"traceparent": wrong.encode("latin-1")})
            assert answer.status_code == 200
        requests = on.spans.named("POST /invoke")
    assert len(requests) == 4
    assert all(request.parent is None for request in requests)


async def test_fifty_callers_at_once_stay_apart():
    async with traced(pipelines.crowded) as on:
        answers = await asyncio.gather(
            *(on.served.invoke({"word": str(n)}, headers=traceparent(100 + n)) for n in range(50))
        )
        for number, answer in enumerate(answers):
            slow, after = next(iter(answer.json()["outputs"].values())).split()
            assert slow.startswith(trace_id(100 + number))
            assert after.startswith(trace_id(100 + number))
        for name in ("POST /invoke", "run crowded", "step slow", "step after"):
            found = sorted(in_trace(span) for span in on.spans.named(name))
            assert found == [trace_id(100 + number) for number in range(50)]


async def test_probes_and_scrapes_are_not_traced_and_refusals_are():
    async with traced(pipelines.three) as on:
        for path in ("/health", "/health/ready", "/metrics"):
            await on.served.http.get(path)
        assert on.spans.all == ()
        assert (await on.served.http.get("/jobs/none?token=tok-secret")).status_code == 404
        assert (await on.served.http.get("/nowhere")).status_code == 404
        names = [span.name for span in on.spans.all]
        assert "tok-secret" not in " ".join(span.to_json() for span in on.spans.all)
    assert names == ["GET /jobs/{job_id}", "GET"]


async def test_a_streams_span_ends_when_the_stream_begins():
    async with traced(pipelines.three) as on:
        headers = {"accept": "text/event-stream"} | traceparent(16)
        async with on.served.http.stream("POST", "/invoke", json={"parameters": {"word": "a"}}, headers=headers) as got:
            assert got.status_code == 200
            await got.aread()
        request = on.spans.one("POST /invoke")
        assert said(request)["http.response.status_code"] == 200
        assert is_child(on.spans.one("run three"), request)


async def test_a_socket_belongs_to_the_trace_of_its_handshake():
    from websockets.asyncio.client import connect

    async with traced(pipelines.three) as on:
        url = on.served.url.replace("http", "ws") + "/stream"
        async with connect(url, additional_headers=traceparent(17), subprotocols=["pipeserve.v1"]) as socket:  # type: ignore[list-item]
            await socket.send('{"op":"invoke","ref":"1","parameters":{"word":"a"}}')
            async with asyncio.timeout(5):
                while "pipeline_completed" not in str(await socket.recv()):
                    pass
        assert in_trace(on.spans.one("run three")) == trace_id(17)
