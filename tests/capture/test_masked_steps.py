"""Masks hold for every kind of step and pipeline, and a secret never reaches the store by another way."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import pytest
from pydantic import BaseModel
from tests.capture.masked import MADE, PERSONAL, TOKEN, tell
from tests.capture.places import places
from tests.capture.process_steps import careful_elsewhere, flooding
from tests.capture.test_masks import found

from pipeserve import (
    Batch,
    Cache,
    Capture,
    DefinitionError,
    Pipeline,
    Redact,
    Secret,
    Stream,
    get_context,
    log_metadata,
    pipeline,
    step,
)
from pipeserve.jobs import JobStatus
from pipeserve.runtime.realtime import RealtimeRuntime
from pipeserve.runtime.recording.run_log import RunLog
from pipeserve.runtime.run import RunRequest
from pipeserve.sdk.snapshot import snapshot
from pipeserve.settings import RuntimeSettings
from pipeserve.testing import TestRun, run_pipeline_async


async def everything_of(served: Pipeline[..., Any], parameters: dict[str, Any], store_url: str) -> bytes:
    """All that a synchronous and a queued run leave behind, wherever."""
    async with places(served, store_url) as around:
        jobs = [(await around.call(parameters, mode=mode))[0] for mode in ("sync", "async")]
        everything = await around.everything(*jobs)
    return b"".join(everything.values())


def messages(run: TestRun) -> list[str]:
    return [str(event.message) for event in run.events if event.event_type == "log"]


async def test_a_dynamic_pipeline_masks_what_its_body_and_its_steps_are_given(store_url: str) -> None:
    @step
    def use(secret: Secret[str]) -> str:
        tell(secret)
        return "used"

    @pipeline(dynamic=True)
    async def serve(token: Secret[str]) -> Secret[str]:
        tell(token)
        await asyncio.to_thread(use, MADE)  # a value that no parameter has brought
        return PERSONAL

    assert found(await everything_of(serve, {"token": TOKEN}, store_url)) == set()


async def test_a_parameter_that_goes_to_a_masked_one_of_a_step_is_masked(store_url: str) -> None:
    class Options(BaseModel):
        key: str
        size: int = 1

    @step
    def first(size: int) -> int:
        return size

    @step
    def use(secret: Secret[str], given: Secret[str], after: int) -> str:
        tell(secret)
        tell(given)
        return "used"

    @pipeline
    def serve(token: str, options: Options) -> Any:
        return use(token, options.key, first(options.size))

    parameters = {"token": TOKEN, "options": {"key": MADE, "size": 2}}
    async with places(serve, store_url) as around:
        job_id, _ = await around.call(parameters, mode="async")
        job = (await around.served.http.get(f"/jobs/{job_id}")).json()
        everything = await around.everything(job_id)
    assert found(*everything.values()) == set()
    assert job["parameters"] == {"token": "***", "options": {"key": "***", "size": 2}}


async def test_a_batched_step_masks_the_values_of_all_its_callers(store_url: str) -> None:
    logger = logging.getLogger("tests.batch")

    @step(batch=Batch(max_size=2, max_wait_ms=1000))
    def use(token: list[str]) -> list[Secret[str]]:
        for each in token:
            tell(each)
            logger.warning("made %s", MADE)
        for member in get_context().members:
            member.log_metadata({"all": [*token, MADE]})
        return [MADE for _ in token]

    @pipeline
    def serve(token: Secret[str]) -> Any:
        return use(token)

    async with places(serve, store_url) as around:
        calls = await asyncio.gather(*[around.call({"token": token}, mode="sync") for token in (TOKEN, PERSONAL)])
        everything = await around.everything(*[job_id for job_id, _ in calls])
    # Each job's own record hides its own; what is written by the batch itself belongs to both.
    assert found(everything["process"]) == set()
    assert "made" not in found(everything["store"], everything["routes"])


async def test_a_stream_with_masked_yields_is_masked_also_where_it_is_read_live() -> None:
    @step
    async def yields() -> AsyncIterator[Secret[str]]:
        yield TOKEN
        yield MADE

    @step
    async def reads(values: Stream[str]) -> int:
        count = 0
        async for value in values:
            tell(value)
            count += 1
        return count

    @pipeline
    async def serve() -> dict[str, Any]:
        values = yields()
        return {"count": await reads(await values)}

    run = await run_pipeline_async(serve)
    assert run.raise_for_status().outputs == {"count": 2}
    assert found(repr(run.events).encode()) == set()
    outputs = [event.data for event in run.events if event.event_type == "output" and event.step_name == "yields"]
    assert outputs == [{"value": "***", "index": 0}, {"value": "***", "index": 1}]


@pytest.mark.parametrize("whole", [True, False])
async def test_a_generator_with_a_masked_result_is_masked_however_that_is_written(whole: bool) -> None:
    if whole:

        @step
        def yields() -> Secret[Iterator[str]]:
            yield TOKEN
    else:

        @step
        def yields() -> Iterator[Secret[str]]:
            yield TOKEN

    @pipeline
    def serve() -> Any:
        return yields()

    run = await run_pipeline_async(serve)
    assert run.outputs == {"output": [TOKEN]}
    assert found(repr(run.events).encode()) == set()


class Account(BaseModel):
    name: str
    key: Secret[str]
    mail: Redact[str]


async def test_of_a_model_only_the_masked_fields_are_masked(store_url: str) -> None:
    @step
    def make() -> Account:
        return Account(name="ann", key=MADE, mail=PERSONAL)

    @pipeline
    def serve() -> dict[str, Any]:
        account = make()
        return {"account": account, "key": account.key, "name": account.name, "both": [account.name, account.mail]}

    async with places(serve, store_url) as around:
        job_id, answer = await around.call({}, mode="sync")
        http = around.served.http
        outputs = (await http.get(f"/jobs/{job_id}")).json()["outputs"]
        result = (await http.get(f"/jobs/{job_id}/result")).json()["outputs"]
        stored = await around.stored()
    assert answer.json()["outputs"]["key"] == MADE
    assert outputs == {
        "account": {"name": "ann", "key": "***", "mail": "***"},
        "key": "***",
        "name": "ann",
        "both": ["ann", "***"],
    }
    assert result == {
        "account": {"name": "ann", "key": "***", "mail": PERSONAL},
        "key": "***",
        "name": "ann",
        "both": ["ann", PERSONAL],
    }
    assert "made" not in found(stored)


async def test_a_large_secret_is_no_artifact(store_url: str) -> None:
    large = MADE * 5000

    @step
    def make() -> Secret[str]:
        return large

    @pipeline
    def serve() -> Any:
        return make()

    async with places(serve, store_url, inline_limit=100) as around:
        job_id, answer = await around.call({}, mode="sync")
        assert answer.json()["outputs"] == {"output": large}
        result = (await around.served.http.get(f"/jobs/{job_id}/result")).json()["outputs"]
        assert found(await around.stored()) == set()
    assert result == {"output": "***"}


async def test_a_short_secret_is_masked_where_it_stands_alone() -> None:
    @step
    def use(secret: Secret[str]) -> str:
        log_metadata({"alone": secret, "inside": f"<{secret}>"})
        return "used"

    @pipeline
    def serve(secret: Secret[str]) -> Any:
        return use(secret)

    run = await run_pipeline_async(serve, {"secret": "ab"})
    [told] = [event.data for event in run.events if event.event_type == "metadata"]
    assert told == {"alone": "***", "inside": "<ab>"}


async def test_a_secret_at_the_place_where_a_line_is_cut_shows_no_beginning_of_itself() -> None:
    @step
    def use(secret: Secret[str]) -> str:
        print("x" * (16_384 - 5) + secret)
        return "used"

    @pipeline
    def serve(secret: Secret[str]) -> Any:
        return use(secret)

    run = await run_pipeline_async(serve, {"secret": "abcdefgh"})
    [line] = messages(run)
    assert line == "x" * (16_384 - 5) + "***…"


async def test_lines_of_a_step_with_a_masked_result_keep_their_order_and_come_before_its_end() -> None:
    @step
    def make() -> Secret[str]:
        for number in range(3):
            print(number, MADE)
            log_metadata({"number": number})
        return MADE

    @pipeline
    def serve() -> Any:
        return make()

    run = await run_pipeline_async(serve)
    told = [event for event in run.events if event.step_name == "make"]
    assert [str(event.event_type) for event in told] == ["step_started", *["log", "metadata"] * 3, "step_completed"]
    assert messages(run) == ["0 ***", "1 ***", "2 ***"]


async def test_a_step_that_fails_tells_what_it_had_to_say() -> None:
    @step
    def make() -> Secret[str]:
        print("before")
        raise RuntimeError("no")

    @pipeline
    def serve() -> Any:
        return make()

    run = await run_pipeline_async(serve)
    assert messages(run) == ["before"]
    assert run.error is not None


async def test_what_an_abandoned_step_has_told_is_told_and_nothing_after_that(
    capsys: pytest.CaptureFixture[str],
) -> None:
    goes_on = threading.Event()

    @step(timeout=0.05)
    def make() -> Secret[str]:
        print("before")
        goes_on.wait(10)
        print("after", MADE)
        return MADE

    @pipeline
    def serve() -> Any:
        return make()

    definition = serve.definition
    async with RealtimeRuntime(definition, RuntimeSettings.from_environment(timeout_grace=0.0)) as runtime:
        log = RunLog("job", 1, definition.capture, 1)
        run = runtime.start(RunRequest("job", 1, definition.parameters.validate({}), "run"), log)
        assert (await run.wait()).status is JobStatus.TIMED_OUT
        goes_on.set()
    bodies = b"".join(log.bodies(0))
    assert b"before" in bodies
    assert b"after" not in bodies
    assert capsys.readouterr().out == "before\n"


# ---- what would write a secret to the store


@pytest.mark.parametrize("options", [{"checkpoint": True}, {"cache": Cache(scope="shared")}])
def test_a_step_whose_secret_result_would_be_stored_is_refused(options: dict[str, Any]) -> None:
    def make() -> Annotated[Secret[str], "token"]:
        return MADE

    with pytest.raises(DefinitionError, match=r"step 'make'.*Secret"):
        step(**options)(make)

    def redacted() -> Redact[str]:
        return MADE

    step(**options)(redacted)


async def test_a_pipelines_shared_cache_is_none_for_a_step_with_a_secret_result(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    @step
    def make() -> Secret[str]:
        return MADE

    @pipeline(cache=Cache(scope="shared", ttl=60))
    def serve() -> Any:
        return make()

    everything = await everything_of(serve, {}, store_url)
    assert found(everything) == set()
    assert b"its result is Secret" in everything


def test_a_masked_default_stands_in_no_schema() -> None:
    class Options(BaseModel):
        key: Secret[str] = MADE
        size: int = 3

    @step
    def use(options: Options, pin: Secret[int] = 918273) -> str:
        return "used"

    given, made = Options(key=PERSONAL), (MADE,)

    @pipeline(capture=Capture(code=False))
    def serve(token: Secret[str] = TOKEN, options: Options = given, many: tuple[Secret[str], ...] = made):
        return use(options)

    record = snapshot(serve, "tests:serve").model_dump_json().encode()
    assert found(record) == set()
    properties = serve.definition.input_schema()["properties"]
    assert properties["token"] == {
        "title": "Token",
        "type": "string",
        "format": "password",
        "writeOnly": True,
        "x-masked": "secret",
    }
    assert serve.definition.input_schema()["$defs"]["Options"]["properties"]["size"]["default"] == 3


# ---- steps in processes of their own


@pytest.mark.e2e
async def test_a_step_in_its_own_process_tells_no_secret(store_url: str, capfd: pytest.CaptureFixture[str]) -> None:
    everything = await everything_of(careful_elsewhere, {"token": TOKEN}, store_url)
    assert found(everything) == set()
    assert b"printed ***" in everything
    written = capfd.readouterr()  # by the child itself
    assert found(written.out.encode(), written.err.encode()) == set()


@pytest.mark.e2e
async def test_a_step_in_its_own_process_that_floods_its_log_is_bounded() -> None:
    run = await run_pipeline_async(flooding, {"lines": 20_000})
    *kept, cut, more = [event for event in run.raise_for_status().events if event.event_type == "log"]
    assert len(kept) == RuntimeSettings.from_environment().log_limit // 999
    assert cut.data == {"logger": "pipeserve", "cut": True}
    assert more.data["bytes"] > 18_000_000
