"""Cancelling a job in whatever state it is."""

from __future__ import annotations

import orjson

from pipeserve.jobs import JobStatus
from pipeserve.runtime.ports import Cancellation
from pipeserve.store.scripts.prelude import Scope, script

# The owner of a synchronous run numbers its events itself, so nothing is put between them here.
_CANCEL = script("""
local id, by, reason, data, message = arg(1), arg(2), arg(3), arg(4), arg(5)
local key = job_key(id)
local job = call('HMGET', key, 'status', 'attempt', 'mode', 'keep_events')
local status, attempt = job[1], job[2]
if not status then return false end
if TERMINAL[status] then return {status, 1} end
if status == 'canceling' then
  call('PUBLISH', P..'cancel', id)
  return {status, 0}
end
call('ZREM', RUNNING, '')
if by ~= '' then call('HSET', key, 'canceled_by', by) end
if reason ~= '' then call('HSET', key, 'cancel_reason', reason) end
if job[3] == 'async' and job[4] == '1' then
  add_event(id, event('cancellation_requested', id, attempt, data, nil, message))
  post_live(id)
end
if status == 'pending' then
  end_canceled(id, status, attempt, data)
  return {'canceled', 0}
end
move(id, status, 'canceling', call('HGET', key, 'created_at'))
call('PUBLISH', P..'cancel', id)
return {'canceling', 0}
""")


async def cancel(scope: Scope, job_id: str, reason: str | None, by: str | None) -> Cancellation | None:
    """End a pending job, or ask the owner of a running one; None: there is no such job."""
    data = orjson.dumps({"reason": reason, "canceled_by": by})
    reply = await scope.run(_CANCEL, job_id, by or "", reason or "", data, orjson.dumps(reason))
    if reply is None:
        return None
    status, finished = reply
    return Cancellation(status=JobStatus(status.decode()), already_finished=bool(finished))
