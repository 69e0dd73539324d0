"""Adding to the logs of running jobs: to several in one script, since most of what one costs is its beginning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redis.exceptions import ResponseError

from pipeserve.errors import StoreUnavailableError
from pipeserve.runtime.ports import RunView
from pipeserve.store.connection import outages
from pipeserve.store.scripts.prelude import Scope, packed, script

VIEW = """
local function set_view(key, progress, steps)
  if progress ~= '' then call('HSET', key, 'progress', progress) end
  if steps ~= '' then call('HSET', key, 'steps', steps) end
end
"""

_APPEND = script(
    VIEW
    + """
local function append(id, attempt, batch, progress, steps, bodies)
  local key, log = job_key(id), log_key(id)
  local job = call('HMGET', key, 'status', 'attempt', 'keep_events', 'last_seq', 'batch', 'webhook_live')
  if not owns(job[1], job[2], attempt) then
    refuse(id, job[1], job[2], attempt)
    return -1
  end
  if job[5] == batch or job[3] == '0' then return tonumber(job[4]) end
  if arg(1) == '1' then call('ZREM', RUNNING, '') end  -- a full store refuses nothing after it
  call('HSET', key, 'batch', batch)
  set_view(key, progress, steps)
  local seq = call('HINCRBY', key, 'last_seq', #bodies) - #bodies
  for at = 1, #bodies do
    seq = seq + 1
    call('XADD', log, 'MAXLEN', '~', LOG_MAX, seq..'-0', 'd', bodies[at])
    call('PUBLISH', log, seq..':'..bodies[at])
  end
  if job[6] == '1' then post(id) end
  return seq
end

local written = {}
for at = 2, #ARGV - 3, 6 do
  local bodies = unpacked(arg(at + 5))
  -- One job's keys may not be what they should be: that is no other's trouble.
  local fine, reply = pcall(append, arg(at), arg(at + 1), arg(at + 2), arg(at + 3), arg(at + 4), bodies)
  if not fine then reply = type(reply) == 'table' and reply.err or tostring(reply) end
  written[#written + 1] = reply
end
return written
"""
)


@dataclass(frozen=True, slots=True)
class Append:
    """``bodies`` for one job's log, and its view as it is then."""

    job_id: str
    attempt: int
    bodies: Sequence[bytes]
    view: RunView
    batch: str
    """What was the last batch of its job to be written is not written again: one in doubt can be repeated."""


async def append(
    scope: Scope, appends: Sequence[Append], *, ending: bool = False
) -> list[int | StoreUnavailableError | ResponseError | None]:
    """Number and add events, and update the views; of each the last number, or None where its attempt is stale.

    Where the store refused one, its reply stands in the place. ``ending``: a full store takes them too.
    """
    arguments: list[str | int | bytes] = [int(ending)]
    for one in appends:
        view = one.view
        arguments += (one.job_id, one.attempt, one.batch, view.progress or b"", view.steps or b"", packed(one.bodies))
    written: list[int | bytes] = await scope.run(_APPEND, *arguments)
    return [_result(scope, reply) for reply in written]


def _result(scope: Scope, reply: int | bytes) -> int | StoreUnavailableError | ResponseError | None:
    if isinstance(reply, int):
        return None if reply < 0 else reply
    try:
        with outages(scope.connection.url):
            raise ResponseError(reply.decode(errors="replace"))
    except (StoreUnavailableError, ResponseError) as error:
        return error
