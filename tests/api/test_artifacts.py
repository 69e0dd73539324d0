"""Large outputs over HTTP: answered whole, referred to in records and events, and downloaded."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tests.api.harness import Served, frames, serving, wait_until

from pipeserve import Capture, Materializer, pipeline, step
from pipeserve.process_log import get_log
from pipeserve.runtime.realtime import RealtimeRuntime
from pipeserve.runtime.values.artifact_writer import ArtifactWriter
from pipeserve.runtime.values.artifacts import ArtifactStore
from pipeserve_worker.runner import JobRunner

LARGE = 20_000


@step
def count(size: int) -> Annotated[list[int], "numbers"]:
    return list(range(size))


@pipeline
def counting(size: int = LARGE):
    return count(size)


@pipeline(capture=Capture(memory_only=True))
def counting_in_memory(size: int = LARGE):
    return count(size)


@step
async def dawdle(size: int) -> str:
    await asyncio.sleep(0.3)
    return "x" * size


@pipeline(capture=Capture(memory_only=True))
def slow_in_memory(size: int = 100_000):
    return dawdle(size)


@step
def draw(seed: int) -> Annotated[np.ndarray, "samples"]:
    return np.random.default_rng(seed).normal(size=(LARGE, 2))


@step
def tabulate(samples: np.ndarray) -> Annotated[pd.DataFrame, "table"]:
    return pd.DataFrame(samples, columns=["a", "b"])


@step
def picture(samples: np.ndarray) -> Annotated[Image.Image, "image"]:
    pixels = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype="uint8")
    return Image.fromarray(pixels)


@step
def mean(samples: np.ndarray) -> Annotated[float, "mean"]:
    return float(samples.mean())


@pipeline
def sampling(seed: int = 1):
    samples = draw(seed)
    return {"samples": samples, "table": tabulate(samples), "image": picture(samples), "mean": mean(samples)}


class Report:
    def __init__(self, text: str) -> None:
        self.text = text


class ReportAsText(Materializer[Report]):
    type = Report
    media_type = "text/x-report"
    suffix = ".report"

    def dump(self, value: Report) -> bytes:
        return value.text.encode()

    def load(self, data: bytes) -> Report:
        return Report(data.decode())

    def as_json(self, value: Report) -> Any:
        return {"words": value.text.split()}


@step
def write(words: int) -> Annotated[Report, "report"]:
    return Report(" ".join(["word"] * words))


@pipeline(materializers=[ReportAsText()])
def reporting(words: int = LARGE):
    return write(words)


@step
def same(value: Any) -> Any:
    return value


@pipeline
def echo(value: Any):
    return same(value)


class NoLeases:
    """Leases that nobody needs: the store in memory is told to let none run out."""

    def add(self, job_id: str) -> None: ...

    def discard(self, job_id: str) -> None: ...


@asynccontextmanager
async def working(served: Served, artifacts: str) -> AsyncIterator[None]:
    """A worker with the product's own runner, on the store in this process."""
    definition, settings = served.services.definition, served.services.settings.runtime
    deployment_id = served.services.deployment.id
    async with (
        ArtifactStore(artifacts, deployment_id, lifetime=1e9) as store,
        RealtimeRuntime(definition, settings) as runtime,
    ):
        runner = JobRunner(
            runtime=runtime,
            definition=definition,
            ledger=served.store.ledger,
            deployment_id=deployment_id,
            leases=NoLeases(),
            log=get_log("test-worker"),
            artifacts=ArtifactWriter(store, 1_000_000),
        )

        async def obey() -> None:
            async with served.store.signals.listen() as job_ids:
                async for job_id in job_ids:
                    runner.cancel(job_id)

        async def work() -> None:
            while True:
                for claim in await served.store.ledger.claim("test-worker", 1):
                    runner.accept(claim)
                    await runner.run(claim)
                    runner.dismiss(claim)
                await asyncio.sleep(0.005)

        tasks = [asyncio.create_task(obey()), asyncio.create_task(work())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def service(served_pipeline: Any, folder: Path, **options: Any) -> AsyncIterator[Served]:
    """The pipeline with a worker, and its artifacts in ``folder``."""
    async with serving(served_pipeline, artifacts=str(folder), **options) as served, working(served, str(folder)):
        yield served


async def ended(served: Served, job_id: str) -> dict[str, Any]:
    """The job's record, once it is written."""

    async def recorded() -> bool:
        return served.services.inline.find(job_id) is None and (await served.store.ledger.get(job_id)).status.terminal

    await wait_until(recorded, "the job has ended and is recorded")
    return (await served.http.get(f"/jobs/{job_id}")).json()


async def outputs_of_queued(served: Served, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    job = await ended(served, await served.submit(parameters))
    assert job["status"] == "completed", job["error"]
    return job["outputs"]


def link(outputs: dict[str, Any], name: str) -> str:
    return outputs[name]["$artifact"]["href"]


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_a_queued_job_refers_to_its_large_output_and_the_download_is_the_value(tmp_path: Path) -> None:
    async with service(counting, tmp_path) as served:
        job_id = await served.submit()
        job = await ended(served, job_id)
        ref = job["outputs"]["numbers"]["$artifact"]
        assert ref["name"] == "numbers.json"
        assert ref["href"] == f"/jobs/{job_id}/artifacts/numbers.json"
        download = await served.http.get(ref["href"])
        assert download.json() == list(range(LARGE))
        assert len(download.content) == ref["size"]
        assert hashlib.sha256(download.content).hexdigest() == ref["sha256"]
        result = (await served.http.get(f"/jobs/{job_id}/result")).json()
        assert result["outputs"] == job["outputs"]
        events = (await served.http.get(f"/jobs/{job_id}/events")).json()["events"]
        assert events[-1]["data"]["outputs"] == job["outputs"]


async def test_a_synchronous_answer_is_whole_and_its_record_refers(tmp_path: Path) -> None:
    async with service(counting, tmp_path) as served:
        answer = (await served.invoke()).json()
        assert answer["outputs"] == {"numbers": list(range(LARGE))}
        job = await ended(served, answer["job_id"])
        assert (await served.http.get(link(job["outputs"], "numbers"))).json() == list(range(LARGE))


async def test_a_synchronous_answer_from_a_worker_is_whole_too(tmp_path: Path) -> None:
    async with service(sampling, tmp_path, service={"sync_execution": "queued"}) as queued:
        answer = (await queued.invoke()).json()
        expected = await asyncio.to_thread(sampling, 1)
        assert answer["outputs"]["samples"] == expected["samples"].tolist()
        assert answer["outputs"]["table"][0] == {"a": expected["samples"][0, 0], "b": expected["samples"][0, 1]}
        assert answer["outputs"]["mean"] == expected["mean"]
        job = await ended(queued, answer["job_id"])
        assert link(job["outputs"], "samples")


async def test_values_of_libraries_are_downloaded_in_their_own_formats(tmp_path: Path) -> None:
    async with service(sampling, tmp_path) as served:
        outputs = await outputs_of_queued(served)
        expected = await asyncio.to_thread(sampling, 1)
        array = await served.http.get(link(outputs, "samples"))
        np.testing.assert_array_equal(np.load(io.BytesIO(array.content)), expected["samples"])
        table = await served.http.get(link(outputs, "table"))
        columns = np.load(io.BytesIO(table.content))
        np.testing.assert_array_equal(columns["0"], expected["table"]["a"])
        image = await served.http.get(link(outputs, "image"))
        assert image.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(image.content)).tobytes() == expected["image"].tobytes()
        assert outputs["mean"] == expected["mean"]


async def test_a_small_output_stands_in_the_record_and_no_file_is_written(tmp_path: Path) -> None:
    async with service(counting, tmp_path) as served:
        assert await outputs_of_queued(served, {"size": 3}) == {"numbers": [0, 1, 2]}
    assert files(tmp_path) == []


async def test_an_author_says_how_a_type_is_stored_and_answered(tmp_path: Path) -> None:
    async with service(reporting, tmp_path) as served:
        small = (await served.invoke({"words": 2})).json()
        assert small["outputs"] == {"report": {"words": ["word", "word"]}}
        outputs = await outputs_of_queued(served)
        download = await served.http.get(link(outputs, "report"))
        assert download.text == " ".join(["word"] * LARGE)
        assert download.headers["content-type"] == "text/x-report"
        assert download.headers["content-disposition"] == 'attachment; filename="report.report"'
        assert download.headers["x-content-type-options"] == "nosniff"


async def test_head_tells_all_but_the_bytes(tmp_path: Path) -> None:
    async with service(counting, tmp_path) as served:
        outputs = await outputs_of_queued(served)
        href = link(outputs, "numbers")
        get, head = await served.http.get(href), await served.http.head(href)
        assert head.status_code == 200
        assert head.content == b""
        told = ("content-length", "content-type", "etag", "content-disposition", "accept-ranges")
        assert [head.headers[name] for name in told] == [get.headers[name] for name in told]
        assert int(head.headers["content-length"]) == outputs["numbers"]["$artifact"]["size"]


async def test_who_has_it_is_told_so(tmp_path: Path) -> None:
    async with service(counting, tmp_path) as served:
        outputs = await outputs_of_queued(served)
        href, tag = link(outputs, "numbers"), f'"{outputs["numbers"]["$artifact"]["sha256"]}"'
        has_it = await served.http.get(href, headers={"if-none-match": f'"other", {tag}'})
        assert (has_it.status_code, has_it.content, has_it.headers["etag"]) == (304, b"", tag)
        has_another = await served.http.get(href, headers={"if-none-match": '"other"'})
        assert has_another.status_code == 200


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        ("bytes=0-9", slice(0, 10)),
        ("bytes=10-", slice(10, None)),
        ("bytes=-5", slice(-5, None)),
        ("bytes=100-99999999", slice(100, None)),
        ("bytes=-99999999", slice(0, None)),
    ],
)
async def test_a_part_is_sent_as_a_part(tmp_path: Path, wanted: str, part: slice) -> None:
    async with service(counting, tmp_path) as served:
        href = link(await outputs_of_queued(served), "numbers")
        whole = (await served.http.get(href)).content
        answer = await served.http.get(href, headers={"range": wanted})
        assert answer.status_code == 206
        assert answer.content == whole[part]
        start = len(whole) if part.start is None else part.start % len(whole)
        assert answer.headers["content-range"] == f"bytes {start}-{start + len(answer.content) - 1}/{len(whole)}"


