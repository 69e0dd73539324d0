"""The digits example with and without its policies, and the requests that its benchmarks send."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Annotated, Any, cast

import orjson
from examples.digits.pipeline import Image, Pixels, classify, decide, read_image, train
from sklearn.datasets import load_digits

from pipeserve import Batch, Cache, pipeline, step

SEED = 2026
POLICY = Batch(max_size=16, max_wait_ms=2)


# The step takes single images; its function takes a list of them.
classify_all = cast("Callable[[list[Pixels]], list[list[float]]]", classify.fn)


def classify_one(pixels: Pixels) -> list[float]:
    """One image, as one would write the step without policies."""
    return classify_all([pixels])[0]


plain = step(name="classify")(classify_one)
cached = step(name="classify", cache=Cache(ttl=600))(classify_one)
batched = step(name="classify", batch=POLICY)(classify_all)


@pipeline(on_init=train)
def digits_plain(image: Image) -> Annotated[int, "digit"]:
    return decide(plain(read_image(image))).digit


@pipeline(on_init=train)
def digits_cached(image: Image) -> Annotated[int, "digit"]:
    return decide(cached(read_image(image))).digit


@pipeline(on_init=train)
def digits_batched(image: Image) -> Annotated[int, "digit"]:
    return decide(batched(read_image(image))).digit


@pipeline(on_init=train)
def digits_both(image: Image) -> Annotated[int, "digit"]:
    return decide(classify(read_image(image))).digit


def bodies() -> list[bytes]:
    """A request for each of the example's 1,797 images."""
    images: Any = load_digits(return_X_y=True)[0]
    return [orjson.dumps({"parameters": {"image": image.reshape(8, 8).tolist()}}) for image in images]


def uniform(count: int) -> list[bytes]:
    """``count`` requests; each image is as likely as any other."""
    return random.Random(SEED).choices(bodies(), k=count)


def zipfian(count: int, exponent: float) -> list[bytes]:
    """``count`` requests; the image of rank r is asked for in proportion to 1 / r ** exponent (Zipf's law)."""
    chance = random.Random(SEED)
    ranked = bodies()
    chance.shuffle(ranked)
    return chance.choices(ranked, [rank**-exponent for rank in range(1, len(ranked) + 1)], k=count)
