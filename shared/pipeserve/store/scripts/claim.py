"""Handing due jobs to a worker, and taking back those whose owner fell silent."""

from __future__ import annotations

from pipeserve.runtime.ports import CacheUse, Claim
from pipeserve.store.scripts.prelude import Scope, script

_CACHE_USES: dict[bytes | None, CacheUse] = {b"no-cache": "no-cache", b"no-store": "no-store"}

HEARD = """
-- Notes that an owner spoke. After a silence of a lease's length the store itself was away, or nobody was there to
-- renew: leases that ran out meanwhile say nothing about their owners, who get half a lease to renew them.
local function heard()
  local last, rests_until = string.match(call('GET', P..'heard') or '', '^(%d+):(%d+)$')
  last, rests_until = tonumber(last or now_ms), tonumber(rests_until or 0)
  if now_ms - last > LEASE then rests_until = now_ms + math.floor(LEASE / 2) end
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
local claims = {}
while #claims < limit do
  local due = call('ZRANGEBYSCORE', QUEUE, '-inf', now_ms, 'LIMIT', 0, limit - #claims)
  if #due == 0 then break end
  for _, id in ipairs(due) do
    call('ZREM', QUEUE, id)
    local key = job_key(id)
    local job = call('HMGET', key, 'status', 'deployment_id', 'run_name', 'parameters', 'timeout', 'created_at',
      'started_at', 'cache')
    if job[1] == 'pending' then
      local attempt = call('HINCRBY', key, 'attempt', 1)
      call('ZADD', RUNNING, now_ms + LEASE, id)
      move(id, 'pending', 'running', job[6])
      call('HSET', key, 'owner', owner, 'worker', owner, 'attempt_started_at', int(now_us))
      if not job[7] then call('HSET', key, 'started_at', int(now_us)) end
      if attempt > 1 then call('HDEL', key, 'progress', 'steps', 'batch') end
      if call('EXISTS', 'arq:job:'..id) == 0 then
        call('PSETEX', 'arq:job:'..id, @ARQ_JOB_TTL@ * 1000,
          '{"t":null,"f":"@JOB_FUNCTION@","a":[],"k":{},"et":'..int(created_ms(job[6]))..'}')
      end
      claims[#claims + 1] = {id, attempt, job[2], job[3], job[4] or '{}', job[5], job[6], job[8]}
    end
  end
end
local next_due = call('ZRANGE', QUEUE, 0, 0, 'WITHSCORES')
return {int(now_us), next_due[2] or '', claims}
"""
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
            claimed_at=claimed_at,
            cache=_CACHE_USES.get(cache, "use"),
        )
        for job_id, attempt, deployment_id, run_name, parameters, timeout, created_at, cache in claims
    ], float(next_due) if next_due else None
