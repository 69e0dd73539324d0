"""Accepting a job: record, log, queue entry, index and wake-up in one round trip."""

from __future__ import annotations

import time
from typing import Any

import orjson

from pipeserve.runtime.ports import NewJob
from pipeserve.store.engine import job_blob
from pipeserve.store.scripts.prelude import Scope, script

CREATE = """
-- Fields of a new record from arg(first) on; see new_job_arguments.
local function create(id, first, mode, created_at, extra)
  local key = job_key(id)
  call('HSET', key, 'deployment_id', arg(first), 'pipeline_name', arg(first + 1), 'run_name', arg(first + 2),
    'labels', arg(first + 4), 'timeout', arg(first + 5), 'total_steps', arg(first + 6), 'max_attempts', arg(first + 7),
    'keep_parameters', arg(first + 8), 'keep_events', arg(first + 9), 'mode', mode, 'created_at', created_at,
    'lost', 0, 'last_seq', 0, unpack(extra))
  if mode == 'async' or arg(first + 8) == '1' then call('HSET', key, 'parameters', arg(first + 3)) end
  call('ZADD', P..'jobs', created_ms(created_at), id)
  if arg(first + 4) ~= '{}' then call('HSET', P..'labels', id, arg(first + 4)) end
end
"""

_SUBMIT = script(
    CREATE
    + """
local id, cap = arg(1), tonumber(arg(2))
if call('EXISTS', job_key(id)) == 1 then return call('ZRANK', QUEUE, id) or 0 end
local waiting = call('ZCARD', QUEUE)
if waiting >= cap then return -1 end
local idle = is_idle()
local created_at = int(now_us)
create(id, 4, 'async', created_at, {'status', 'pending', 'attempt', 0})
call('PSETEX', 'arq:job:'..id, @ARQ_JOB_TTL@ * 1000, arg(3))
call('ZADD', status_key('pending'), now_ms, id)
call('ZADD', QUEUE, now_ms, id)
if idle then indexes_stay() end
if arg(13) == '1' then add_event(id, event('job_queued', id, 0, '{"queue_position":'..waiting..'}')) end
wake()
return waiting
"""
)


def new_job_arguments(job: NewJob) -> tuple[Any, ...]:
    """The ten fields that ``create`` reads."""
    return (
        job.deployment_id,
        job.pipeline_name,
        job.run_name,
        job.parameters,
        orjson.dumps(dict(job.labels)),
        "" if job.timeout is None else repr(float(job.timeout)),
        "" if job.total_steps is None else job.total_steps,
        job.max_attempts,
        int(job.keep_parameters),
        int(job.keep_events),
    )


async def submit(scope: Scope, job: NewJob, max_queue_size: int) -> int | None:
    """Put ``job`` into the queue: its position, or None where the queue is full.

    The same id again changes nothing, so a submission whose reply was lost can be repeated.
    """
    blob = job_blob(time.time_ns() // 1_000_000)
    position: int = await scope.run(_SUBMIT, job.job_id, max_queue_size, blob, *new_job_arguments(job))
    return None if position < 0 else position