@pytest.mark.parametrize(
    "headers",
    [
        {"range": "bytes=0-1,5-6"},
        {"range": "lines=0-1"},
        {"range": "bytes=-"},
        {"range": "bytes=9-3"},
        {"range": "bytes=0-1", "if-range": '"an older one"'},
    ],
)
async def test_what_is_no_single_range_of_this_file_gets_the_whole(tmp_path: Path, headers: dict[str, str]) -> None:
    async with service(counting, tmp_path) as served:
        answer = await served.http.get(link(await outputs_of_queued(served), "numbers"), headers=headers)
        assert answer.status_code == 200
        assert answer.json() == list(range(LARGE))


async def test_a_part_beyond_the_end_is_refused(tmp_path: Path) -> None:
    async with service(counting, tmp_path) as served:
        outputs = await outputs_of_queued(served)
        answer = await served.http.get(link(outputs, "numbers"), headers={"range": "bytes=99999999-"})
        assert answer.status_code == 416
        assert answer.headers["content-range"] == f"bytes */{outputs['numbers']['$artifact']['size']}"
        assert answer.headers["content-type"] == "application/problem+json"


async def test_an_unknown_artifact_is_not_found_and_the_known_are_named(tmp_path: Path) -> None:
    async with service(counting, tmp_path) as served:
        job_id = await served.submit()
        await ended(served, job_id)
        answer = await served.http.get(f"/jobs/{job_id}/artifacts/nothing.npy")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert "numbers.json" in answer.json()["detail"]
        unknown = await served.http.get("/jobs/0198a5b0-0000-7000-8000-000000000001/artifacts/numbers.json")
        assert unknown.status_code == 404


