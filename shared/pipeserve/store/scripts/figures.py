"""The whole service's figures in one round trip, and what its processes tell for them."""

from __future__ import annotations

from typing import Any

import orjson

from pipeserve.jobs import JobStatus
from pipeserve.runtime.latency import percentiles
from pipeserve.runtime.ports import CacheGauges, ServiceFigures, WorkerInfo
from pipeserve.store.scripts.epoch import emptied_at
from pipeserve.store.scripts.prelude import Scope, script

_STATUSES = tuple(status.value for status in JobStatus)

_CACHES = """
local CACHES = P..'caches'
-- What processes told of late, as the moment, entries and bytes; what is older is forgotten.
local function caches()
  local told = {}
  local flat = call('HGETALL', CACHES)
  for at = 1, #flat, 2 do
    local moment, entries, bytes = string.match(flat[at + 1], '^(%d+):(%d+):(%d+)$')
    if moment and now_ms - tonumber(moment) <= @CACHES_TTL@ * 1000 then
      told[#told + 1] = {entries, bytes}
    else
      call('HDEL', CACHES, flat[at])
    end
  end
  return told
end
"""

_TELL_CACHE = script(
    _CACHES
    + """
local owner, entries, bytes = unpack(ARGV, 4)
call('HSET', CACHES, owner, int(now_ms)..':'..entries..':'..bytes)
call('EXPIRE', CACHES, @CACHES_TTL@)
caches()
return 1
"""
)

_FIGURES = script(
    _CACHES
    + """
prune(1000)
local counts = {}
for at = 4, #ARGV do counts[#counts + 1] = call('ZCARD', status_key(ARGV[at])) end
local workers = {}
for _, id in ipairs(call('ZRANGEBYSCORE', P..'workers', now_ms, '+inf')) do
  workers[#workers + 1] = call('GET', P..'worker:'..id) or nil
end
local oldest = call('ZRANGEBYSCORE', QUEUE, '-inf', now_ms, 'WITHSCORES', 'LIMIT', 0, 1)
local age = 0
if oldest[2] then age = now_ms - tonumber(oldest[2]) end
local claimed = pace()
return {call('HGETALL', P..'totals'), call('HGETALL', P..'latency'), counts, call('ZCARD', QUEUE), int(age), workers,
  call('HGETALL', P..'counters'), caches(), tostring(claimed), call('GET', P..'epoch') or ''}
"""
)


def _pairs(flat: list[bytes]) -> dict[str, bytes]:
    return {flat[at].decode(): flat[at + 1] for at in range(0, len(flat), 2)}


async def figures(scope: Scope) -> ServiceFigures:
    """As ``Operations.figures``."""
    reply: list[Any] = await scope.run(_FIGURES, *_STATUSES)
    totals, latency = _pairs(reply[0]), _pairs(reply[1])
    histograms: dict[str, dict[int, int]] = {}
    for field, count in latency.items():
        kind, _, bucket = field.rpartition(":")
        histograms.setdefault(kind, {})[int(bucket)] = int(count)
    workers = [orjson.loads(record) for record in reply[5]]
    return ServiceFigures(
        completed=int(totals.get("completed", 0)),
        failed=int(totals.get("failed", 0)),
        canceled=int(totals.get("canceled", 0)),
        execution_seconds=float(totals.get("execution_seconds", 0)),
        jobs_by_status=dict(zip(_STATUSES, reply[2], strict=True)),
        queue_depth=reply[3],
        oldest_job_age=int(reply[4]) / 1000,
        last_execution=int(totals["last_execution"]) / 1e6 if "last_execution" in totals else None,
        latency={kind: percentiles(buckets) for kind, buckets in histograms.items()},
        workers=[WorkerInfo(**worker) for worker in workers],
        counters={name: float(total) for name, total in _pairs(reply[6]).items()},
        cache=CacheGauges(
            entries=sum(int(entries) for entries, _ in reply[7]), bytes=sum(int(size) for _, size in reply[7])
        ),
        drain_rate=float(reply[8]) or None,
        emptied_at=emptied_at(reply[9] or None),
        durations=histograms,
    )


async def tell_cache(scope: Scope, owner: str, gauges: CacheGauges) -> None:
    """As ``Operations.tell_cache``."""
    await scope.run(_TELL_CACHE, owner, gauges.entries, gauges.bytes)
