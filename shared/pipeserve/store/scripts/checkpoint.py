"""Keeping the results of a live job's durable steps."""

from __future__ import annotations

from pipeserve.store.scripts.prelude import Scope, script

_CHECKPOINT = script("""
local id, attempt, name, record = unpack(ARGV, 4)
local job = call('HMGET', job_key(id), 'status', 'attempt')
if not owns(job[1], job[2], attempt) then
  refuse(id, job[1], job[2], attempt)
  return 0
end
call('HSET', checkpoints_key(id), name, record)
return 1
""")


async def checkpoint(scope: Scope, job_id: str, attempt: int, name: str, record: bytes) -> bool:
    """Keep ``record`` until the job, which ``attempt`` owns, ends. False: it does not; nothing was written."""
    code: int = await scope.run(_CHECKPOINT, job_id, attempt, name, record)
    return code == 1
