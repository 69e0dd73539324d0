"""What the scripts share: time, arguments and events here, how jobs wait and how they end in the two beside.

Numbers that leave Lua go through ``int`` (Lua prints large doubles as ``1.7e+15``). Events are spliced from encoded
pieces, never built with ``cjson.encode``: that turns an empty object into ``{}`` or ``[]`` at its own choice and loses
nulls.

A list among a script's arguments is one argument (:func:`packed`): so the others keep their places, and a long list
costs the client less than as many arguments.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from pipeserve.errors import ExpiredError, JobCanceledError, ProblemError, WorkerLostError
from pipeserve.runtime.ports import PRIORITY_SECONDS
from pipeserve.store import keys as names
from pipeserve.store.connection import Connection, Script
from pipeserve.store.engine import JOB_FUNCTION
from pipeserve.store.keys import Keys
from pipeserve.store.scripts.ending import ENDING
from pipeserve.store.scripts.waiting import WAITING

JOB_ID_MARK = "@job_id@"
"""Where a script puts the job's id into an encoded problem."""
REASON_MARK = "@reason@"
"""Where it puts the reason of a cancel."""
_MOST_LANES = 100
"""Lanes up to which a job's position in the queue is counted out."""
_UNKNOWN_WAIT, _LONGEST_WAIT = 30, 600
"""Seconds after which to come back to a full queue: where no worker takes jobs from it, and at most."""

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
local function deliveries_key(id) return P..'deliveries:'..id end
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
"""


def _template(error: ProblemError) -> str:
    return orjson.dumps(error.problem().as_dict()).decode()


def script(body: str) -> Script:
    """``body`` with the shared functions before it."""
    source = _PRELUDE + WAITING + ENDING + body
    for mark, value in {
        "@WAKE_TOKENS@": str(names.WAKE_TOKENS),
        "@WAKE_TTL@": str(names.WAKE_TTL),
        "@INDEX_GRACE@": str(names.INDEX_GRACE),
        "@FIGURES_TTL@": str(names.FIGURES_TTL),
        "@HEARD_TTL@": str(names.HEARD_TTL),
        "@EPOCH_TTL@": str(names.EPOCH_TTL),
        "@CACHES_TTL@": str(names.CACHES_TTL),
        "@ARQ_JOB_TTL@": str(names.ARQ_JOB_TTL),
        "@JOB_FUNCTION@": JOB_FUNCTION,
        "@JOB_ID_MARK@": JOB_ID_MARK,
        "@REASON_MARK@": REASON_MARK,
        "@CANCELED@": _template(JobCanceledError(job_id=JOB_ID_MARK)),
        "@CANCELED_BECAUSE@": _template(JobCanceledError(f"The job was canceled: {REASON_MARK}", job_id=JOB_ID_MARK)),
        "@WORKER_LOST@": _template(WorkerLostError(job_id=JOB_ID_MARK)),
        "@EXPIRED@": _template(ExpiredError(job_id=JOB_ID_MARK)),
        "@PRIORITY_MS@": str(round(PRIORITY_SECONDS * 1000)),
        "@MOST_LANES@": str(_MOST_LANES),
        "@PACE_TTL@": str(names.PACE_TTL),
        "@UNKNOWN_WAIT@": str(_UNKNOWN_WAIT),
        "@LONGEST_WAIT@": str(_LONGEST_WAIT),
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

    async def run_many(self, lua: Script, calls: Sequence[tuple[Any, ...]], *, durable: bool = False) -> list[Any]:
        """Run one script many times in one round trip; ``durable``: what it writes is a promise (see Connection)."""
        calls = [(*self.header, *call) for call in calls]
        return await self.connection.run_many(lua, self.keys.prefix, calls, durable=durable)
