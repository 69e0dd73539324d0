"""What ``with_options`` sets: how calls are made, beside the parameters of the pipeline."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Self

_IN_BODY = ("timeout", "labels", "priority", "run_at", "expires_in", "webhook")


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one client. None: not set, so the service decides. Raises ValueError for what can't be sent."""

    timeout: float | None = None
    """Seconds that a run may take; then it ends as ``timed_out``."""
    wait: float | None = None
    """Seconds for which the service holds a synchronous call before it goes on as a job."""
    idempotency_key: str | None = None
    """Makes calls with the same parameters one job, however often they arrive."""
    labels: Mapping[str, str] | None = None
    """Kept with the job, to find it by."""
    priority: int | None = None
    """-10 to 10, higher first."""
    run_at: datetime | None = None
    """The time before which the job is not started."""
    expires_in: float | None = None
    """Seconds by which the job must have been started; then it ends as ``expired``."""
    webhook: Mapping[str, Any] | None = None
    """Where to send the job's events: ``{"url": …, "events": […]}``."""
    job_id: str | None = None
    """A UUID of the caller's, for one job that is submitted."""

    def __post_init__(self) -> None:
        if self.job_id is not None:
            uuid.UUID(self.job_id)
        key = self.idempotency_key
        if key is not None and not (key and all("!" <= character <= "~" for character in key)):
            raise ValueError("idempotency_key: write it in visible ASCII characters, without spaces")
        if self.run_at is not None and self.run_at.utcoffset() is None:
            raise ValueError("run_at: a time without a zone means another moment on another machine; give it a tzinfo")

    def but(self, **given: Any) -> Self:
        """These options, with those given in place of the old; None leaves one as it is."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def for_input(self, index: int) -> Self:
        """These options for one of many inputs: each needs an idempotency key of its own."""
        return self if self.idempotency_key is None else self.but(idempotency_key=f"{self.idempotency_key}-{index}")

    def body(self) -> dict[str, Any]:
        """The members that stand in a request's body, beside ``parameters``."""
        values = {name: getattr(self, name) for name in _IN_BODY}
        return {name: value for name, value in values.items() if value is not None}
