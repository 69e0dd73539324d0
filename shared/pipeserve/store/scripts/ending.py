"""How jobs end, and how they are taken from an owner, as Lua that every script shares.

A full store (``noeviction``) refuses a script's first write if it is one that needs memory, and lets everything after
a first write through. So what ends or moves jobs begins with a ``DEL`` or ``ZREM``: it works on a full store, which is
how that gets room again. Submitting and appending begin with a write that is refused.
"""

from __future__ import annotations

ENDING = """
-- The indexes live as long as there is a live job, and then as long as the last record.
local INDEXES = {P..'jobs', P..'labels', P..'owned', P..'owners', P..'codes', P..'expiring',
  status_key('completed'), status_key('failed'), status_key('canceled'), status_key('timed_out'), status_key('expired')}
local function is_idle() return call('EXISTS', QUEUE, RUNNING) == 0 end
local function indexes_stay() for _, key in ipairs(INDEXES) do call('PERSIST', key) end end
local function indexes_end()
  if is_idle() then
    for _, key in ipairs(INDEXES) do call('PEXPIRE', key, RESULT_TTL + @INDEX_GRACE@ * 1000) end
  end
end

-- Each caller's jobs, newest last. One key for all of them: it lives and dies with the other indexes.
local function own(id, created_at, caller)
  local member = string.format('%s:%016.0f:%s', caller, created_at, id)
  call('ZADD', P..'owned', 0, member)
  call('HSET', P..'owners', id, member)
end

local function disown(id)
  local member = call('HGET', P..'owners', id)
  if member then
    call('ZREM', P..'owned', member)
    call('HDEL', P..'owners', id)
  end
end

local function prune(limit)
  for _, member in ipairs(call('ZRANGEBYSCORE', P..'expiring', '-inf', now_ms, 'LIMIT', 0, limit)) do
    local status, id = string.match(member, '^([^:]*):(.*)$')
    call('ZREM', P..'expiring', member)
    call('ZREM', P..'jobs', id)
    call('ZREM', status_key(status), id)
    call('HDEL', P..'labels', id)
    call('HDEL', P..'codes', id)
    disown(id)
  end
end

-- With its fraction: jobs of the same millisecond stay in order.
local function created_ms(created_at) return tonumber(created_at) / 1000 end

local function move(id, from, to, created_at)
  call('ZREM', status_key(from), id)
  call('ZADD', status_key(to), created_ms(created_at), id)
  call('HSET', job_key(id), 'status', to)
end

local function count_end(status, started, seconds, ended_us)
  local totals = P..'totals'
  local name = status
  if status == 'timed_out' or status == 'expired' then name = 'failed' end
  call('HINCRBY', totals, name, 1)
  if status == 'completed' then call('HINCRBYFLOAT', totals, 'execution_seconds', seconds) end
  if started then call('HSET', totals, 'last_execution', int(ended_us)) end
  call('EXPIRE', totals, @FIGURES_TTL@)
end

local function count_one(name)
  call('HINCRBYFLOAT', P..'counters', name, 1)
  call('EXPIRE', P..'counters', @FIGURES_TTL@)
end

-- Packed lists of names, each with what to add to it.
local function count(latencies, counters)
  local observed, counted = unpacked(latencies), unpacked(counters)
  for at = 1, #observed, 2 do call('HINCRBY', P..'latency', observed[at], observed[at + 1]) end
  if #observed > 0 then call('EXPIRE', P..'latency', @FIGURES_TTL@) end
  for at = 1, #counted, 2 do call('HINCRBYFLOAT', P..'counters', counted[at], counted[at + 1]) end
  if #counted > 0 then call('EXPIRE', P..'counters', @FIGURES_TTL@) end
end

-- A write came from an attempt that no longer owns its job: nothing is written but that it came. The attempt that has
-- ended its job itself is no such case: there a reply was lost, and the write is repeated.
local function refuse(id, status, job_attempt, attempt)
  if status and TERMINAL[status] and job_attempt == attempt and call('HEXISTS', job_key(id), 'execution_time') == 1 then
    return
  end
  call('ZREM', RUNNING, '')
  count_one('fenced_writes')
  if status then call('HINCRBY', job_key(id), 'fenced_writes', 1) end
end

-- For longer than the longest pause between two tries: a job that still runs may tell nothing meanwhile.
local function outbox_stays() call('PEXPIRE', P..'webhooks', RESULT_TTL + 3 * @INDEX_GRACE@ * 1000) end

-- There is something to send for this job.
local function post(id)
  call('ZADD', P..'webhooks', 'NX', now_ms, id)
  outbox_stays()
  call('PUBLISH', P..'webhooks', id)
end

-- The end is in the log. A receiver that wants nothing else need not read what stands before.
local function post_end(id, last_seq)
  local webhook = call('HMGET', job_key(id), 'webhook', 'webhook_live', 'webhook_status')
  if not webhook[1] or (webhook[3] or 'active') ~= 'active' then return end
  if webhook[2] ~= '1' then call('HSET', job_key(id), 'webhook_after', last_seq - 1) end
  post(id)
end

local function post_live(id)
  if call('HGET', job_key(id), 'webhook_live') == '1' then post(id) end
end

local function record_expires(id, status)
  call('PEXPIRE', job_key(id), RESULT_TTL)
  call('PEXPIRE', log_key(id), RESULT_TTL)
  call('PEXPIRE', attachments_key(id), RESULT_TTL)
  call('PEXPIRE', deliveries_key(id), RESULT_TTL)
  call('ZADD', P..'expiring', now_ms + RESULT_TTL, status..':'..id)
end

-- Ends a job that the store holds; code: of its error, or ''. Begins with a DEL.
local function end_job(id, from, to, terminal_event, code, seconds)
  call('DEL', 'arq:job:'..id, 'arq:retry:'..id, 'arq:in-progress:'..id, 'arq:result:'..id)
  local key = job_key(id)
  local job = call('HMGET', key, 'created_at', 'started_at', 'keep_parameters', 'lane', 'idempotency')
  dequeue(id, job[4] or '')
  call('ZREM', RUNNING, id)
  move(id, from, to, job[1])
  call('HSET', key, 'completed_at', int(now_us))
  call('HDEL', key, 'owner', 'batch')
  call('UNLINK', checkpoints_key(id))
  if job[3] == '0' then call('HDEL', key, 'parameters') end
  if code ~= '' then call('HSET', P..'codes', id, code) end
  if job[5] then call('PEXPIRE', P..'idempotency:'..job[5], RESULT_TTL) end
  local seq = add_event(id, terminal_event)
  post_end(id, seq)
  record_expires(id, to)
  count_end(to, job[2], seconds or 0, now_us)
  prune(20)
  indexes_end()
end

local function fill(template, mark, text)
  local escaped = string.sub(cjson.encode(text), 2, -2)
  return (string.gsub(template, mark, function() return escaped end))
end
local function problem_of(template, id) return fill(template, '@JOB_ID_MARK@', id) end

-- Ends a job that no attempt is at work on, with an error of the store's own making.
local function end_unowned(id, from, to, event_type, attempt, data, problem, code)
  call('DEL', 'arq:job:'..id)
  call('HSET', job_key(id), 'error', problem)
  end_job(id, from, to, event(event_type, id, attempt, data, problem), code)
end

local function end_canceled(id, from, attempt, data)
  local reason = call('HGET', job_key(id), 'cancel_reason')
  local problem = problem_of(reason and [==[@CANCELED_BECAUSE@]==] or [==[@CANCELED@]==], id)
  if reason then problem = fill(problem, '@REASON_MARK@', reason) end
  end_unowned(id, from, 'canceled', 'pipeline_canceled', attempt, data or '{}', problem, 'canceled')
end

local function end_worker_lost(id, from, attempt, reason)
  local data = '{"reason":"'..reason..'"}'
  local problem = problem_of([==[@WORKER_LOST@]==], id)
  end_unowned(id, from, 'failed', 'pipeline_failed', attempt, data, problem, 'worker_lost')
end

local function end_expired(id)
  end_unowned(id, 'pending', 'expired', 'pipeline_expired', 0, '{}', problem_of([==[@EXPIRED@]==], id), 'expired')
end

-- Takes a held job from its owner: back to the queue, or to its end.
local function take_back(id, reason, counts)
  call('ZREM', RUNNING, id)
  local key = job_key(id)
  local job = call('HMGET', key, 'status', 'attempt', 'lost', 'max_attempts', 'mode', 'keep_events', 'created_at',
    'lane', 'run_at', 'priority')
  local status, attempt = job[1], job[2]
  if status ~= 'running' and status ~= 'canceling' then return end
  if status == 'canceling' then return end_canceled(id, status, attempt) end
  if job[5] == 'sync' then return end_worker_lost(id, status, attempt, reason) end
  local lost = tonumber(job[3])
  if counts then
    lost = lost + 1
    call('HSET', key, 'lost', lost)
  end
  if job[6] == '1' then add_event(id, event('attempt_lost', id, attempt, '{"reason":"'..reason..'"}')) end
  if counts and lost >= tonumber(job[4]) then return end_worker_lost(id, status, attempt, reason) end
  call('HDEL', key, 'owner', 'batch')
  move(id, status, 'pending', job[7])
  enqueue(id, job[8] or '', job[7], job[9], job[10], true)
  post_live(id)
end

-- Ends jobs that have waited too long for their first start: a bounded number.
local function expire_overdue()
  for _, id in ipairs(call('ZRANGEBYSCORE', EXPIRY, '-inf', now_ms, 'LIMIT', 0, 100)) do
    call('ZREM', EXPIRY, id)
    if call('HGET', job_key(id), 'status') == 'pending' then end_expired(id) end
  end
end
"""
