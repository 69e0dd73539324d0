"""Accepting a job: record, log, queue entry, index and wake-up in one round trip."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import orjson

from pipeserve.errors import IdempotencyMismatchError, ProblemError, QueueFullError
from pipeserve.runtime.ports import Admission, NewJob
from pipeserve.store.engine import job_blob
from pipeserve.store.scripts.prelude import Scope, packed, script

CREATE = """
-- What still lists a job whose record has expired, or has been written anew.
local function forget(id)
  for status in pairs(TERMINAL) do
    call('ZREM', P..'expiring', status..':'..id)
    call('ZREM', status_key(status), id)
  end
  call('HDEL', P..'labels', id)
  call('HDEL', P..'codes', id)
  disown(id)
end

-- A new record with these fields (name and value in turn), and its places among all jobs. There may have been a job of
-- the same id before, where callers choose ids: what lists that one must not be pruned with this one. A field 'caller'
-- comes first.
local function create(id, created_at, labels, fields)
  call('HSET', job_key(id), 'created_at', created_at, unpack(fields))
  if call('ZADD', P..'jobs', created_ms(created_at), id) == 0 then forget(id) end
  if labels ~= '' then call('HSET', P..'labels', id, labels) end
  if fields[1] == 'caller' then own(id, created_at, fields[2]) end
end
"""

KNOWN = """
-- What became of an earlier request with this id or idempotency key; nil: there was none. fingerprint: of its body, ''
-- where the caller gave neither and so only a repetition of the same submission can have the id.
local function known(id, key, fingerprint)
  local holder = id
  if key ~= '' then
    local stored = call('GET', P..'idempotency:'..key)
    local held_by, theirs = string.match(stored or '', '^([^:]*):(.*)$')
    if held_by and call('EXISTS', job_key(held_by)) == 1 then
      if theirs ~= fingerprint then return {'mismatch', held_by} end
      holder = held_by
    end
  end
  local job = call('HMGET', job_key(holder), 'status', 'lane', 'fingerprint')
  if not job[1] then return nil end
  if key == '' and fingerprint ~= (job[3] or '') then return {'mismatch', holder} end
  -- The same id again is a repetition of its own submission, whose reply was lost.
  local repeated = holder == id and (key ~= '' or fingerprint == '') and not TERMINAL[job[1]]
  local told = repeated and 'accepted' or 'replayed'
  return {told, holder, job[1] == 'pending' and position_of(holder, job[2] or '') or false}
end

local function remember(id, key, fingerprint)
  if key ~= '' then call('SET', P..'idempotency:'..key, id..':'..fingerprint) end
end
"""

_SUBMIT = script(
    CREATE
    + KNOWN
    + """
local id, labels, fields, cap, blob, keep_events, lane, priority, run_at, expires_in, key, fingerprint, live =
  unpack(ARGV, 4)
local earlier = known(id, key, fingerprint)
if earlier then return earlier end
cap = tonumber(cap)
if call('ZCARD', QUEUE) >= cap then
  local claimed, refused = pace()
  note_pace('refused', 1)
  local seconds = claimed > 0 and math.min((1 + refused) / claimed, cap / claimed) or @UNKNOWN_WAIT@
  return {'full', int(math.min(math.max(math.ceil(seconds), 1), @LONGEST_WAIT@))}
end
local idle = is_idle()
local created_at = int(now_us)
create(id, created_at, labels, unpacked(fields))
remember(id, key, fingerprint)
if expires_in ~= '' then
  local expires_us = now_us + tonumber(expires_in) * 1000000
  call('HSET', job_key(id), 'expires_at', int(expires_us))
  call('ZADD', EXPIRY, expires_us / 1000, id)
end
call('PSETEX', 'arq:job:'..id, @ARQ_JOB_TTL@ * 1000, blob)
call('ZADD', status_key('pending'), now_ms, id)
enqueue(id, lane, created_at, run_at ~= '' and run_at, priority)
if idle then indexes_stay() end
local position = position_of(id, lane)
if keep_events == '1' then
  add_event(id, event('job_queued', id, 0, '{"queue_position":'..(position or 'null')..'}'))
  if live == '1' then post(id) end
end
return {'accepted', id, position}
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
        *(("caller", job.caller) if job.caller else ()),
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
    if job.lane:
        fields += ("lane", job.lane)
    if job.priority:
        fields += ("priority", job.priority)
    if job.run_at is not None:
        fields += ("run_at", round(job.run_at * 1e6))
    if job.idempotency is not None:
        fields += ("fingerprint", job.idempotency.fingerprint)
        if job.idempotency.key is not None:
            fields += ("idempotency", job.idempotency.key)
    if job.retried_from is not None:
        fields += ("retried_from", job.retried_from)
    if job.webhook is not None:
        described = orjson.dumps({"url": job.webhook.url, "events": job.webhook.events})
        fields += ("webhook", described, "webhook_live", int(job.webhook.live))
    if job.trace is not None and not sync:
        fields += ("trace", job.trace)
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


def idempotency(job: NewJob) -> tuple[str, str]:
    """The digest of the job's key and the fingerprint of its body; empty where it has none."""
    if job.idempotency is None:
        return "", ""
    return job.idempotency.key or "", job.idempotency.fingerprint


async def submit(scope: Scope, jobs: Sequence[NewJob], max_queue_size: int) -> list[Admission | ProblemError]:
    """Put ``jobs`` into the queue, in one round trip; each is judged for itself.

    The same id again changes nothing, so a submission whose reply was lost can be repeated.
    """
    blob = job_blob(time.time_ns() // 1_000_000)
    replies = await scope.run_many(_SUBMIT, [_arguments(job, max_queue_size, blob) for job in jobs], durable=True)
    return [read_admission(reply, job, max_queue_size) for job, reply in zip(jobs, replies, strict=True)]


def _arguments(job: NewJob, max_queue_size: int, blob: bytes) -> tuple[Any, ...]:
    return (
        job.job_id,
        label_index(job),
        packed([*record_fields(job, sync=False), "status", "pending", "attempt", 0, "last_seq", 0]),
        max_queue_size,
        blob,
        int(job.keep_events),
        job.lane,
        job.priority,
        "" if job.run_at is None else round(job.run_at * 1e6),
        "" if job.expires_in is None else repr(float(job.expires_in)),
        *idempotency(job),
        int(job.webhook is not None and job.webhook.live),
    )


def read_admission(reply: Sequence[Any], job: NewJob, max_queue_size: int = 0) -> Admission | ProblemError:
    """What a script says became of ``job``."""
    match reply:
        case [b"mismatch", job_id]:
            chosen = job.idempotency is not None and job.idempotency.key is None
            detail = "There is a job with this id already, from another request." if chosen else None
            return IdempotencyMismatchError(detail, job_id=job_id.decode())
        case [b"full", seconds]:
            detail = f"The queue is full: {max_queue_size} jobs wait. Try again in {int(seconds)} s."
            return QueueFullError(detail, retry_after=float(seconds))
        case [told, job_id, *rest]:
            position = rest[0] if rest else None
            return Admission(job_id.decode(), replayed=told == b"replayed", queue_position=position)
        case _:
            raise TypeError(f"not an admission: {reply!r}")
