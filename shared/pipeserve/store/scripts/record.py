"""Synchronous runs: recorded while they run, or as a whole once they have ended."""

from __future__ import annotations

from collections.abc import Sequence

from pipeserve.runtime.ports import FinishedRun, NewJob
from pipeserve.store.scripts.append import VIEW
from pipeserve.store.scripts.finish import outcome_arguments
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
# status on: 16 status, 17 terminal event, 18 seconds, 19 outputs, 20 error, 21 progress, 22 steps, 23 number of bodies.
_RECORD = script(
    CREATE
    + VIEW
    + """
local id, status = arg(1), arg(16)
local key = job_key(id)
if call('EXISTS', key) == 1 then return 0 end
create(id, 6, 'sync', arg(3), {'status', status, 'attempt', 1, 'worker', arg(2), 'started_at', arg(4),
  'attempt_started_at', arg(4), 'completed_at', arg(5), 'execution_time', arg(18)})
if arg(19) ~= '' then call('HSET', key, 'outputs', arg(19)) end
if arg(20) ~= '' then call('HSET', key, 'error', arg(20)) end
call('ZADD', status_key(status), created_ms(arg(3)), id)
local bodies = tonumber(arg(23))
local seq = 0
local function add(body)
  seq = seq + 1
  call('XADD', log_key(id), 'MAXLEN', '~', LOG_MAX, seq..'-0', 'd', body)
end
if arg(15) == '1' then
  set_view(key, arg(21), arg(22))
  for at = 24, 23 + bodies do add(arg(at)) end
end
add(arg(17))
call('HSET', key, 'last_seq', seq)
record_expires(id, status)
count_end(status, true, arg(18), tonumber(arg(5)))
count_latencies(27 + bodies)
prune(20)
indexes_end()
return 1
"""
)


async def open_run(scope: Scope, job: NewJob, owner: str) -> None:
    """Record a run that ``owner`` executes. The same id again changes nothing."""
    await scope.run(_OPEN, job.job_id, owner, *new_job_arguments(job))


async def record_runs(scope: Scope, runs: Sequence[FinishedRun]) -> None:
    """Record runs that have ended, each for itself, in one round trip. An id that is there already changes nothing."""
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
