"""Adding to a running job's log."""

from __future__ import annotations

from collections.abc import Sequence

from pipeserve.runtime.ports import RunView
from pipeserve.store.scripts.prelude import Scope, script

VIEW = """
local function set_view(key, progress, steps)
  if progress ~= '' then call('HSET', key, 'progress', progress) end
  if steps ~= '' then call('HSET', key, 'steps', steps) end
end
"""

_APPEND = script(
    VIEW
    + """
local id, attempt, batch = arg(1), arg(2), arg(3)
local key = job_key(id)
local job = call('HMGET', key, 'status', 'attempt', 'keep_events', 'last_seq', 'batch', 'webhook_live')
if not owns(job[1], job[2], attempt) then
  refuse(id, job[1], job[2], attempt)
  return -1
end
if job[5] == batch or job[3] == '0' then return tonumber(job[4]) end
if arg(6) == '1' then call('ZREM', RUNNING, '') end  -- a full store refuses nothing after it
call('HSET', key, 'batch', batch)
set_view(key, arg(4), arg(5))
local seq = tonumber(job[4])
for at = 10, #ARGV do seq = add_event(id, ARGV[at]) end
if job[6] == '1' then post(id) end
return seq
"""
)


async def append(
    scope: Scope,
    job_id: str,
    attempt: int,
    bodies: Sequence[bytes],
    view: RunView,
    batch: str,
    *,
    ending: bool = False,
) -> int | None:
    """Number and add ``bodies``, and update the view: the last number, or None where the attempt is stale.

    ``ending``: a full store takes them too.

    A ``batch`` that was the last one written is not written again, so one whose reply was lost can be repeated.
    """
    shown = (view.progress or b"", view.steps or b"")
    seq: int = await scope.run(_APPEND, job_id, attempt, batch, *shown, int(ending), *bodies)
    return None if seq < 0 else seq
