"""What a job's steps show, as the service lists it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Visualization:
    """One thing that a step of a job shows."""

    index: int
    """Its number, from 1."""
    name: str
    media_type: str
    """``text/html``, ``text/markdown`` or ``image/png``."""
    size: int
    """In bytes."""
    step_name: str | None = None
