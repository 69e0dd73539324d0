"""Recognize a handwritten digit: an 8 by 8 image in, the class probabilities and the digit out.

The data are scikit-learn's bundled handwritten digits (1,797 images by 13 people: the test set of UCI's Optdigits), so
nothing is downloaded. ``on_init`` trains a support vector machine once per process, before the service says that it is
ready; every request then finds it as ``get_context().pipeline_state``. The model is judged on a quarter of the images,
which it never saw (their writers it did), and every job carries that accuracy as a ``metadata`` event.

``classify`` takes most of the time. It is batched, because sixteen images take the model little longer than one, and
cached, because equal images have equal probabilities: a second request with the same image does not reach the model.

::

                 ┌── classify ── decide ──► probabilities, digit
    read_image ──┤
                 └── draw ────────────────► drawing

Serve it and ask, with a 3 (rows from top to bottom; 0 is paper, 16 is ink)::

    pip install scikit-learn
    pipeserve serve examples/digits/pipeline.py:digits
    curl -s localhost:8001/invoke --json '{"parameters": {"image": [
        [0, 0, 7, 15, 13, 1, 0, 0], [0, 8, 13, 6, 15, 4, 0, 0], [0, 2, 1, 13, 13, 0, 0, 0], [0, 0, 2, 15, 11, 1, 0, 0],
        [0, 0, 0, 1, 12, 12, 1, 0], [0, 0, 0, 0, 1, 10, 8, 0], [0, 0, 8, 4, 5, 14, 9, 0], [0, 0, 7, 13, 13, 9, 0, 0]]}}'
"""

# scikit-learn has no types; what comes out of it is cast where it enters.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from pipeserve import Batch, Cache, InvocationError, get_context, log_metadata, pipeline, step

logger = logging.getLogger(__name__)

Grey = Annotated[float, Field(ge=0, le=16, description="0 is paper, 16 is ink")]
Row = Annotated[list[Grey], Field(min_length=8, max_length=8)]
Image = Annotated[list[Row], Field(min_length=8, max_length=8, description="8 rows of 8 pixels, top row first")]

Pixels = NDArray[np.float64]
"""One image as a row of the model's input: shape (1, 64), values 0 to 16."""

SHADES = " .:-=+*#@"
CURVE = 0.001  # the SVC's gamma for pixels of 0 to 16, as in scikit-learn's own example of these digits


class Classifier(Protocol):
    """What is used of a trained scikit-learn classifier."""

    def predict_proba(self, X: Pixels) -> NDArray[np.float64]:
        """One row of ten probabilities per row of pixels."""
        ...

    def score(self, X: Pixels, y: NDArray[np.int64]) -> float:
        """The share of images whose most probable class is the right one."""
        ...


@dataclass(frozen=True, slots=True)
class DigitsModel:
    """A trained classifier, and the share of ``held_out`` unseen images that it gets right."""

    classifier: Classifier
    accuracy: float
    trained_on: int
    held_out: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """The most probable digit, and its probability."""

    digit: int
    confidence: float


def train() -> DigitsModel:
    """Train on three quarters of the images and judge on the rest. The same split and model every time."""
    images, digits = cast("tuple[Pixels, NDArray[np.int64]]", load_digits(return_X_y=True))
    seen, unseen, seen_digits, unseen_digits = cast(
        "tuple[Pixels, Pixels, NDArray[np.int64], NDArray[np.int64]]",
        train_test_split(images, digits, test_size=0.25, random_state=0, stratify=digits),
    )
    # An SVC has margins, not probabilities; the calibration turns one into the other by cross-validation.
    model = CalibratedClassifierCV(SVC(gamma=CURVE), ensemble=False)  # pyright: ignore[reportArgumentType]
    model.fit(seen, seen_digits)
    classifier = cast("Classifier", model)
    accuracy = round(float(classifier.score(unseen, unseen_digits)), 4)
    logger.info("trained on %d images; %.1f %% of %d others are right", len(seen), 100 * accuracy, len(unseen))
    return DigitsModel(classifier, accuracy, len(seen), len(unseen))


@step
def read_image(image: Image) -> Pixels:
    """Turn rows into the model's input. A blank page is refused: the model would find a digit in it all the same."""
    pixels = np.asarray(image, dtype=np.float64).reshape(1, 64)
    if not pixels.any():
        raise InvocationError(
            status=422, code="blank_image", detail="all 64 pixels of the image are 0: there is no ink"
        )
    return pixels


@step(cache=Cache(ttl=600), batch=Batch(max_size=16, max_wait_ms=2))
def classify(pixels: list[Pixels]) -> list[list[float]]:
    """Return the probability of each digit from 0 to 9, for the images of several requests at once."""
    model = cast("DigitsModel", get_context().pipeline_state)
    rows = model.classifier.predict_proba(np.concatenate(pixels))
    return [[round(float(probability), 6) for probability in row] for row in rows]


@step
def decide(probabilities: list[float]) -> Prediction:
    """Choose the most probable digit."""
    model = get_context().pipeline_state
    if isinstance(model, DigitsModel):  # in a service. Not in classify: that runs for many requests, or for none
        log_metadata({"model_accuracy": model.accuracy, "trained_on": model.trained_on, "held_out": model.held_out})
    digit = max(range(len(probabilities)), key=lambda digit: probabilities[digit])
    return Prediction(digit, probabilities[digit])


@step
def draw(pixels: Pixels) -> str:
    """Draw the image as eight lines of text, to see what the model saw."""
    levels = (pixels.reshape(8, 8) / 16 * (len(SHADES) - 1)).round().astype(int)
    return "\n".join("".join(SHADES[level] * 2 for level in row).rstrip() for row in levels)


@pipeline(on_init=train)
def digits(
    image: Image,
) -> tuple[
    Annotated[int, "digit"],
    Annotated[float, "confidence"],
    Annotated[list[float], "probabilities"],
    Annotated[str, "drawing"],
]:
    """Recognize a handwritten digit in an 8 by 8 image."""
    pixels = read_image(image)
    probabilities = classify(pixels)
    prediction = decide(probabilities)
    return prediction.digit, prediction.confidence, probabilities, draw(pixels)