async def test_a_file_that_is_not_on_this_machine_is_not_found_with_advice(tmp_path: Path) -> None:
    async with service(counting, tmp_path) as served:
        outputs = await outputs_of_queued(served)
        for path in files(tmp_path):
            path.unlink()
        answer = await served.http.get(link(outputs, "numbers"))
        assert answer.status_code == 404
        assert "PIPESERVE_ARTIFACTS_URL" in answer.json()["detail"]
        assert str(tmp_path) not in answer.text


async def test_a_caller_can_not_make_up_a_reference(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    made_up = {
        "name": "secret",
        "media_type": "text/html",
        "size": 6,
        "sha256": "0" * 64,
        "href": "/jobs/x/artifacts/secret",
    }
    async with service(echo, tmp_path) as served:
        for reference in (made_up, made_up | {"name": "../secret"}, made_up | {"sha256": "../../../secret"}):
            answer = (await served.invoke({"value": {"$artifact": reference}})).json()
            assert answer["outputs"] == {"output": {"$artifact": reference}}
            await ended(served, answer["job_id"])
            download = await served.http.get(f"/jobs/{answer['job_id']}/artifacts/secret")
            assert download.status_code == 404


async def test_a_memory_only_call_writes_no_file(tmp_path: Path) -> None:
    async with service(counting_in_memory, tmp_path) as served:
        assert (await served.invoke()).json()["outputs"] == {"numbers": list(range(LARGE))}
    assert files(tmp_path) == []


async def test_a_memory_only_job_keeps_its_result(tmp_path: Path) -> None:
    async with service(counting_in_memory, tmp_path) as served:
        outputs = await outputs_of_queued(served)
        assert (await served.http.get(link(outputs, "numbers"))).json() == list(range(LARGE))


async def test_a_memory_only_call_that_became_a_job_keeps_its_result(tmp_path: Path) -> None:
    async with service(slow_in_memory, tmp_path) as served:
        accepted = await served.invoke(headers={"prefer": "wait=0"})
        assert accepted.status_code == 202
        job = await ended(served, accepted.json()["job_id"])
        assert (await served.http.get(link(job["outputs"], "output"))).json() == "x" * 100_000


async def test_a_stream_of_a_call_ends_with_the_reference(tmp_path: Path) -> None:
    async with service(counting, tmp_path) as served:
        answer = await served.invoke(headers={"accept": "text/event-stream"})
        last = frames(answer.text)[-1]
        assert last["event"] == "pipeline_completed"
        href = link(json.loads(last["data"])["data"]["outputs"], "numbers")
        assert (await served.http.get(href)).json() == list(range(LARGE))


async def test_a_result_that_can_not_be_kept_fails_its_job_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    async with service(counting, tmp_path / "file" / "artifacts") as served:
        job = await ended(served, await served.submit(timeout=1))
        assert job["status"] == "failed"
        assert job["outputs"] is None
        assert job["error"]["code"] == "step_failed"
        assert "could not be kept" in job["error"]["detail"]
        assert str(tmp_path) not in json.dumps(job)
        assert (await served.invoke()).json()["outputs"] == {"numbers": list(range(LARGE))}


async def test_a_job_whose_result_waits_to_be_kept_can_be_canceled(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    async with service(counting, tmp_path / "file" / "artifacts") as served:
        job_id = await served.submit(timeout=3600)

        async def completed_its_steps() -> bool:
            return (await served.http.get(f"/jobs/{job_id}")).json()["progress"]["completed_steps"] == 1

        await wait_until(completed_its_steps, "its step has ended")
        assert (await served.http.post(f"/jobs/{job_id}/cancel")).status_code == 202
        assert (await ended(served, job_id))["status"] == "canceled"


async def test_a_result_that_is_kept_late_completes_its_job(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    async with service(counting, tmp_path / "file" / "artifacts") as served:
        job_id = await served.submit(timeout=3600)

        async def completed_its_steps() -> bool:
            return (await served.http.get(f"/jobs/{job_id}")).json()["progress"]["completed_steps"] == 1

        await wait_until(completed_its_steps, "its step has ended")
        (tmp_path / "file").unlink()
        job = await ended(served, job_id)
        assert (await served.http.get(link(job["outputs"], "numbers"))).json() == list(range(LARGE))


async def test_a_key_guards_the_artifacts_too(tmp_path: Path) -> None:
    async with service(counting, tmp_path, service={"auth_key": "let me in"}) as served:
        key = {"authorization": "Bearer let me in"}
        job_id = (await served.invoke(mode="async", headers=key)).json()["job_id"]
        href = f"/jobs/{job_id}/artifacts/numbers.json"

        async def there() -> bool:
            return (await served.http.get(href, headers=key)).status_code == 200

        await wait_until(there, "the job has ended")
        assert (await served.http.get(href)).status_code == 401
