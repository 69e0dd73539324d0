"""The events of a short run in brief: what differs between them, and no more, until somebody reads them.

Most synchronous runs are never looked at. Encoding each of their events as every transport sends it, and adding each
to the job's log, costs more than many a run itself; so they are kept as one list, and encoded when they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from pipeserve.events import Event, EventType, encode_body

Row = tuple[str, float, str | None, dict[str, Any]]
"""Type, Unix time in seconds, step and data of one event."""


@dataclass(frozen=True, slots=True)
class Brief:
    """The events of one synchronous run before its terminal one, numbered from 1."""

    job_id: str
    rows: Sequence[Row]

    def __len__(self) -> int:
        return len(self.rows)

    def encode(self) -> bytes:
        """As it is kept with the job."""
        return orjson.dumps(self.rows)

    @classmethod
    def decode(cls, job_id: str, data: bytes) -> Brief:
        """What :meth:`encode` made. Raises ValueError."""
        try:
            return cls(job_id, [(row[0], row[1], row[2], row[3]) for row in orjson.loads(data)])
        except (TypeError, LookupError) as error:
            raise ValueError(f"not the events of a run in brief: {error}") from None

    def bodies(self, start: int = 0, stop: int | None = None) -> list[bytes]:
        """The encoded events from the one after number ``start`` to number ``stop``, as a log holds them."""
        return [
            encode_body(Event(EventType(event_type), self.job_id, 1, timestamp, step, data=data))
            for event_type, timestamp, step, data in self.rows[start:stop]
        ]
