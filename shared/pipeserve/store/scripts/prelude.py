"""What the scripts share: time, events, moves between states, and how a job ends.

Numbers that leave Lua go through ``int`` (Lua prints large doubles as ``1.7e+15``). Events are spliced from encoded
pieces, never built with ``cjson.encode``: that turns an empty object into ``{}`` or ``[]`` at its own choice and loses
nulls.

A full store (``noeviction``) refuses a script's first write if it is one that needs memory, and lets everything after
a first write through. So the scripts that end or move jobs begin with a ``DEL`` or ``ZREM``: they work on a full
store, which is how it gets room again. Submitting and appending begin with a write that is refused.

A list among a script's arguments is one argument (:func:`packed`): so the others keep their places, and a long list
costs the client less than as many arguments.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson

from pipeserve.errors import JobCanceledError, WorkerLostError
from pipeserve.store import keys as names
from pipeserve.store.connection import Connection, Script
from pipeserve.store.engine import JOB_FUNCTION
from pipeserve.store.keys import Keys

JOB_ID_MARK = "@job_id@"
"""Where a script puts the job's id into an encoded problem."""
REASON_MARK = "@reason@"
"""Where it puts the reason of a cancel."""

_PRELUDE = """
local P = KEYS[1]
local LOG_MAX, RESULT_TTL, LEASE = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local QUEUE, RUNNING, WAKE = P..'queue', P..'running', P..'wake'
local call = redis.call
local function arg(n) return ARGV[n + 3] end
local function int(x) return string.format('%.0f', x) end
local function job_key(id) return P..'job:'..id end
local function log_key(id) return P..'events:'..id end
local function attachments_key(id) return P..'attachments:'..id end
local function checkpoints_key(id) return P..'checkpoints:'..id end
local function status_key(status) return P..'status:'..status end

local clock = call('TIME')
local now_us = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local now_ms = now_us / 1000
local TERMINAL = {completed=true, failed=true, canceled=true, timed_out=true, expired=true}

-- The parts of a packed list.
local function unpacked(list)
  local parts = {}
  local count = struct.unpack('>I4', list)
  local at = 5 + 4 * count
  for part = 1, count do
    local length = struct.unpack('>I4', list, 1 + 4 * part)
    parts[part] = string.sub(list, at, at + length - 1)
    at = at + length
  end
  return parts
end

local function owns(job_status, job_attempt, attempt)
  return (job_status == 'running' or job_status == 'canceling') and job_attempt == attempt
end

-- Days since 1970 to a civil date: H. Hinnant, chrono-compatible low-level date algorithms.
local function rfc3339()
  local seconds = tonumber(clock[1])
  local days = math.floor(seconds / 86400)
  local rest = seconds - days * 86400
  local z = days + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local day = doy - math.floor((153 * mp + 2) / 5) + 1
  local month = mp < 10 and mp + 3 or mp - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  return string.format('%04d-%02d-%02dT%02d:%02d:%02d.%06dZ', year, month, day,
    math.floor(rest / 3600), math.floor(rest % 3600 / 60), rest % 60, tonumber(clock[2]))
end

-- data, problem and message are JSON.
local function event(event_type, id, attempt, data, problem, message)
  return '{"event_type":"'..event_type..'","job_id":'..cjson.encode(id)..',"attempt":'..attempt
    ..',"timestamp":"'..rfc3339()..'","step_name":null,"level":null,"message":'..(message or 'null')..',"data":'..data
    ..',"error":'..(problem or 'null')..'}'
end

local function add_event(id, body)
  local seq = call('HINCRBY', job_key(id), 'last_seq', 1)
  call('XADD', log_key(id), 'MAXLEN', '~', LOG_MAX, seq..'-0', 'd', body)
  call('PUBLISH', log_key(id), seq..':'..body)
  return seq
end

local function wake()
  call('LPUSH', WAKE, '1')
  call('LTRIM', WAKE, 0, @WAKE_TOKENS@ - 1)
  call('EXPIRE', WAKE, @WAKE_TTL@)
end

-- The indexes live as long as there is a live job, and then as long as the last record.
local INDEXES = {P..'jobs', P..'labels', P..'expiring', status_key('completed'), status_key('failed'),
  status_key('canceled'), status_key('timed_out'), status_key('expired')}
local function is_idle() return call('EXISTS', QUEUE, RUNNING) == 0 end
local function indexes_stay() for _, key in ipairs(INDEXES) do call('PERSIST', key) end end
local function indexes_end()
  if is_idle() then
    for _, key in ipairs(INDEXES) do call('PEXPIRE', key, RESULT_TTL + @INDEX_GRACE@ * 1000) end
  end
end

local function prune(limit)
  for _, member in ipairs(call('ZRANGEBYSCORE', P..'expiring', '-inf', now_ms, 'LIMIT', 0, limit)) do
    local status, id = string.match(member, '^([^:]*):(.*)$')
    call('ZREM', P..'expiring', member)
    call('ZREM', P..'jobs', id)
    call('ZREM', status_key(status), id)
    call('HDEL', P..'labels', id)
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

-- Packed lists of names, each with what to add to it.
local function count(latencies, counters)
  local observed, counted = unpacked(latencies), unpacked(counters)
  for at = 1, #observed, 2 do call('HINCRBY', P..'latency', observed[at], observed[at + 1]) end
  if #observed > 0 then call('EXPIRE', P..'latency', @FIGURES_TTL@) end
  for at = 1, #counted, 2 do call('HINCRBYFLOAT', P..'counters', counted[at], counted[at + 1]) end
  if #counted > 0 then call('EXPIRE', P..'counters', @FIGURES_TTL@) end
end

local function record_expires(id, status)
  call('PEXPIRE', job_key(id), RESULT_TTL)
  call('PEXPIRE', log_key(id), RESULT_TTL)
  call('PEXPIRE', attachments_key(id), RESULT_TTL)
  call('ZADD', P..'expiring', now_ms + RESULT_TTL, status..':'..id)
end

-- Ends a job that the store holds. Begins with a DEL: see the module's docstring.
local function end_job(id, from, to, terminal_event, seconds)
  call('DEL', 'arq:job:'..id, 'arq:retry:'..id, 'arq:in-progress:'..id, 'arq:result:'..id)
  call('ZREM', QUEUE, id)
  call('ZREM', RUNNING, id)
  local key = job_key(id)
  local job = call('HMGET', key, 'created_at', 'started_at', 'keep_parameters')
  move(id, from, to, job[1])
  call('HSET', key, 'completed_at', int(now_us))
  call('HDEL', key, 'owner', 'batch')
  call('UNLINK', checkpoints_key(id))
  if job[3] == '0' then call('HDEL', key, 'parameters') end
  add_event(id, terminal_event)
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

local function end_canceled(id, from, attempt, data)
  local reason = call('HGET', job_key(id), 'cancel_reason')
  local problem = problem_of(reason and [==[@CANCELED_BECAUSE@]==] or [==[@CANCELED@]==], id)
  if reason then problem = fill(problem, '@REASON_MARK@', reason) end
  call('DEL', 'arq:job:'..id)
  call('HSET', job_key(id), 'error', problem)
  end_job(id, from, 'canceled', event('pipeline_canceled', id, attempt, data or '{}', problem))
end

local function end_worker_lost(id, from, attempt, reason)
  local problem = problem_of([==[@WORKER_LOST@]==], id)
  call('DEL', 'arq:job:'..id)
  call('HSET', job_key(id), 'error', problem)
  end_job(id, from, 'failed', event('pipeline_failed', id, attempt, '{"reason":"'..reason..'"}', problem))
end

-- Takes a held job from its owner: back to the queue, or to its end.
local function take_back(id, reason, counts)
  call('ZREM', RUNNING, id)
  local key = job_key(id)
  local job = call('HMGET', key, 'status', 'attempt', 'lost', 'max_attempts', 'mode', 'keep_events', 'created_at')
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
  call('ZADD', QUEUE, created_ms(job[7]), id)
  wake()
end
"""


