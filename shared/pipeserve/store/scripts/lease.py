"""Keeping what an owner holds, and giving it back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeserve.runtime.ports import Renewal
from pipeserve.store.scripts.claim import HEARD
from pipeserve.store.scripts.epoch import EPOCH
from pipeserve.store.scripts.prelude import Scope, script

# Arguments: owner, record of the worker as JSON or '', its time to live in ms, the marker of the store that is known
# and a new one (or twice ''), then the ids.
RENEW = script(
    HEARD
    + EPOCH
    + """
local owner, info, info_ttl = arg(1), arg(2), tonumber(arg(3))
local lost, canceling = {}, {}
call('ZREM', RUNNING, '')
local may_reap = heard()
for at = 9, #ARGV do
  local id = ARGV[at]
  local job = call('HMGET', job_key(id), 'owner', 'status')
  if job[1] ~= owner or not call('ZSCORE', RUNNING, id) then
    lost[#lost + 1] = id
  else
    call('ZADD', RUNNING, 'XX', now_ms + LEASE, id)
    if job[2] == 'canceling' then canceling[#canceling + 1] = id end
  end
end
-- After the owner's own: where no worker claims, beats alone find the owners that are gone.
if may_reap then take_back_overdue() end
expire_overdue()
line_up_scheduled()
if info ~= '' then
  local workers = P..'workers'
  call('SET', P..'worker:'..owner, info, 'PX', info_ttl)
  call('ZREMRANGEBYSCORE', workers, '-inf', now_ms)
  call('ZADD', workers, now_ms + info_ttl, owner)
  call('PEXPIRE', workers, info_ttl)
end
return {lost, canceling, epoch_now(arg(4), arg(5))}
"""
)

_RELEASE = script("""
local owner, lost = arg(1), arg(2) == '1'
local count = 0
for _, id in ipairs(call('ZRANGE', RUNNING, 0, -1)) do
  if call('HGET', job_key(id), 'owner') == owner then
    take_back(id, lost and 'worker_died' or 'drained', lost)
    count = count + 1
  end
end
call('DEL', P..'worker:'..owner)
call('ZREM', P..'workers', owner)
return count
""")


def renew_arguments(
    owner: str, info: bytes, info_ttl: float, job_ids: Sequence[str], *, epoch: str = "", new_epoch: str = ""
) -> tuple[Any, ...]:
    """After the header. ``epoch``: the store's marker as this owner knows it; ``new_epoch``: what to mark it with."""
    return (owner, info, round(info_ttl * 1000), epoch, new_epoch, *job_ids)


def read_renewal(reply: Any) -> Renewal:
    """The script's reply."""
    lost, canceling, _ = reply
    return Renewal(tuple(job_id.decode() for job_id in lost), tuple(job_id.decode() for job_id in canceling))


async def renew(scope: Scope, owner: str, job_ids: Sequence[str]) -> Renewal:
    """Extend the leases of ``owner``'s jobs by a whole lease from now, and take back what others let run out."""
    return read_renewal(await scope.run(RENEW, *renew_arguments(owner, b"", 1.0, job_ids)))


async def release(scope: Scope, owner: str, *, lost: bool) -> int:
    """Take back all that ``owner`` holds, and forget its record."""
    count: int = await scope.run(_RELEASE, owner, int(lost))
    return count
