"""What the service says, as the text of frames. ``socket/frames.py`` has their models.

An event goes out as the log has it: its number and its frame are spliced around the bytes, nothing is encoded again.
"""

from __future__ import annotations

from typing import Any

import orjson

from pipeserve.errors import Problem
from pipeserve.events import number
from pipeserve.runtime.ports import LogEntry, LogGap
from pipeserve_api.problems import encode


def ack(ref: str | None, job_id: str, **more: object) -> bytes:
    """It was done. ``more``: members of AckFrame; None is left out."""
    said = {name: value for name, value in more.items() if value is not None}
    return orjson.dumps({"op": "ack", "ref": ref, "job_id": job_id} | said)


def event(entry: LogEntry, coalesced: int) -> bytes:
    """One event, which stands for ``coalesced`` others besides."""
    numbered = number(entry.seq, entry.body)
    if coalesced:
        return b'{"op":"event","coalesced":%d,"event":%b}' % (coalesced, numbered)
    return b'{"op":"event","event":%b}' % numbered


def snapshot(job: bytes) -> bytes:
    """The job as it is."""
    return b'{"op":"snapshot","job":%b}' % job


def gap(job_id: str, lost: LogGap) -> bytes:
    """Events that are gone."""
    said = {"op": "gap", "job_id": job_id, "from": lost.first, "to": lost.last, "reason": lost.reason}
    return orjson.dumps(said)


def end(job_id: str) -> bytes:
    """The log has ended."""
    return orjson.dumps({"op": "end", "job_id": job_id})


def pong(ref: str | None) -> bytes:
    """The answer to a ping."""
    return orjson.dumps({"op": "pong", "ref": ref})


def error(problem: Problem, *, ref: str | None, job_id: str | None = None, retry_after: float | None = None) -> bytes:
    """It was not done."""
    said: dict[str, Any] = {"op": "error", "ref": ref, "problem": problem.as_dict()}
    if job_id is not None:
        said["job_id"] = job_id
    if retry_after is not None:
        said["retry_after"] = retry_after
    return encode(said)
