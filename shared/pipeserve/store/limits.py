"""How much of its budgets each caller has spent, counted for all processes together.

A budget is a bucket that refills steadily (the generic cell rate algorithm): one number per caller and budget says when
the bucket will be full again. It expires by itself when that moment comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeserve.runtime.ports import Budget, Spent, Verdict
from pipeserve.store.scripts.prelude import Scope, script

_SPEND = script("""
local caller, amount = arg(1), tonumber(arg(2))
local full_at, told, wait = {}, {}, 0
for at = 3, #ARGV - 3, 3 do
  local name, size, window = arg(at), tonumber(arg(at + 1)), tonumber(arg(at + 2)) * 1000000
  local key = P..'limit:'..caller..':'..name
  local before = math.max(tonumber(call('GET', key) or '0'), now_us)
  local after = math.max(before + amount * window / size, now_us)
  -- A microsecond's rounding in a request's favour.
  if amount > 0 and after - now_us > window + 1 then wait = math.max(wait, after - now_us - window) end
  full_at[#full_at + 1] = {key, before, after, size, window}
end
for at, budget in ipairs(full_at) do
  local key, before, after, size, window = unpack(budget)
  local now_full = before
  if wait == 0 then
    now_full = after
    if after > now_us then call('SET', key, int(after), 'PX', int(math.ceil((after - now_us) / 1000)))
    else call('DEL', key) end
  end
  told[#told + 1] = int(math.floor((now_us + window - now_full) * size / window + 0.000001))
  told[#told + 1] = int(math.max(now_full - now_us, 0))
end
return {int(wait), told}
""")


class RedisLimits:
    """``Limits`` on Redis or Valkey, by the server's clock."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    async def spend(self, caller: str, budgets: Sequence[Budget], amount: int = 1) -> Verdict:
        """Take ``amount`` of each budget, or of none. Raises StoreUnavailableError."""
        members: list[Any] = []
        for budget in budgets:
            members += (budget.name, budget.size, repr(float(budget.seconds)))
        wait, told = await self._scope.run(_SPEND, caller, amount, *members)
        numbers = [int(number) for number in told]
        spent = tuple(
            Spent(budget, max(left, 0), refill / 1e6)
            for budget, left, refill in zip(budgets, numbers[::2], numbers[1::2], strict=True)
        )
        return Verdict(int(wait) == 0, int(wait) / 1e6, spent)
