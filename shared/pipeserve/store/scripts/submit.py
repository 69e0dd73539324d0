"""Accepting a job: record, log, queue entry, index and wake-up in one round trip."""

from __future__ import annotations

import time
from typing import Any

import orjson

from pipeserve.runtime.ports import NewJob
from pipeserve.store.engine import job_blob
from pipeserve.store.scripts.prelude import Scope, packed, script

CREATE = """
-- A new record with these fields (name and value in turn), and its places among all jobs.
local function create(id, created_at, labels, fields)
  call('HSET', job_key(id), 'created_at', created_at, unpack(fields))
  call('ZADD', P..'jobs', created_ms(created_at), id)
  if labels ~= '' then call('HSET', P..'labels', id, labels) end
end
"""

_SUBMIT = script(
    CREATE
    + """
local id, labels, fields, cap, blob, keep_events = unpack(ARGV, 4)
if call('EXISTS', job_key(id)) == 1 then return call('ZRANK', QUEUE, id) or 0 end
local waiting = call('ZCARD', QUEUE)
if waiting >= tonumber(cap) then return -1 end
local idle = is_idle()
create(id, int(now_us), labels, unpacked(fields))
call('PSETEX', 'arq:job:'..id, @ARQ_JOB_TTL@ * 1000, blob)
call('ZADD', status_key('pending'), now_ms, id)
call('ZADD', QUEUE, now_ms, id)
if idle then indexes_stay() end
if keep_events == '1' then add_event(id, event('job_queued', id, 0, '{"queue_position":'..waiting..'}')) end
wake()
return waiting
"""
)


def label_index(job: NewJob) -> bytes:
    """The job's entry in the index of labels; empty where it needs none."""
    return orjson.dumps(dict(job.labels)) if job.labels else b""


def record_fields(job: NewJob, *, sync: bool) -> list[Any]:
    """The fields of a new record, name and value in turn.

    ``keep_parameters`` says of the field ``parameters`` that it outlives the run, which it does not where others are
    shown in its place. A synchronous run has its parameters already, so what would not outlive it is never sent.
    """
    shown = job.shown_parameters if job.keep_parameters else None
    kept = job.keep_parameters and shown is None
    fields: list[Any] = [
        "deployment_id",
        job.deployment_id,
        "pipeline_name",
        job.pipeline_name,
        "run_name",
        job.run_name,
        "max_attempts",
        job.max_attempts,
        "keep_parameters",
        int(kept),
        "keep_events",
        int(job.keep_events),
        "mode",
        "sync" if sync else "async",
        "lost",
        0,
    ]
    if job.labels:
        fields += ("labels", label_index(job))
    if job.timeout is not None:
        fields += ("timeout", float(job.timeout))
    if job.cache != "use":
        fields += ("cache", job.cache)
    if job.total_steps is not None:
        fields += ("total_steps", job.total_steps)
    if kept or not sync:
        fields += ("parameters", job.parameters)
    if shown is not None:
        fields += ("shown_parameters", shown)
    return fields


async def submit(scope: Scope, job: NewJob, max_queue_size: int) -> int | None:
    """Put ``job`` into the queue: its position, or None where the queue is full.

    The same id again changes nothing, so a submission whose reply was lost can be repeated.
    """
    fields = packed([*record_fields(job, sync=False), "status", "pending", "attempt", 0, "last_seq", 0])
    blob = job_blob(time.time_ns() // 1_000_000)
    position: int = await scope.run(
        _SUBMIT, job.job_id, label_index(job), fields, max_queue_size, blob, int(job.keep_events)
    )
    return None if position < 0 else position