def _template(error: WorkerLostError | JobCanceledError) -> str:
    return orjson.dumps(error.problem().as_dict()).decode()


def script(body: str) -> Script:
    """``body`` with the shared functions before it."""
    source = _PRELUDE + body
    for mark, value in {
        "@WAKE_TOKENS@": str(names.WAKE_TOKENS),
        "@WAKE_TTL@": str(names.WAKE_TTL),
        "@INDEX_GRACE@": str(names.INDEX_GRACE),
        "@FIGURES_TTL@": str(names.FIGURES_TTL),
        "@HEARD_TTL@": str(names.HEARD_TTL),
        "@CACHES_TTL@": str(names.CACHES_TTL),
        "@ARQ_JOB_TTL@": str(names.ARQ_JOB_TTL),
        "@JOB_FUNCTION@": JOB_FUNCTION,
        "@JOB_ID_MARK@": JOB_ID_MARK,
        "@REASON_MARK@": REASON_MARK,
        "@CANCELED@": _template(JobCanceledError(job_id=JOB_ID_MARK)),
        "@CANCELED_BECAUSE@": _template(JobCanceledError(f"The job was canceled: {REASON_MARK}", job_id=JOB_ID_MARK)),
        "@WORKER_LOST@": _template(WorkerLostError(job_id=JOB_ID_MARK)),
    }.items():
        source = source.replace(mark, value)
    return Script(source)


def packed(parts: Iterable[bytes | str | float]) -> bytes:
    """A list as one argument: how many parts, the length of each, the parts. ``unpacked`` in Lua reads it."""
    values = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
    return struct.pack(f">{len(values) + 1}I", len(values), *map(len, values)) + b"".join(values)


@dataclass(frozen=True, slots=True)
class Scope:
    """One deployment in one store: what every script needs beside its own arguments."""

    connection: Connection
    keys: Keys
    event_log_max: int
    result_ttl: float
    """Seconds."""
    lease: float
    """Seconds."""

    @property
    def header(self) -> tuple[Any, ...]:
        """The arguments that every script begins with."""
        return (self.event_log_max, round(self.result_ttl * 1000), round(self.lease * 1000))

    async def run(self, lua: Script, *arguments: Any) -> Any:
        """Run one script of this package."""
        return await self.connection.run(lua, self.keys.prefix, *self.header, *arguments)

    async def run_many(self, lua: Script, calls: list[tuple[Any, ...]]) -> list[Any]:
        """Run one script many times in one round trip."""
        return await self.connection.run_many(lua, self.keys.prefix, [(*self.header, *call) for call in calls])
