"""The digits example: its steps called plainly, and a real image through the service."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from examples.digits import pipeline as digits
from tests.api.harness import serving
from tests.service import ServeFixture

TARGET = str(Path(__file__).parents[2] / "examples" / "digits" / "pipeline.py") + ":digits"

THREE: list[list[float]] = [
    [0, 0, 7, 15, 13, 1, 0, 0],
    [0, 8, 13, 6, 15, 4, 0, 0],
    [0, 2, 1, 13, 13, 0, 0, 0],
    [0, 0, 2, 15, 11, 1, 0, 0],
    [0, 0, 0, 1, 12, 12, 1, 0],
    [0, 0, 0, 0, 1, 10, 8, 0],
    [0, 0, 8, 4, 5, 14, 9, 0],
    [0, 0, 7, 13, 13, 9, 0, 0],
]


def test_the_model_is_right_on_nearly_all_images_it_never_saw() -> None:
    model = digits.train()
    assert model.accuracy > 0.98
    assert (model.trained_on, model.held_out) == (1347, 450)


def test_the_most_probable_digit_is_chosen() -> None:
    prediction = digits.decide([0.1, 0.0, 0.7, 0.2, 0, 0, 0, 0, 0, 0])
    assert (prediction.digit, prediction.confidence) == (2, 0.7)


def test_a_drawing_has_a_line_for_each_row() -> None:
    lines = digits.draw(digits.read_image(THREE)).split("\n")
    assert len(lines) == 8
    assert lines[0] == "    ==@@**"


@pytest.mark.e2e
def test_a_digit_is_recognized_over_http(serve: ServeFixture) -> None:
    with serve(TARGET, workers=1) as service, httpx.Client(base_url=service.url, timeout=60) as http:
        answer = http.post("/invoke", json={"parameters": {"image": THREE}})
        assert answer.status_code == 200, answer.text
        outputs = answer.json()["outputs"]
        assert outputs["digit"] == 3
        assert outputs["confidence"] == outputs["probabilities"][3] > 0.9
        assert sum(outputs["probabilities"]) == pytest.approx(1, abs=1e-4)

        accepted = http.post("/invoke", headers={"Prefer": "respond-async"}, json={"parameters": {"image": THREE}})
        job = http.get(accepted.headers["Location"], params={"wait": 30}).json()
        assert (job["status"], job["outputs"]) == ("completed", outputs)
        events = http.get(f"/jobs/{job['job_id']}/events").json()["events"]
        metadata = next(event["data"] for event in events if event["event_type"] == "metadata")
        assert metadata["model_accuracy"] > 0.98


async def test_images_of_concurrent_requests_get_their_own_answers_and_equal_ones_are_classified_once() -> None:
    images = [[[*row[shift:], *row[:shift]] for row in THREE] for shift in range(4)]
    async with serving(digits.digits) as service:
        alone = [await service.invoke({"image": image}, headers={"cache-control": "no-store"}) for image in images]
        answers = await asyncio.gather(*(service.invoke({"image": image}) for image in images * 4))
        for answer, expected in zip(answers, alone * 4, strict=True):
            assert answer.json()["outputs"] == expected.json()["outputs"]
        steps = [step for answer in answers for step in answer.json()["metadata"]["steps"]]
        assert sum(step["name"] == "classify" and not step["cached"] for step in steps) == len(images)
        again = await service.invoke({"image": THREE})
        assert again.headers["cache-status"].startswith("classify;hit")


async def test_what_is_no_image_is_refused_by_name() -> None:
    async with serving(digits.digits) as service:
        for image in (THREE[:7], [[*row, 0] for row in THREE], [[17, *row[1:]] for row in THREE], "three"):
            refused = await service.invoke({"image": image})
            assert (refused.status_code, refused.json()["code"]) == (422, "invalid_parameters")
            assert all(error["name"].startswith("image") for error in refused.json()["errors"])
        blank = await service.invoke({"image": [[0] * 8] * 8})
        assert (blank.status_code, blank.json()["code"]) == (422, "blank_image")
