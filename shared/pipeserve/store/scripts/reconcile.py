"""Setting right what no crash should have left behind: the reconciler's look at all live jobs.

Every change is one script, so nothing of this is expected. It is for what scripts can't rule out: keys that an
operator deleted, a replica that was promoted with half of a job, a fault of ours.
"""

from __future__ import annotations

from pipeserve.runtime.ports import Reconciliation
from pipeserve.store.connection import Script
from pipeserve.store.scripts.prelude import Scope, script

LOCK_SECONDS = 25.0
"""How long one look counts: a little less than the time between two looks of one process."""
_AT_ONCE = 200
_LIVE = ("pending", "running", "canceling")

# Looks at a part of one index; says how many entries it looked at, and what it did: jobs queued again, taken back,
# entries forgotten.
_RECONCILE = script(
    """
local index, first = arg(1), tonumber(arg(2))
local queued, released, forgotten = 0, 0, 0
call('ZREM', RUNNING, '')
local ids = call('ZRANGE', status_key(index), first, first + @AT_ONCE@ - 1)
for _, id in ipairs(ids) do
  local job = call('HMGET', job_key(id), 'status', 'lane', 'created_at', 'run_at', 'priority')
  local lane = job[2] or ''
  if not job[1] then
    dequeue(id, lane)
    for _, key in ipairs({RUNNING, status_key(index), P..'jobs'}) do call('ZREM', key, id) end
    call('HDEL', P..'labels', id)
    disown(id)
    forgotten = forgotten + 1
  elseif job[1] ~= index then
    call('ZREM', status_key(index), id)
    call('ZADD', status_key(job[1]), created_ms(job[3]), id)
    forgotten = forgotten + 1
  elseif index == 'pending' then
    local lined_up = call('ZSCORE', lane_key(lane), id)
    if not call('ZSCORE', QUEUE, id) or not (lined_up or call('ZSCORE', SCHEDULED, id))
        or (lined_up and not call('ZSCORE', LANES, lane)) then
      enqueue(id, lane, job[3], job[4], job[5])
      queued = queued + 1
    end
  elseif not call('ZSCORE', RUNNING, id) then
    take_back(id, 'lease_expired', true)
    released = released + 1
  end
end
return {#ids, queued, released, forgotten}
""".replace("@AT_ONCE@", str(_AT_ONCE))
)

# The same for entries of the queue, or of the leases, whose job is elsewhere.
_SWEEP = script(
    """
local index, first = arg(1), tonumber(arg(2))
local forgotten = 0
call('ZREM', RUNNING, '')
local ids = call('ZRANGE', P..index, first, first + @AT_ONCE@ - 1)
for _, id in ipairs(ids) do
  local job = call('HMGET', job_key(id), 'status', 'lane')
  if index == 'queue' and job[1] ~= 'pending' then
    dequeue(id, job[2] or '')
    forgotten = forgotten + 1
  elseif index == 'running' and job[1] ~= 'running' and job[1] ~= 'canceling' then
    call('ZREM', RUNNING, id)
    forgotten = forgotten + 1
  end
end
return {#ids, 0, 0, forgotten}
""".replace("@AT_ONCE@", str(_AT_ONCE))
)


async def reconcile(scope: Scope, owner: str) -> Reconciliation | None:
    """Look at every live job once, a part at a time. None: another process has done so of late."""
    lock = ("SET", scope.keys.reconciler, owner, "NX", "PX", round(LOCK_SECONDS * 1000))
    if not await scope.connection.call(*lock):
        return None
    parts = [await _whole(scope, _SWEEP, index) for index in ("queue", "running")]
    parts += [await _whole(scope, _RECONCILE, index) for index in _LIVE]
    return Reconciliation(
        queued=sum(part.queued for part in parts),
        released=sum(part.released for part in parts),
        forgotten=sum(part.forgotten for part in parts),
    )


async def _whole(scope: Scope, lua: Script, index: str) -> Reconciliation:
    """What there was to set right in one index."""
    first = queued = released = forgotten = 0
    while True:
        seen, *done = await scope.run(lua, index, first)
        queued, released, forgotten = queued + done[0], released + done[1], forgotten + done[2]
        if seen < _AT_ONCE:
            return Reconciliation(queued, released, forgotten)
        first += seen - done[1] - done[2]  # what has left the index shifts those behind it
