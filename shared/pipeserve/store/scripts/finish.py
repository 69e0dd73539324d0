"""Ending an attempt: last events, state, result and terminal event together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import IntEnum

import orjson

from pipeserve.runtime.latency import histogram
from pipeserve.runtime.ports import Outcome, RunView
from pipeserve.store.scripts.prelude import Scope, packed, script

_FINISH = script("""
local id, attempt, status, terminal_event, seconds, result, view, bodies, canceled_by, cancel_reason, latencies,
  counters, code = unpack(ARGV, 4)
local key = job_key(id)
local job = call('HMGET', key, 'status', 'attempt', 'keep_events', 'execution_time')
if job[2] == attempt and job[1] == status and TERMINAL[status] and job[4] then return 2 end
if not owns(job[1], job[2], attempt) then
  refuse(id, job[1], job[2], attempt)
  return 0
end
if job[1] == 'canceling' and status ~= 'canceled' then return 1 end
call('DEL', 'arq:job:'..id)
local fields = unpacked(result)
if job[3] == '1' then
  for _, part in ipairs(unpacked(view)) do fields[#fields + 1] = part end
  for _, body in ipairs(unpacked(bodies)) do add_event(id, body) end
end
call('HSET', key, 'execution_time', seconds, unpack(fields))
-- What the cancel script has noted rules; an owner that was asked directly tells it with the run's end.
if canceled_by ~= '' then call('HSETNX', key, 'canceled_by', canceled_by) end
if cancel_reason ~= '' then call('HSETNX', key, 'cancel_reason', cancel_reason) end
end_job(id, job[1], status, terminal_event, code, seconds)
count(latencies, counters)
return 2
""")


class Finished(IntEnum):
    """What became of a finish."""

    STALE = 0
    CANCELING = 1
    WRITTEN = 2


def result_fields(outcome: Outcome) -> list[str | bytes]:
    """What the record shows of a run's end, name and value in turn."""
    fields: list[str | bytes] = []
    if outcome.outputs is not None:
        fields += ("outputs", outcome.outputs)
    if outcome.shown_outputs is not None:
        fields += ("shown_outputs", outcome.shown_outputs)
    if outcome.error is not None:
        fields += ("error", orjson.dumps(outcome.error.as_dict()))
    return fields


def code_of(outcome: Outcome) -> str:
    """The code that jobs are listed by; empty where the run ended well."""
    return "" if outcome.error is None else outcome.error.code


def view_fields(view: RunView) -> list[str | bytes]:
    """What the record shows of a run's course, name and value in turn."""
    fields: list[str | bytes] = []
    if view.progress is not None:
        fields += ("progress", view.progress)
    if view.steps is not None:
        fields += ("steps", view.steps)
    return fields


def latency_counts(latencies: Mapping[str, Sequence[float]]) -> bytes:
    """``<kind>:<bucket>`` and how many, in turn."""
    return packed(
        part
        for kind, values in latencies.items()
        for bucket, count in histogram(values).items()
        for part in (f"{kind}:{bucket}", count)
    )


def counter_sums(counters: Mapping[str, float]) -> bytes:
    """Names and what to add to them, in turn. What is no finite number is left out: the server would refuse it."""
    return packed(
        part for name, value in counters.items() if value and math.isfinite(value) for part in (name, float(value))
    )


async def finish(
    scope: Scope, job_id: str, attempt: int, bodies: Sequence[bytes], view: RunView, outcome: Outcome
) -> Finished:
    """End ``attempt`` as ``outcome`` says, if it still owns the job and no cancel came between.

    The same attempt ending in the same state again changes nothing, so a finish whose reply was lost can be repeated.
    """
    reply: int = await scope.run(
        _FINISH,
        job_id,
        attempt,
        outcome.status.value,
        outcome.terminal_event,
        repr(float(outcome.execution_time)),
        packed(result_fields(outcome)),
        packed(view_fields(view)),
        packed(bodies),
        outcome.canceled_by or "",
        outcome.cancel_reason or "",
        latency_counts(outcome.latencies),
        counter_sums(outcome.counters),
        code_of(outcome),
    )
    return Finished(reply)
