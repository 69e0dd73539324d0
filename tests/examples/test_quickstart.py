"""The quickstart example: its functions called plainly, and the whole pipeline through the service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from examples import quickstart
from tests.api.harness import serving
from tests.service import ServeFixture

ROOT = Path(__file__).parents[2]
TARGET = str(ROOT / "examples" / "quickstart.py") + ":quickstart"
REQUEST: dict[str, Any] = json.loads((ROOT / "examples" / "quickstart.json").read_text())
STEPS = ["read", "detect", "measure", "find_terms", "rank_sentences", "choose_sentences", "summarize"]


def test_abbreviations_and_initials_do_not_end_a_sentence() -> None:
    paragraph = "Dr. Watson met J. S. Bach, e.g. in May.\nDid he? “Yes.” He sailed on H.M.S. Beagle in 1831! It sank."
    assert quickstart.split_sentences(paragraph) == [
        "Dr. Watson met J. S. Bach, e.g. in May.",
        "Did he?",
        "“Yes.”",
        "He sailed on H.M.S. Beagle in 1831!",
        "It sank.",
    ]


@pytest.mark.parametrize(
    ("word", "syllables"),
    [
        ("the", 1),
        ("make", 1),
        ("table", 2),
        ("walked", 1),
        ("wanted", 2),
        ("boxes", 2),
        ("readability", 5),
        ("1859", 1),
    ],
)
def test_english_syllables_leave_out_silent_endings(word: str, syllables: int) -> None:
    assert quickstart.count_syllables(word) == syllables


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The river is not deep here, but it is wide and the water is cold.", "en"),
        ("Der Fluss ist hier nicht tief, aber er ist breit und das Wasser ist kalt.", "de"),
        ("La rivière n'est pas profonde ici, mais elle est large et son eau est froide.", "fr"),
        ("El río no es profundo aquí, pero es ancho y el agua está muy fría.", "es"),
        ("Vesi on kylmää. Joki virtaa hiljaa metsän halki.", "und"),
    ],
)
def test_the_language_is_guessed_by_its_stop_words(text: str, code: str) -> None:
    assert quickstart.detect(quickstart.read(text)).code == code


def test_easy_words_read_more_easily_than_long_ones() -> None:
    easy, hard = (
        quickstart.measure(document, quickstart.detect(document)).reading_ease
        for document in (
            quickstart.read("The cat sat on the mat. It was warm. The cat was glad."),
            quickstart.read(
                "The organisational considerations of international administration necessitate deliberation."
            ),
        )
    )
    assert easy is not None
    assert hard is not None
    assert easy > 90 > 0 > hard


def test_a_sentence_that_others_resemble_ranks_above_one_that_stands_alone() -> None:
    document = quickstart.read(
        "Bees visit flowers. Honey bees carry pollen between flowers. Pollen feeds the bees. My bicycle needs oil."
    )
    scores = quickstart.rank_sentences(document, quickstart.detect(document))
    assert sum(scores) == pytest.approx(1)
    assert min(range(4), key=lambda index: scores[index]) == 3


def test_a_repeated_sentence_is_chosen_once() -> None:
    document = quickstart.read("Rivers shape the land.\n\nRivers shape the land!\n\nSnow falls in winter.")
    scores = quickstart.rank_sentences(document, quickstart.detect(document))
    chosen = quickstart.choose_sentences(document, scores, 3)
    assert len(chosen) == 2
    assert {sentence.text for sentence in chosen} >= {"Snow falls in winter."}


def test_a_summary_keeps_the_order_of_the_document_and_its_length() -> None:
    sentences = [
        quickstart.KeySentence(7, 1.0, "Seven comes first."),
        quickstart.KeySentence(2, 0.9, "Two is next."),
        quickstart.KeySentence(5, 0.8, "Five does not fit any more."),
    ]
    assert quickstart.summarize(sentences, max_words=6) == "Two is next. Seven comes first."


def test_the_pipeline_runs_in_process() -> None:
    statistics, terms, key_sentences, summary = quickstart.quickstart("One river. One river and one lake. A lake.", 1)
    assert statistics.sentences == 3
    assert terms[0].term in {"river", "lake"}
    assert summary == key_sentences[0].text


@pytest.mark.e2e
def test_a_document_is_analysed_over_http_at_once_and_as_a_job(serve: ServeFixture) -> None:
    with serve(TARGET, workers=1) as service, httpx.Client(base_url=service.url, timeout=30) as http:
        now = http.post("/invoke", json=REQUEST)
        assert now.status_code == 200, now.text
        answer = now.json()
        outputs = answer["outputs"]
        assert answer["metadata"]["parameters_applied"] == ["text", "sentences"]
        assert outputs["statistics"]["language"]["code"] == "en"
        assert (outputs["statistics"]["sentences"], outputs["statistics"]["paragraphs"]) == (10, 3)
        assert outputs["terms"][0] == {"term": "species", "count": 10}
        assert len(outputs["key_sentences"]) == 2
        assert outputs["key_sentences"][0]["text"].startswith("In considering the Origin of Species")

        later = http.post("/invoke", params={"mode": "async"}, json=REQUEST)
        assert later.status_code == 202, later.text
        job = http.get(later.headers["Location"], params={"wait": 20}).json()
        assert job["status"] == "completed"
        assert job["outputs"] == outputs
        assert sorted(step["name"] for step in job["steps"]) == sorted(STEPS)

        events = http.get(f"/jobs/{job['job_id']}/events").json()["events"]
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        assert events[-1]["event_type"] == "pipeline_completed"
        assert any(event["event_type"] == "progress_update" for event in events)


async def test_bad_documents_are_refused_by_name() -> None:
    async with serving(quickstart.quickstart) as service:
        empty = await service.invoke({"text": " ... "})
        assert empty.status_code == 422
        assert (empty.json()["code"], empty.json()["step"]) == ("empty_document", "read")

        missing = await service.invoke({"sentences": 0})
        assert missing.status_code == 422
        assert missing.json()["code"] == "invalid_parameters"
        assert {error["name"] for error in missing.json()["errors"]} == {"text", "sentences"}


async def test_a_step_parameter_left_at_its_default_can_be_set() -> None:
    async with serving(quickstart.quickstart) as service:
        answer = await service.invoke({"text": REQUEST["parameters"]["text"], "summarize.max_words": 60})
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["outputs"]["summary"].split()) <= 60
