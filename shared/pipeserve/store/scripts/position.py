"""Where jobs stand in the queue."""

from __future__ import annotations

from collections.abc import Sequence

from pipeserve.store.scripts.prelude import Scope, script

_POSITIONS = script("""
local found = {}
for at = 4, #ARGV do
  local job = call('HMGET', job_key(ARGV[at]), 'status', 'lane')
  found[#found + 1] = job[1] == 'pending' and position_of(ARGV[at], job[2] or '') or false
end
return found
""")


async def positions(scope: Scope, job_ids: Sequence[str]) -> list[int | None]:
    """How many jobs go before each of these, from 0; None: it is not due, or does not wait."""
    return await scope.run(_POSITIONS, *job_ids) if job_ids else []
