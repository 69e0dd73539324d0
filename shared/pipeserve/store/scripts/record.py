"""Synchronous runs: recorded while they run, or as a whole once they have ended."""

from __future__ import annotations

from collections.abc import Sequence

from pipeserve.runtime.ports import FinishedRun, NewJob
from pipeserve.store.scripts.append import VIEW
from pipeserve.store.scripts.finish import CANCELER, outcome_arguments
from pipeserve.store.scripts.prelude import Scope, script
from pipeserve.store.scripts.submit import CREATE, new_job_arguments

_OPEN = script(
    CREATE
    + """
local id, owner = arg(1), arg(2)
if call('EXISTS', job_key(id)) == 1 then return 0 end
local idle = is_idle()
local created_at = int(now_us)
create(id, 3, 'sync', created_at, {'status', 'running', 'attempt', 1, 'owner', owner, 'worker', owner,
  'started_at', created_at, 'attempt_started_at', created_at})
call('ZADD', status_key('running'), now_ms, id)
call('ZADD', RUNNING, now_ms + LEASE, id)
if idle then indexes_stay() end
return 1
"""
)

# Arguments: id, owner, created, started, completed (all in us), the ten fields of a new job, then as finish from its
# status on: 16 status, 17 terminal event, 18 seconds, 19 outputs, 20 error, 21 progress, 22 steps, 23 who canceled,
# 24 why, 25 number of bodies.
_RECORD = script(
    CREATE
    + VIEW
    + CANCELER
    + """
local id, status = arg(1), arg(16)
local key = job_key(id)
-- Open already: an _OPEN that its process gave up, and that the store ran later all the same.
local open = call('HMGET', key, 'status', 'mode', 'owner', 'last_seq')
local logged = 0
if open[1] then
  if open[2] ~= 'sync' or TERMINAL[open[1]] or open[3] ~= arg(2) then return 0 end
  call('ZREM', RUNNING, id)
  call('ZREM', status_key(open[1]), id)
  call('HDEL', key, 'owner', 'batch')
  logged = tonumber(open[4])
end
create(id, 6, 'sync', arg(3), {'status', status, 'attempt', 1, 'worker', arg(2), 'started_at', arg(4),
  'attempt_started_at', arg(4), 'completed_at', arg(5), 'execution_time', arg(18)})
if arg(19) ~= '' then call('HSET', key, 'outputs', arg(19)) end
if arg(20) ~= '' then call('HSET', key, 'error', arg(20)) end
call('ZADD', status_key(status), created_ms(arg(3)), id)
set_canceler(key, arg(23), arg(24))
local bodies = tonumber(arg(25))
local seq = logged
local function add(body)
  seq = seq + 1
  call('XADD', log_key(id), 'MAXLEN', '~', LOG_MAX, seq..'-0', 'd', body)
  if open[1] then call('PUBLISH', log_key(id), seq..':'..body) end
end
if arg(15) == '1' then
  set_view(key, arg(21), arg(22))
  for at = 26 + logged, 25 + bodies do add(arg(at)) end  -- only its owner numbers a synchronous run's events
end
add(arg(17))
call('HSET', key, 'last_seq', seq)
record_expires(id, status)
count_end(status, true, arg(18), tonumber(arg(5)))
count_latencies(29 + bodies)
prune(20)
indexes_end()
return 1
"""
)


async def open_run(scope: Scope, job: NewJob, owner: str) -> None:
    """Record a run that ``owner`` executes. The same id again changes nothing."""
    await scope.run(_OPEN, job.job_id, owner, *new_job_arguments(job))


async def record_runs(scope: Scope, runs: Sequence[FinishedRun]) -> None:
    """Record runs that have ended, each for itself, in one round trip.

    An id that is there already changes nothing, unless it is a run that the same owner has open: that one ends.
    """
    await scope.run_many(
        _RECORD,
        [
            (
                run.job.job_id,
                run.owner,
                *(round(moment * 1e6) for moment in (run.created_at, run.started_at, run.completed_at)),
                *new_job_arguments(run.job),
                *outcome_arguments(run.bodies, run.view, run.outcome),
            )
            for run in runs
        ],
    )
