"""The writer example: its chain called plainly, and its tokens streamed through the service."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import httpx
import pytest
from examples import writer
from tests.service import ServeFixture

TARGET = str(Path(__file__).parents[2] / "examples" / "writer.py") + ":writer"
QUESTION = {"prompt": "A class", "length": 40, "seed": 7}


def test_only_prose_is_read_from_the_reference() -> None:
    document = """The "with" statement
********************

The *with* statement is used to wrap the execution of a block (see
section Context Managers) in a built-
in way.

   with_stmt ::= "with" expression

   Indented prose that is no code is read as well.

      >>> with open(name) as file: pass

* a list
"""
    assert list(writer.read_prose([document])) == [
        "The with statement is used to wrap the execution of a block in a built-in way.",
        "Indented prose that is no code is read as well.",
    ]


def test_tokens_joined_again_give_the_text() -> None:
    text = 'The "for" loop, as in C, is built-in; it ends.'
    tokens = writer.tokenize(text)
    assert tokens[:4] == ["The", '"for"', "loop", ","]
    assert "".join(writer.spell(token, before) for token, before in zip(tokens, [None, *tokens], strict=False)) == text


def test_temperature_zero_follows_the_text_where_there_is_one_way() -> None:
    chain = writer.Chain.of(["One two three four."])
    words: list[str] = ["."]
    for _ in range(5):
        words.append(chain.draw(words[-3:], 0, random.Random(1)))
    assert words[1:] == ["One", "two", "three", "four", "."]


def test_unknown_words_begin_a_new_thought() -> None:
    chain = writer.Chain.of(["Classes are objects.", "Functions are objects."])
    assert set(chain.weigh(["xyzzy"])) == {"Classes", "Functions"}


def test_a_small_temperature_never_runs_out_of_weight() -> None:
    chain = writer.Chain.of(["a b.", "a b.", "a c."])
    assert chain.draw(["a"], 1e-3, random.Random(3)) == "b"


async def test_the_pipeline_runs_in_process() -> None:
    text = await writer.writer("A class", length=5, seed=7)
    assert text.startswith("A class")
    assert len(writer.tokenize(text)) == 7


@pytest.mark.e2e
def test_tokens_are_streamed_one_by_one_over_http(serve: ServeFixture) -> None:
    with serve(TARGET, workers=1) as service, httpx.Client(base_url=service.url, timeout=30) as http:
        events = stream(http, QUESTION)
        tokens = [event["data"]["value"] for event in events if event["event_type"] == "output"]
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        assert len(tokens) == QUESTION["length"]
        assert events[-1]["event_type"] == "pipeline_completed"
        text = events[-1]["data"]["outputs"]["text"]
        assert text == "A class" + "".join(tokens)

        again = http.post("/invoke", json={"parameters": QUESTION}).json()["outputs"]["text"]
        assert again == text
        other = http.post("/invoke", json={"parameters": {**QUESTION, "seed": 8}}).json()["outputs"]["text"]
        assert other != text


@pytest.mark.e2e
def test_a_job_can_be_followed_while_it_writes_and_canceled(serve: ServeFixture) -> None:
    slow = {**QUESTION, "length": 1000, "write.delay": 0.02}
    with serve(TARGET, workers=1) as service, httpx.Client(base_url=service.url, timeout=30) as http:
        accepted = http.post("/invoke", params={"mode": "async"}, json={"parameters": slow})
        job_id = accepted.json()["job_id"]
        seen: list[str] = []
        with http.stream("GET", f"/stream/{job_id}", params={"after": 0}) as stream_of_job:
            for event in read_events(stream_of_job):
                seen.append(event["event_type"])
                if seen.count("output") == 3:
                    canceled = http.post(f"/jobs/{job_id}/cancel")
                    assert canceled.status_code == 202
        assert seen[-1] == "pipeline_canceled"
        assert 3 <= seen.count("output") < 1000
        assert http.get(f"/jobs/{job_id}").json()["status"] == "canceled"


def stream(http: httpx.Client, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of one streamed call, from the first to the terminal one."""
    headers = {"Accept": "text/event-stream"}
    with http.stream("POST", "/invoke", headers=headers, json={"parameters": parameters}) as response:
        assert response.status_code == 200
        return list(read_events(response))


def read_events(response: httpx.Response) -> Any:
    """The numbered events of an SSE response; a snapshot has no ``seq`` and is left out."""
    for line in response.iter_lines():
        if line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            if "seq" in event:
                yield event
