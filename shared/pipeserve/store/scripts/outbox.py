"""Handing webhooks that have something to send to a sender, and noting how far it has come."""

from __future__ import annotations

import logging
from typing import Any

import orjson

from pipeserve.runtime.ports import DueWebhook, Webhook, WebhookProgress
from pipeserve.store.scripts.prelude import Scope, packed, script

DELIVERIES_KEPT = 50
"""The newest tries of one job."""

_log = logging.getLogger(__name__)

_DUE = script("""
local limit, hold = tonumber(arg(1)), tonumber(arg(2))
local outbox = P..'webhooks'
call('ZREM', outbox, '')  -- from here on a full store refuses nothing
local due = {}
-- More than are wanted: jobs that are gone must not stand before those that are there.
for _, id in ipairs(call('ZRANGEBYSCORE', outbox, '-inf', now_ms, 'LIMIT', 0, limit + 100)) do
  if #due == limit then break end
  local job = call('HMGET', job_key(id), 'webhook', 'webhook_after', 'webhook_attempt')
  if job[1] then
    call('ZADD', outbox, now_ms + hold, id)
    due[#due + 1] = {id, job[1], job[2] or '0', job[3] or '0'}
  else
    call('ZREM', outbox, id)
  end
end
local next_due = call('ZRANGE', outbox, 0, 0, 'WITHSCORES')[2]
return {next_due and int(math.max(tonumber(next_due) - now_ms, 0)) or '', due}
""")

_SETTLE = script(
    """
local id, after, attempt, status, retry, deliveries = unpack(ARGV, 4)
local outbox, key = P..'webhooks', job_key(id)
call('ZREM', outbox, id)
local last_seq = call('HGET', key, 'last_seq')
if not last_seq then
  call('DEL', deliveries_key(id))
  return 0
end
call('HSET', key, 'webhook_after', after, 'webhook_attempt', attempt, 'webhook_status', status)
if status ~= 'active' then call('HDEL', key, 'webhook_live') end  -- no more is posted for it
for _, delivery in ipairs(unpacked(deliveries)) do call('RPUSH', deliveries_key(id), delivery) end
call('LTRIM', deliveries_key(id), -@KEPT@, -1)
local lifetime = call('PTTL', key)
if lifetime > 0 then call('PEXPIRE', deliveries_key(id), lifetime) end
if status == 'active' then
  if retry ~= '' then
    call('ZADD', outbox, now_ms + tonumber(retry), id)  -- no news: this sender looks, and the others do now and then
    outbox_stays()
  elseif tonumber(last_seq) > tonumber(after) then
    post(id)
  end
end
return 1
""".replace("@KEPT@", str(DELIVERIES_KEPT))
)


async def due(scope: Scope, limit: int, hold: float) -> tuple[list[DueWebhook], float | None]:
    """As ``WebhookOutbox.due``."""
    next_due, rows = await scope.run(_DUE, limit, round(hold * 1000))
    found: list[DueWebhook] = []
    for job_id, webhook, after, attempt in rows:
        try:
            found.append(DueWebhook(job_id.decode(), read_webhook(webhook), int(after), int(attempt)))
        except (ValueError, KeyError, TypeError):  # one record that can't be read holds up no other
            _log.warning("webhook can't be read", extra={"job_id": job_id.decode(errors="replace")})
    return found, int(next_due) / 1000 if next_due else None


async def settle(scope: Scope, job_id: str, progress: WebhookProgress) -> None:
    """As ``WebhookOutbox.settle``."""
    retry: Any = "" if progress.retry_in is None else round(progress.retry_in * 1000)
    deliveries = packed(delivery.model_dump_json() for delivery in progress.deliveries)
    await scope.run(_SETTLE, job_id, progress.after, progress.attempt, progress.status, retry, deliveries)


def read_webhook(stored: bytes) -> Webhook:
    """What a record holds of its webhook."""
    described = orjson.loads(stored)
    return Webhook(described["url"], tuple(described["events"]))
