"""Synchronous runs: recorded while they run, or as a whole once they have ended."""

from __future__ import annotations

from collections.abc import Sequence

from pipeserve.errors import ProblemError
from pipeserve.runtime.ports import Admission, FinishedRun, NewJob
from pipeserve.runtime.recording.brief import Brief
from pipeserve.store.scripts.attach import ATTACH, attachment_fields
from pipeserve.store.scripts.finish import code_of, counter_sums, latency_counts, result_fields, view_fields
from pipeserve.store.scripts.prelude import Scope, packed, script
from pipeserve.store.scripts.submit import CREATE, KNOWN, idempotency, label_index, read_admission, record_fields

_AT_ONCE = 16
"""Runs that one script records: it shares what they have in common, and holds the server for about a millisecond."""

_OPEN = script(
    CREATE
    + KNOWN
    + """
local id, labels, fields, key, fingerprint = unpack(ARGV, 4)
local earlier = known(id, key, fingerprint)
if earlier then return earlier end
local idle = is_idle()
local created_at = int(now_us)
create(id, created_at, labels, unpacked(fields))
remember(id, key, fingerprint)
call('HSET', job_key(id), 'started_at', created_at)
call('ZADD', status_key('running'), now_ms, id)
call('ZADD', RUNNING, now_ms + LEASE, id)
if idle then indexes_stay() end
return {'accepted', id}
"""
)

_RECORD = script(
    CREATE
    + ATTACH
    + """
local function record(id, owner, status, created_at, completed_at, seconds, labels, fields, brief, bodies,
    terminal_event, attachments, latencies, counters, code)
  local key = job_key(id)
  fields, bodies = unpacked(fields), unpacked(bodies)
  -- Open already: an _OPEN that its process gave up, and that the store ran later all the same.
  local open = call('HMGET', key, 'status', 'mode', 'owner', 'last_seq', 'canceled_by', 'cancel_reason')
  local logged = 0
  if open[1] then
    if open[2] ~= 'sync' or TERMINAL[open[1]] or open[3] ~= owner then return end
    call('ZREM', RUNNING, id)
    call('ZREM', status_key(open[1]), id)
    call('HDEL', key, 'owner', 'batch')
    call('UNLINK', checkpoints_key(id))
    logged = tonumber(open[4])
    local known_by = call('HGET', key, 'idempotency')
    if known_by then call('PEXPIRE', P..'idempotency:'..known_by, RESULT_TTL) end
    -- What the cancel script has noted rules.
    for at, name in ipairs({'canceled_by', 'cancel_reason'}) do
      if open[at + 4] then
        fields[#fields + 1] = name
        fields[#fields + 1] = open[at + 4]
      end
    end
  end
  local seq = math.max(logged, #bodies, tonumber(brief)) + 1
  fields[#fields + 1] = 'last_seq'
  fields[#fields + 1] = seq
  create(id, created_at, labels, fields)
  call('ZADD', status_key(status), created_ms(created_at), id)
  local function add(number, body)
    call('XADD', log_key(id), 'MAXLEN', '~', LOG_MAX, number..'-0', 'd', body)
    if open[1] then call('PUBLISH', log_key(id), number..':'..body) end
  end
  for number = logged + 1, #bodies do add(number, bodies[number]) end  -- only its owner numbers its events
  add(seq, terminal_event)
  attach(id, attachments)
  if code ~= '' then call('HSET', P..'codes', id, code) end
  post_end(id, seq)
  record_expires(id, status)
  count_end(status, true, seconds, tonumber(completed_at))
  count(latencies, counters)
end

for at = 4, #ARGV do record(unpack(unpacked(ARGV[at]))) end
prune(20 * (#ARGV - 3))
indexes_end()
return 1
"""
)


async def open_run(scope: Scope, job: NewJob, owner: str) -> Admission:
    """Record a run that ``owner`` executes. The same id again changes nothing. Raises IdempotencyMismatchError."""
    state = ("status", "running", "attempt", 1, "owner", owner, "worker", owner, "last_seq", 0)
    fields = packed([*record_fields(job, sync=True), *state])
    call = (job.job_id, label_index(job), fields, *idempotency(job))
    [reply] = await scope.run_many(_OPEN, [call], durable=True)
    admission = read_admission(reply, job)
    if isinstance(admission, ProblemError):
        raise admission
    return admission


async def record_runs(scope: Scope, runs: Sequence[FinishedRun]) -> None:
    """Record runs that have ended, in one round trip.

    An id that is there already changes nothing, unless it is a run that the same owner has open: that one ends.
    """
    records = [_record_arguments(run) for run in runs]
    await scope.run_many(
        _RECORD, [tuple(records[start : start + _AT_ONCE]) for start in range(0, len(records), _AT_ONCE)]
    )


def _record_arguments(run: FinishedRun) -> bytes:
    job, outcome = run.job, run.outcome
    started_at, completed_at = round(run.started_at * 1e6), round(run.completed_at * 1e6)
    seconds = repr(float(outcome.execution_time))
    fields = record_fields(job, sync=True)
    fields += ("status", outcome.status.value, "attempt", 1, "worker", run.owner, "started_at", started_at)
    fields += ("completed_at", completed_at, "execution_time", seconds)
    fields += result_fields(outcome)
    if outcome.canceled_by is not None:
        fields += ("canceled_by", outcome.canceled_by)
    if outcome.cancel_reason is not None:
        fields += ("cancel_reason", outcome.cancel_reason)
    brief = run.bodies if job.keep_events and isinstance(run.bodies, Brief) else None
    bodies = run.bodies if job.keep_events and not isinstance(run.bodies, Brief) else ()
    if job.keep_events:
        fields += view_fields(run.view)
    if brief is not None:
        fields += ("brief", brief.encode())
    return packed(
        (
            job.job_id,
            run.owner,
            outcome.status.value,
            round(run.created_at * 1e6),
            completed_at,
            seconds,
            label_index(job),
            packed(fields),
            len(brief) if brief is not None else 0,
            packed(bodies),
            outcome.terminal_event,
            packed(attachment_fields(run.attachments) if job.keep_events else ()),
            latency_counts(outcome.latencies),
            counter_sums(outcome.counters),
            code_of(outcome),
        )
    )
