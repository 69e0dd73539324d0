"""Chapter 5: a pipeline behind HTTP: at once, as a job of the workers, and as a stream of numbered events."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from httpx_sse import connect_sse
from tests.service import Service, serve_target

pytestmark = pytest.mark.e2e

SOURCE = '''
import time
from typing import Annotated

from pipeserve import InvocationError, pipeline, progress, step


@step
def words(text: str) -> list[str]:
    if not text.strip():
        raise InvocationError(status=422, code="empty_text", detail="the text is empty")
    return text.split()


@step
def longest(words: list[str], pause: float = 0.0) -> str:
    for index, _ in enumerate(words, 1):
        progress(index / len(words), "reading")
        time.sleep(pause)
    return max(words, key=len)


@pipeline
def reader(text: str) -> Annotated[str, "word"]:
    """The longest word of a text."""
    return longest(words(text))
'''


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("reader")
    (folder / "reader.py").write_text(SOURCE)
    with serve_target(f"{folder}/reader.py:reader", folder, workers=2, environment={}) as service:
        yield service


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=30) as client:
        yield client


def submit(http: httpx.Client, **parameters: object) -> str:
    answer = http.post("/invoke", params={"mode": "async"}, json={"parameters": parameters})
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == answer.json()["links"]["self"]
    return answer.json()["job_id"]


def test_a_call_is_answered_at_once(http: httpx.Client) -> None:
    answer = http.post("/invoke", json={"parameters": {"text": "a short sentence"}})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["success"], body["status"], body["outputs"]) == (True, "completed", {"word": "sentence"})
    assert body["metadata"]["parameters_applied"] == ["text"]
    assert [step["name"] for step in body["metadata"]["steps"]] == ["words", "longest"]


def test_a_job_is_accepted_run_by_a_worker_and_polled(http: httpx.Client) -> None:
    job_id = submit(http, text="run this one later")
    job = http.get(f"/jobs/{job_id}", params={"wait": 20}).json()
    assert (job["status"], job["outputs"], job["attempt"]) == ("completed", {"word": "later"}, 1)
    assert job["worker"] in {worker["id"] for worker in http.get("/status").json()["workers"]}
    assert http.get(f"/jobs/{job_id}/result").json()["outputs"] == {"word": "later"}


def test_a_stream_tells_every_event_and_resumes_at_any_of_them(http: httpx.Client) -> None:
    job_id = submit(http, **{"text": "one two three four", "longest.pause": 0.1})
    with connect_sse(http, "GET", f"/stream/{job_id}", params={"after": 0}) as source:
        live = list(source.iter_sse())
    assert [int(event.id) for event in live] == list(range(1, len(live) + 1))
    assert (live[0].event, live[-1].event) == ("job_queued", "pipeline_completed")
    assert any(event.json()["message"] == "reading" for event in live if event.event == "progress_update")

    position = live[len(live) // 2].id
    with connect_sse(http, "GET", f"/stream/{job_id}", headers={"Last-Event-ID": position}) as source:
        rest = list(source.iter_sse())
    assert [(event.id, event.data) for event in rest] == [(event.id, event.data) for event in live[int(position) :]]
    assert http.get(f"/stream/{job_id}", headers={"Last-Event-ID": live[-1].id}).status_code == 204


def test_a_synchronous_call_is_a_job_too(http: httpx.Client) -> None:
    job_id = http.post("/invoke", json={"parameters": {"text": "found again"}}).json()["job_id"]
    job = http.get(f"/jobs/{job_id}").json()
    assert (job["status"], job["outputs"]) == ("completed", {"word": "found"})
    events = http.get(f"/jobs/{job_id}/events", params={"after": 0}).json()
    assert events["done"] is True
    assert events["events"][-1]["event_type"] == "pipeline_completed"


def test_a_running_job_is_canceled_at_its_next_checkpoint(http: httpx.Client) -> None:
    job_id = submit(http, **{"text": "a b c d e f g h", "longest.pause": 1})
    with connect_sse(http, "GET", f"/stream/{job_id}") as source:
        for event in source.iter_sse():
            if event.event == "progress_update":
                assert http.post(f"/jobs/{job_id}/cancel", params={"reason": "enough"}).status_code == 202
                break
    job = http.get(f"/jobs/{job_id}", params={"wait": 20}).json()
    assert (job["status"], job["cancel_reason"], job["error"]["code"]) == ("canceled", "enough", "canceled")
    again = http.post(f"/jobs/{job_id}/cancel")
    assert (again.status_code, again.json()["status"]) == (202, "canceled")

    finished = submit(http, text="too late")
    http.get(f"/jobs/{finished}", params={"wait": 20})
    late = http.post(f"/jobs/{finished}/cancel")
    assert (late.status_code, late.json()["code"], late.json()["job_status"]) == (409, "already_finished", "completed")


def test_a_step_answers_the_caller_in_its_own_words_whichever_way_it_runs(http: httpx.Client) -> None:
    direct = http.post("/invoke", json={"parameters": {"text": " "}})
    assert (direct.status_code, direct.json()["code"]) == (422, "empty_text")
    assert direct.headers["content-type"] == "application/problem+json"
    job_id = submit(http, text=" ")
    job = http.get(f"/jobs/{job_id}", params={"wait": 20}).json()
    assert (job["status"], job["error"]["code"], job["error"]["step"]) == ("failed", "empty_text", "words")
    result = http.get(f"/jobs/{job_id}/result")
    assert (result.status_code, result.json()["code"]) == (422, "empty_text")


def test_the_service_describes_itself(http: httpx.Client) -> None:
    info = http.get("/info").json()
    assert info["pipeline"]["name"] == "reader"
    assert [step["name"] for step in info["pipeline"]["steps"]] == ["words", "longest"]
    assert set(info["pipeline"]["input_schema"]["properties"]) == {"text", "longest.pause", "pause"}
    assert http.get("/health").json()["status"] == "healthy"
    assert http.get("/metrics").json()["total_executions"] >= 1
