"""Handing due jobs to a worker, and taking back those whose owner fell silent."""

from __future__ import annotations

from pipeserve.runtime.ports import CacheUse, Claim
from pipeserve.store.scripts.prelude import Scope, script

_MOST_OTHERS = 100
"""Jobs that can't be started any more which one claim takes from the queue: the server does nothing else meanwhile."""
_CACHE_USES: dict[bytes | None, CacheUse] = {b"no-cache": "no-cache", b"no-store": "no-store"}

HEARD = """
-- The clock was set back by so many ms: leases would last longer by that, and webhooks would wait.
local function set_back(by)
  for _, key in ipairs({RUNNING, P..'webhooks', P..'workers'}) do
    local flat = call('ZRANGE', key, 0, -1, 'WITHSCORES')
    for at = 1, #flat, 2 do call('ZADD', key, tonumber(flat[at + 1]) - by, flat[at]) end
  end
end

-- Notes that an owner spoke; says whether a lease that has run out means anything. After a silence of a lease's length
-- the store itself was away, its clock was set forward, or nobody was there to renew. Leases that ran out meanwhile say
-- nothing about their owners, who get half a lease to renew them.
local function heard()
  local last, rests_until = string.match(call('GET', P..'heard') or '', '^(%d+):(%d+)$')
  last, rests_until = tonumber(last or now_ms), tonumber(rests_until or 0)
  if last > now_ms + 1000 then
    set_back(last - now_ms)
    rests_until = math.min(rests_until, now_ms)
  elseif now_ms - last > LEASE then
    rests_until = now_ms + math.floor(LEASE / 2)
  end
  call('SET', P..'heard', int(now_ms)..':'..int(rests_until), 'EX', @HEARD_TTL@)
  return now_ms >= rests_until
end

-- Takes back jobs whose owner fell silent: a bounded number, for the server does nothing else meanwhile.
local function take_back_overdue()
  for _, id in ipairs(call('ZRANGEBYSCORE', RUNNING, '-inf', now_ms, 'LIMIT', 0, 100)) do
    take_back(id, 'lease_expired', true)
  end
end
"""

_CLAIM = script(
    HEARD
    + """
local owner, limit = arg(1), tonumber(arg(2))
-- A ZREM that removes nothing: from here on a full store refuses nothing, and jobs can run to their end.
call('ZREM', RUNNING, '')
if heard() then take_back_overdue() end
expire_overdue()
line_up_scheduled()
-- Few jobs are spread over the processes: each takes its share of what is due.
local workers = call('ZCOUNT', P..'workers', now_ms, '+inf')
if workers > 1 then
  local due = call('ZCARD', QUEUE) - call('ZCARD', SCHEDULED)
  limit = math.min(limit, math.max(math.ceil(due / workers), 1))
end
local claims, others = {}, 0
while #claims < limit and others < @MOST_OTHERS@ do
  local ids = take_turn(limit - #claims)
  if not ids then break end
  for _, id in ipairs(ids) do
    local key = job_key(id)
    local job = call('HMGET', key, 'status', 'deployment_id', 'run_name', 'parameters', 'timeout', 'created_at',
      'started_at', 'cache', 'run_at', 'expires_at', 'trace')
    if job[1] ~= 'pending' then
      others = others + 1
    elseif job[10] and not job[7] and tonumber(job[10]) <= now_us then
      end_expired(id)
      others = others + 1
    else
      if job[10] then call('ZREM', EXPIRY, id) end
      local attempt = call('HINCRBY', key, 'attempt', 1)
      call('ZADD', RUNNING, now_ms + LEASE, id)
      move(id, 'pending', 'running', job[6])
      call('HSET', key, 'owner', owner, 'worker', owner, 'attempt_started_at', int(now_us))
      if not job[7] then call('HSET', key, 'started_at', int(now_us)) end
      if attempt > 1 then call('HDEL', key, 'progress', 'steps', 'batch') end
      if call('PEXPIRE', 'arq:job:'..id, @ARQ_JOB_TTL@ * 1000) == 0 then
        call('PSETEX', 'arq:job:'..id, @ARQ_JOB_TTL@ * 1000,
          '{"t":null,"f":"@JOB_FUNCTION@","a":[],"k":{},"et":'..int(created_ms(job[6]))..'}')
      end
      claims[#claims + 1] = {id, attempt, job[2], job[3], job[4] or '{}', job[5], job[6], job[8], job[9], job[11]}
    end
  end
end
if #claims > 0 then note_pace('claimed', #claims) end
if others > 0 then  -- one may have ended while what was taken with it stood neither in the queue nor under a lease
  indexes_stay()
  indexes_end()
end
local next_due = ''
if call('EXISTS', LANES) == 1 then
  next_due = int(now_ms)
else
  next_due = call('ZRANGE', SCHEDULED, 0, 0, 'WITHSCORES')[2] or ''
end
return {int(now_us), next_due, claims}
""".replace("@MOST_OTHERS@", str(_MOST_OTHERS))
)


async def claim(scope: Scope, owner: str, limit: int) -> tuple[list[Claim], float | None]:
    """Up to ``limit`` due jobs for ``owner``, and the Unix time in ms at which the next one in the queue is due."""
    now, next_due, claims = await scope.run(_CLAIM, owner, limit)
    claimed_at = int(now) / 1e6
    return [
        Claim(
            job_id=job_id.decode(),
            attempt=attempt,
            deployment_id=deployment_id.decode(),
            run_name=run_name.decode(),
            parameters=parameters,
            timeout=float(timeout) if timeout else None,
            created_at=int(created_at) / 1e6,
            due_at=max(int(created_at), int(run_at or 0)) / 1e6,
            claimed_at=claimed_at,
            cache=_CACHE_USES.get(cache, "use"),
            trace=trace.decode() if trace else None,
        )
        for job_id, attempt, deployment_id, run_name, parameters, timeout, created_at, cache, run_at, trace in claims
    ], float(next_due) if next_due else None
