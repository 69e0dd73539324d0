"""The frames of the WebSocket ``/stream``: what a client may say, and what the service says.

Frames are read with these models, and ``/asyncapi.json`` describes the socket from them. An event itself is never built
from its model here: its bytes are those of the log.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from pipeserve.errors import Problem
from pipeserve.events import EventType
from pipeserve.jobs import Job, JobStatus
from pipeserve_api.terms import JobTerms

MAX_REF = 200
"""Characters of a ``ref``."""
MAX_CREDIT = 2**31 - 1
_MAX_SEQ = 2**53

Ref = Annotated[str | None, Field(max_length=MAX_REF, description="A text of yours that comes back with the answer.")]
JobId = Annotated[str, Field(max_length=200, description="The job's id.")]
Types = Annotated[
    list[EventType] | None, Field(min_length=1, description="Only events of these types; if not given, all.")
]


class _FromClient(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    ref: Ref = None


class Invoke(JobTerms):
    """Run the pipeline, as ``POST /invoke`` does. Answered by ``ack``, the job's events from the first, and ``end``.

    A synchronous run belongs to the socket: when that goes the run is canceled, unless it has an ``idempotency_key``.
    """

    op: Literal["invoke"]
    ref: Ref = None
    parameters: Annotated[
        dict[str, Any], Field(default_factory=dict[str, Any], description="The pipeline's parameters, by name.")
    ]
    mode: Annotated[
        Literal["sync", "async"],
        Field(description="async: a job for the workers, which goes on whatever becomes of the socket."),
    ] = "sync"
    idempotency_key: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=255,
            pattern="^[!-~]+$",
            description="The same request with the same key is the same job. Visible ASCII characters, without spaces.",
        ),
    ] = None
    cache: Annotated[
        Literal["use", "no-cache", "no-store"],
        Field(
            description="What the step cache may do: no-cache computes anew and keeps, no-store does not keep either."
        ),
    ] = "use"
    types: Types = None


class Subscribe(_FromClient):
    """Follow a job. Answered by ``ack``, a ``snapshot`` if no ``after`` is given, the events, and ``end``."""

    op: Literal["subscribe"]
    job_id: JobId
    after: Annotated[
        int | None,
        Field(strict=True, ge=0, le=_MAX_SEQ, description="The number of the last event that you have."),
    ] = None
    types: Types = None


class Unsubscribe(_FromClient):
    """Follow a job no longer. Answered by ``ack``: no event of this job comes after it."""

    op: Literal["unsubscribe"]
    job_id: JobId


class Cancel(_FromClient):
    """Cancel a job, subscribed to or not. Answered by ``ack`` with the job's ``status``. Harmless to repeat."""

    op: Literal["cancel"]
    job_id: JobId
    reason: Annotated[str | None, Field(max_length=500, description="Kept with the job.")] = None


class Ping(_FromClient):
    """Ask for a ``pong``. It overtakes frames that are still being worked on."""

    op: Literal["ping"]


class Credit(_FromClient):
    """Take ``n`` more events. Not answered.

    A socket that never says so has no limit. From its first ``credit`` on each event costs one, and events without
    credit wait in the log.
    """

    op: Literal["credit"]
    n: Annotated[int, Field(strict=True, ge=1, le=MAX_CREDIT, description="So many more.")]


ClientFrame = Annotated[Invoke | Subscribe | Unsubscribe | Cancel | Ping | Credit, Field(discriminator="op")]
"""What a client sends: one JSON object in a text frame."""

CLIENT_FRAME: TypeAdapter[Invoke | Subscribe | Unsubscribe | Cancel | Ping | Credit] = TypeAdapter(ClientFrame)


class _FromServer(BaseModel):
    model_config = ConfigDict(frozen=True)


class NumberedEvent(BaseModel):
    """One event of a job's log."""

    model_config = ConfigDict(frozen=True)

    seq: Annotated[int, Field(description="Its number in the job's log: 1, 2, 3, … without a hole.")]
    event_type: EventType
    job_id: str
    attempt: int
    timestamp: Annotated[str, Field(description="RFC 3339, in UTC.", json_schema_extra={"format": "date-time"})]
    step_name: str | None
    level: str | None
    message: str | None
    data: Annotated[Any, Field(description="What the type of event tells.")]
    error: Problem | None


class AckFrame(_FromServer):
    """It was done."""

    op: Literal["ack"] = "ack"
    ref: str | None = Field(description="Yours")
    job_id: str
    status: JobStatus | None = Field(None, description="Of a cancel: the job's state now")
    replayed: bool | None = Field(None, description="Of an invoke: true where the job was there already")


class EventFrame(_FromServer):
    """One event of a job that this socket follows."""

    op: Literal["event"] = "event"
    event: NumberedEvent
    coalesced: int | None = Field(
        None,
        description="How many progress_update events this one stands for besides itself: those right before it were "
        "left out while there was no credit. So seq is always the last one + 1 + coalesced.",
    )


class SnapshotFrame(_FromServer):
    """The job as it is, for a subscriber that has nothing of it yet."""

    op: Literal["snapshot"] = "snapshot"
    job: Job


class GapFrame(_FromServer):
    """Events that are gone from the log."""

    model_config = ConfigDict(frozen=True, validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    op: Literal["gap"] = "gap"
    job_id: str
    first: int = Field(alias="from", description="The first one's number")
    last: int = Field(alias="to", description="The last one's number")
    reason: str


class EndFrame(_FromServer):
    """The log has ended, and the subscription with it."""

    op: Literal["end"] = "end"
    job_id: str


class PongFrame(_FromServer):
    """The answer to a ``ping``."""

    op: Literal["pong"] = "pong"
    ref: str | None = Field(description="Yours")


class ErrorFrame(_FromServer):
    """It was not done; the problem is what HTTP would have answered. The socket stays."""

    op: Literal["error"] = "error"
    ref: str | None = Field(description="Yours; null where it could not be read, or where nothing was asked")
    problem: Problem
    job_id: str | None = Field(None, description="The job that it is about, if it is about one")
    retry_after: float | None = Field(None, description="Seconds after which to try again, where that may help")


ServerFrame = Annotated[
    AckFrame | EventFrame | SnapshotFrame | GapFrame | EndFrame | PongFrame | ErrorFrame, Field(discriminator="op")
]
"""What the service sends: one JSON object in a text frame. Members that are not set are left out, except ``ref``."""
