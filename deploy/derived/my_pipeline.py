"""A pipeline that needs a library which pipeserve doesn't have."""

from __future__ import annotations

from typing import Annotated

from text_unidecode import unidecode

from pipeserve import pipeline, step


@step
def slug(title: str) -> Annotated[str, "slug"]:
    """The title as a part of a URL."""
    words = unidecode(title).lower().split()
    return "-".join(word.strip(".,;:!?") for word in words)


@pipeline
def slugs(title: str):
    """Makes slugs of titles."""
    return slug(title)
