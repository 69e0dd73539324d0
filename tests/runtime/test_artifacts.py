"""Artifacts: which outputs become files, where these stand, how long, and what happens when they can't be written."""

from __future__ import annotations

import asyncio
import io
import json
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from tests.api.harness import wait_until

from pipeserve import Capture, Materializer, Pipeline, Redact, Secret, pipeline, step
from pipeserve.errors import ConfigurationError
from pipeserve.jobs import JobStatus, new_job_id
from pipeserve.runtime.inline import InlineRuns
from pipeserve.runtime.memory import MemoryStore
from pipeserve.runtime.ports import LogEntry
from pipeserve.runtime.realtime import RealtimeRuntime
from pipeserve.runtime.run import RunRequest, RunResult
from pipeserve.runtime.values.artifact_ref import Artifact, ArtifactRef, sound_name
from pipeserve.runtime.values.artifact_writer import ArtifactWriter
from pipeserve.runtime.values.artifacts import CHUNK, ArtifactError, ArtifactMissingError, ArtifactStore
from pipeserve.sdk.materializer import NotStorableError
from pipeserve.settings import RuntimeSettings

DEPLOYMENT = "0198a5b0-0000-7000-8000-000000000001"
DAY = 86_400.0
LIMIT = 1000


@pytest.fixture(params=["a path", "file://", "memory://"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder in each form that needs no other machine."""
    match request.param:
        case "a path":
            return str(tmp_path / "artifacts")
        case "file://":
            return f"file://{tmp_path}/artifacts"
        case _:
            return f"memory://{uuid.uuid4()}"


@asynccontextmanager
async def opened(
    root: str | Path, deployment: str = DEPLOYMENT, lifetime: float = 100 * DAY
) -> AsyncIterator[ArtifactStore]:
    async with ArtifactStore(str(root), deployment, lifetime) as store:
        yield store


def artifact(data: bytes = b"some bytes", name: str = "output.bin", job_id: str = "") -> Artifact:
    return Artifact.of(job_id or new_job_id(), name, "application/octet-stream", data)


async def read(store: ArtifactStore, one: Artifact, start: int = 0, stop: int | None = None) -> bytes:
    async with store.open(one.job_id, one.ref, datetime.now(UTC)) as file:
        return b"".join([chunk async for chunk in file.chunks(start, stop)])


def files(folder: Path) -> list[Path]:
    # os.walk passes over a folder that is removed meanwhile; Path.rglob raises.
    return [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]


# ---- the store


async def test_what_is_written_is_read_whole_and_in_part(root: str) -> None:
    data = bytes(range(256)) * 3000
    assert len(data) > 2 * CHUNK
    one = artifact(data)
    async with opened(root) as store:
        await store.write(one)
        assert await read(store, one) == data
        assert await read(store, one, CHUNK - 1, CHUNK + 2) == data[CHUNK - 1 : CHUNK + 2]


async def test_what_is_deleted_is_gone(root: str) -> None:
    one = artifact()
    async with opened(root) as store:
        await store.write(one)
        await store.delete(one)
        await store.delete(one)  # which is harmless
        with pytest.raises(ArtifactMissingError):
            await read(store, one)


async def test_another_deployment_does_not_see_it(root: str) -> None:
    one = artifact()
    async with opened(root) as store, opened(root, str(uuid.uuid4())) as other:
        await store.write(one)
        with pytest.raises(ArtifactMissingError):
            await read(other, one)


async def test_it_is_found_by_the_jobs_end_also_over_midnight(root: str) -> None:
    one = artifact()
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    written = midnight - timedelta(seconds=1)
    async with opened(root) as store:
        await store.write(one, at=written.timestamp())
        async with store.open(one.job_id, one.ref, written + timedelta(seconds=2)) as file:
            assert file.size == one.ref.size


async def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    one = artifact(b"x" * 1_000_000)
    async with opened(tmp_path) as store:
        await asyncio.gather(*(store.write(one) for _ in range(8)))
        [path] = files(tmp_path)
        assert path.stat().st_size == one.ref.size
        assert path.parent.name == one.job_id
        await asyncio.to_thread(path.write_bytes, b"cut off")
        with pytest.raises(ArtifactMissingError):
            await read(store, one)


async def test_a_folder_that_can_not_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    async with opened(tmp_path / "file" / "artifacts") as store:
        with pytest.raises(ArtifactError, match="NotADirectory"):
            await store.write(artifact())


async def test_an_attempt_that_writes_late_changes_nothing_of_another(tmp_path: Path) -> None:
    job_id = new_job_id()
    good, late = artifact(b"good", job_id=job_id), artifact(b"late", job_id=job_id)
    async with opened(tmp_path) as store:
        await store.write(good)
        await store.write(late)
        assert await read(store, good) == b"good"


async def test_the_sweep_removes_past_days_of_every_deployment_and_nothing_else(root: str) -> None:
    now = datetime.now(UTC).timestamp()
    old, recent, others = artifact(b"old"), artifact(b"recent"), artifact(b"others")
    async with opened(root) as store, opened(root, str(uuid.uuid4())) as other, opened(root, "logs") as foreign:
        await store.write(old, at=now - 4 * DAY)
        await store.write(recent, at=now - DAY)
        await other.write(others, at=now - 9 * DAY)
        await foreign.write(others, at=now - 9 * DAY)
        assert await store.sweep(older_than=2 * DAY) == 2
        assert await store.sweep(older_than=2 * DAY) == 0
        for one, at in ((old, now - 4 * DAY), (others, now - 9 * DAY)):
            with pytest.raises(ArtifactMissingError):
                async with store.open(one.job_id, one.ref, datetime.fromtimestamp(at, UTC)):
                    pass
        async with store.open(recent.job_id, recent.ref, datetime.fromtimestamp(now - DAY, UTC)):
            pass
        async with foreign.open(others.job_id, others.ref, datetime.fromtimestamp(now - 9 * DAY, UTC)):
            pass


async def test_opening_a_store_sweeps_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.write(artifact(), at=datetime.now(UTC).timestamp() - 9 * DAY)
    assert files(tmp_path)
    async with opened(tmp_path, lifetime=DAY):
        await wait_until(lambda: not files(tmp_path), "the old day is removed")


@pytest.mark.parametrize(("url", "words"), [("s3://bucket/x", r"pipeserve\[s3\]"), ("nonsense://x", "nonsense")])
async def test_a_url_without_its_library_stops_the_process_in_words(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        async with opened(url):
            pass


def test_a_reference_is_read_back_as_it_was() -> None:
    ref = artifact().ref
    assert ArtifactRef.read(json.loads(json.dumps(ref.as_json()))) == ref


GOOD = artifact().ref.as_json()["$artifact"]


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"$artifact": 3},
        {"$artifact": {}},
        {"$artifact": GOOD, "more": 1},
        {"$artifact": GOOD | {"more": 1}},
        {"$artifact": GOOD | {"name": "../../etc/passwd"}},
        {"$artifact": GOOD | {"name": ""}},
        {"$artifact": GOOD | {"name": ".."}},
        {"$artifact": GOOD | {"sha256": "../../../../etc/passwd"}},
        {"$artifact": GOOD | {"media_type": "text/html\r\nSet-Cookie: a=b"}},
        {"$artifact": GOOD | {"size": -1}},
        {"$artifact": GOOD | {"size": "many"}},
    ],
)
def test_what_only_looks_like_a_reference_is_a_value(value: Any) -> None:
    assert ArtifactRef.read(value) is None


@pytest.mark.parametrize("text", ["a/b", "../x", "", "ünï", "a\r\nb", "x" * 500, ".hidden"])
def test_any_output_name_makes_a_sound_file_name(text: str) -> None:
    ref = artifact(name=sound_name(text, ".npy")).ref
    assert ArtifactRef.read(ref.as_json()) == ref


# ---- which outputs


@dataclass
class Note:
    text: str


class NoteAsText(Materializer[Note]):
    type = Note
    media_type = "text/plain; charset=utf-8"
    suffix = ".txt"

    def dump(self, value: Note) -> bytes:
        if value.text == "refuse":
            raise NotStorableError("no")
        if value.text.startswith("break"):
            raise ZeroDivisionError
        return value.text.encode()

    def load(self, data: bytes) -> Note:
        return Note(data.decode())

    def as_json(self, value: Note) -> Any:
        return value.text


def returning(value: Any, annotation: Any = Any, **options: Any) -> Pipeline[..., Any]:
    @step
    def make() -> Any:
        return value

    async def body() -> Any:
        return make()

    body.__annotations__["return"] = annotation
    return pipeline(dynamic=True, materializers=[NoteAsText()], **options)(body)


async def result_of(served: Pipeline[..., Any], **request: Any) -> RunResult:
    settings = RuntimeSettings.from_environment(inline_limit=LIMIT)
    async with RealtimeRuntime(served.definition, settings) as runtime:
        bound = served.definition.parameters.validate({})
        return await runtime.start(RunRequest("job", 1, bound, "run", **request), None).wait()


def references(result: RunResult) -> dict[str, ArtifactRef]:
    assert result.kept is not None, result
    refs = {name: ArtifactRef.read(value) for name, value in json.loads(result.kept.json).items()}
    return {name: ref for name, ref in refs.items() if ref is not None}


async def test_a_large_value_is_kept_as_json_and_answered_whole() -> None:
    result = await result_of(returning([1] * LIMIT), kept=True)
    assert result.outputs == {"output": [1] * LIMIT}
    assert result.kept is not None
    [kept] = result.kept.artifacts
    assert (kept.ref.name, kept.ref.media_type) == ("output.json", "application/json")
    assert json.loads(kept.data) == [1] * LIMIT
    assert references(result) == {"output": kept.ref}


async def test_a_value_up_to_the_limit_stands_in_the_record() -> None:
    result = await result_of(returning("x" * (LIMIT - 2)), kept=True)
    assert result.kept is None
    assert result.kept_json == result.outputs_json
    assert references(await result_of(returning("x" * (LIMIT - 1)), kept=True))


async def test_a_run_that_is_not_kept_makes_no_artifacts() -> None:
    result = await result_of(returning(np.zeros(LIMIT)))
    assert result.kept is None
    assert result.outputs == {"output": [0.0] * LIMIT}


async def test_a_large_array_is_kept_by_its_materializer() -> None:
    array = np.random.default_rng(0).normal(size=LIMIT)
    for answered in (True, False):
        result = await result_of(returning(array), kept=True, answered=answered)
        assert result.kept is not None
        [kept] = result.kept.artifacts
        assert kept.ref.name == "output.npy"
        np.testing.assert_array_equal(np.load(io.BytesIO(kept.data)), array)


async def test_what_nobody_waits_for_is_not_written_as_json() -> None:
    class Unreadable(NoteAsText):
        def as_json(self, value: Note) -> Any:
            raise AssertionError("nobody asked for JSON")

    @step
    def make() -> Any:
        return Note("x" * 2 * LIMIT)

    @pipeline(materializers=[Unreadable()])
    def served() -> Any:
        return make()

    result = await result_of(served, kept=True, answered=False)
    assert result.status is JobStatus.COMPLETED
    assert result.outputs == {"output": references(result)["output"].as_json()}


async def test_a_value_that_its_materializer_refuses_is_kept_as_json() -> None:
    result = await result_of(returning(np.array([["x"] * LIMIT], dtype=object)), kept=True, answered=False)
    assert references(result)["output"].media_type == "application/json"


async def test_a_materializer_that_breaks_fails_a_queued_job_and_no_answer() -> None:
    broken = returning(Note("break" * LIMIT))
    queued = await result_of(broken, kept=True, answered=False)
    assert queued.status is JobStatus.FAILED
    answered = await result_of(broken, kept=True)
    assert answered.outputs == {"output": "break" * LIMIT}
    assert references(answered)["output"].media_type == "application/json"


async def test_outputs_whose_names_make_one_file_name_get_two_files() -> None:
    large = "x" * 2 * LIMIT
    declared = tuple[Annotated[str, "a b"], Annotated[str, "A_b"], Annotated[str, "a/b"]]
    result = await result_of(returning((large, large, large), declared), kept=True)
    assert len({ref.name.lower() for ref in references(result).values()}) == 3


async def test_a_secret_output_is_answered_and_never_kept() -> None:
    result = await result_of(returning("hunter2" * LIMIT, Secret[str]), kept=True)
    assert result.outputs == {"output": "hunter2" * LIMIT}
    assert result.kept is not None
    assert result.kept.artifacts == ()
    assert (result.kept_json, result.shown_json) == (b'{"output":"***"}', None)  # None: as it is kept


async def test_a_redacted_output_is_kept_and_not_shown() -> None:
    declared = tuple[Annotated[Redact[str], "hidden"], Annotated[int, "open"]]
    result = await result_of(returning(("x" * 2 * LIMIT, 3), declared), kept=True)
    assert list(references(result)) == ["hidden"]
    assert result.shown_json == b'{"hidden":"***","open":3}'


# ---- writing


def blocked(tmp_path: Path) -> Path:
    """A folder that can't be made until the file in its way is removed."""
    (tmp_path / "blocked").write_text("in the way")
    return tmp_path / "blocked" / "artifacts"


async def test_writing_goes_on_until_it_works(tmp_path: Path) -> None:
    one = artifact()
    async with opened(blocked(tmp_path)) as store:
        writing = asyncio.create_task(ArtifactWriter(store, 1).write([one], seconds=30, stop=asyncio.Event()))
        await asyncio.wait([writing], timeout=0.05)
        (tmp_path / "blocked").unlink()
        assert await writing
        assert await read(store, one) == one.data


async def test_writing_gives_up_when_its_time_is_over(tmp_path: Path) -> None:
    async with opened(blocked(tmp_path)) as store:
        with pytest.raises(ArtifactError, match="NotADirectory"):
            await ArtifactWriter(store, 1).write([artifact()], seconds=0, stop=asyncio.Event())


async def test_writing_stops_when_it_is_told_to(tmp_path: Path) -> None:
    stop = asyncio.Event()
    async with opened(blocked(tmp_path)) as store:
        writing = asyncio.create_task(ArtifactWriter(store, 1).write([artifact()], seconds=3600, stop=stop))
        await asyncio.sleep(0)
        stop.set()
        assert not await writing


async def test_what_waits_in_the_background_is_bounded(tmp_path: Path) -> None:
    large = returning("x" * 2 * LIMIT)
    first, second = await result_of(large, kept=True), await result_of(large, kept=True)
    async with opened(blocked(tmp_path)) as store:
        writer = ArtifactWriter(store, 3 * LIMIT, patience=30)
        assert first.kept is not None
        assert second.kept is not None
        waiting = asyncio.create_task(writer.settle(first.kept, 0))
        await asyncio.sleep(0)
        await writer.settle(second.kept, 0)
        assert not waiting.done()
        assert references(second)["output"].missing
        (tmp_path / "blocked").unlink()
        await waiting
        assert not references(first)["output"].missing
        assert first.kept.artifacts == ()  # its bytes are held no longer


# ---- synchronous runs


@asynccontextmanager
async def inline(
    served: Pipeline[..., Any], root: Path, **options: Any
) -> AsyncIterator[tuple[InlineRuns, MemoryStore]]:
    settings = RuntimeSettings.from_environment(inline_limit=LIMIT)
    store = MemoryStore()
    async with (
        opened(root) as artifacts,
        RealtimeRuntime(served.definition, settings) as runtime,
        InlineRuns(
            runtime,
            store.ledger,
            served.definition,
            DEPLOYMENT,
            "owner",
            settings,
            artifacts=ArtifactWriter(artifacts, 10 * LIMIT, **options),
        ) as runs,
    ):
        yield runs, store


async def recorded(store: MemoryStore, job_id: str) -> Any:
    async def has_ended() -> bool:
        job = await store.ledger.get(job_id)
        return job is not None and job.status.terminal

    await wait_until(has_ended, "the run is recorded")
    return await store.ledger.get(job_id)


async def last_event(store: MemoryStore, job_id: str) -> Any:
    [*_, entry] = await store.log.read(job_id)
    assert isinstance(entry, LogEntry)
    return json.loads(entry.body)


async def test_the_record_refers_to_a_file_that_is_there(tmp_path: Path) -> None:
    served = returning("x" * 2 * LIMIT)
    async with inline(served, tmp_path) as (runs, store):
        run = runs.start(served.definition.parameters.validate({}), raw_parameters=b"{}")
        assert (await run.wait()).outputs == {"output": "x" * 2 * LIMIT}
        job = await recorded(store, run.job_id)
        ref = ArtifactRef.read(job.outputs["output"])
        assert ref is not None
        [path] = files(tmp_path)
        assert path.read_bytes() == b'"' + b"x" * 2 * LIMIT + b'"'
        assert (await last_event(store, run.job_id))["data"]["outputs"] == job.outputs


async def test_a_record_that_must_do_without_says_so_and_the_run_is_fine(tmp_path: Path) -> None:
    served = returning("x" * 2 * LIMIT)
    async with inline(served, blocked(tmp_path), patience=0) as (runs, store):
        run = runs.start(served.definition.parameters.validate({}), raw_parameters=b"{}")
        assert (await run.wait()).outputs == {"output": "x" * 2 * LIMIT}
        job = await recorded(store, run.job_id)
        assert job.status is JobStatus.COMPLETED
        assert job.outputs["output"]["$artifact"]["missing"] is True
        assert (await last_event(store, run.job_id))["data"]["outputs"] == job.outputs


async def test_a_run_that_was_opened_says_so_too(tmp_path: Path) -> None:
    served = returning("x" * 2 * LIMIT)
    async with inline(served, blocked(tmp_path), patience=0) as (runs, store):
        run = runs.start(served.definition.parameters.validate({}), raw_parameters=b"{}")
        await run.keep()
        job = await recorded(store, run.job_id)
        assert job.outputs["output"]["$artifact"]["missing"] is True


async def test_until_it_is_written_the_process_has_it(tmp_path: Path) -> None:
    served = returning("x" * 2 * LIMIT)
    async with inline(served, blocked(tmp_path), patience=30) as (runs, _):
        run = runs.start(served.definition.parameters.validate({}), raw_parameters=b"{}")
        await run.wait()
        found = runs.artifact(run.job_id, "output.json")
        assert found is not None
        assert len(found.data) == 2 * LIMIT + 2
        assert runs.artifact(run.job_id, "other.json") is None
        (tmp_path / "blocked").unlink()


async def test_at_shutdown_what_is_not_written_yet_is_recorded_as_missing(tmp_path: Path) -> None:
    served = returning("x" * 2 * LIMIT)
    async with inline(served, blocked(tmp_path), patience=3600) as (runs, store):
        run = runs.start(served.definition.parameters.validate({}), raw_parameters=b"{}")
        await run.wait()
    job = await recorded(store, run.job_id)
    assert job.outputs["output"]["$artifact"]["missing"] is True


async def test_a_memory_only_run_writes_nothing(tmp_path: Path) -> None:
    served = returning("x" * 2 * LIMIT, capture=Capture(memory_only=True))
    async with inline(served, tmp_path) as (runs, store):
        run = runs.start(served.definition.parameters.validate({}), raw_parameters=b"{}")
        assert (await run.wait()).outputs == {"output": "x" * 2 * LIMIT}
        assert run.result is not None
        assert run.result.kept is None
    assert files(tmp_path) == []
    assert await store.ledger.get(run.job_id) is None
