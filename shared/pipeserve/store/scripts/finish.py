"""Ending an attempt: last events, state, result and terminal event together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

import orjson

from pipeserve.runtime.ports import Outcome, RunView
from pipeserve.store.latency import histogram
from pipeserve.store.scripts.append import VIEW
from pipeserve.store.scripts.prelude import Scope, script

CANCELER = """
-- What the cancel script has noted rules; an owner that was asked directly tells it with the run's end.
local function set_canceler(key, by, reason)
  if by ~= '' then call('HSETNX', key, 'canceled_by', by) end
  if reason ~= '' then call('HSETNX', key, 'cancel_reason', reason) end
end
"""

# Arguments: id, attempt, status, terminal event, seconds, outputs, error, progress, steps, who canceled, why, number of
# bodies, the bodies, then the latencies.
_FINISH = script(
    VIEW
    + CANCELER
    + """
local id, attempt, status = arg(1), arg(2), arg(3)
local key = job_key(id)
local job = call('HMGET', key, 'status', 'attempt', 'keep_events', 'execution_time')
if job[2] ~= attempt then return 0 end
if job[1] == status and TERMINAL[status] and job[4] then return 2 end
if job[1] ~= 'running' and job[1] ~= 'canceling' then return 0 end
if job[1] == 'canceling' and status ~= 'canceled' then return 1 end
call('DEL', 'arq:job:'..id)
local bodies = tonumber(arg(12))
if job[3] == '1' then
  set_view(key, arg(8), arg(9))
  for at = 13, 12 + bodies do add_event(id, arg(at)) end
end
call('HSET', key, 'execution_time', arg(5))
if arg(6) ~= '' then call('HSET', key, 'outputs', arg(6)) end
if arg(7) ~= '' then call('HSET', key, 'error', arg(7)) end
set_canceler(key, arg(10), arg(11))
end_job(id, job[1], status, arg(4), arg(5))
count_latencies(16 + bodies)
return 2
"""
)


class Finished(IntEnum):
    """What became of a finish."""

    STALE = 0
    CANCELING = 1
    WRITTEN = 2


def outcome_arguments(bodies: Sequence[bytes], view: RunView, outcome: Outcome) -> tuple[Any, ...]:
    """From the status on, as ``finish`` and ``record`` read them."""
    return (
        outcome.status.value,
        outcome.terminal_event,
        repr(float(outcome.execution_time)),
        outcome.outputs or b"",
        b"" if outcome.error is None else orjson.dumps(outcome.error.as_dict()),
        view.progress or b"",
        view.steps or b"",
        outcome.canceled_by or "",
        outcome.cancel_reason or "",
        len(bodies),
        *bodies,
        *latency_arguments(outcome.latencies),
    )


def latency_arguments(latencies: Mapping[str, Sequence[float]]) -> list[Any]:
    """Triples: kind, bucket, count."""
    return [
        part
        for kind, values in latencies.items()
        for bucket, count in histogram(values).items()
        for part in (kind, bucket, count)
    ]


async def finish(
    scope: Scope, job_id: str, attempt: int, bodies: Sequence[bytes], view: RunView, outcome: Outcome
) -> Finished:
    """End ``attempt`` as ``outcome`` says, if it still owns the job and no cancel came between.

    The same attempt ending in the same state again changes nothing, so a finish whose reply was lost can be repeated.
    """
    code: int = await scope.run(_FINISH, job_id, attempt, *outcome_arguments(bodies, view, outcome))
    return Finished(code)
