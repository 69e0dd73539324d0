"""Keeping visualizations with their job, and how they are encoded: a line of JSON that describes the data after it."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
from pydantic import BaseModel, ConfigDict

from pipeserve.runtime.ports import Attachment
from pipeserve.store.scripts.prelude import Scope, packed, script

ATTACH = """
-- A packed list: indexes, each with its attachment.
local function attach(id, attachments)
  local fields = unpacked(attachments)
  for at = 1, #fields, 2 do call('HSET', attachments_key(id), fields[at], fields[at + 1]) end
end
"""

_ATTACH = script(
    ATTACH
    + """
local id, attempt, ending, attachments = unpack(ARGV, 4)
local job = call('HMGET', job_key(id), 'status', 'attempt', 'keep_events')
if not owns(job[1], job[2], attempt) then
  refuse(id, job[1], job[2], attempt)
  return 0
end
if ending == '1' then call('ZREM', RUNNING, '') end  -- a full store refuses nothing after it
if job[3] == '1' then attach(id, attachments) end
return 1
"""
)


class _Header(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: str
    step_name: str | None = None
    media_type: str


def attachment_fields(attachments: Sequence[Attachment]) -> list[int | bytes]:
    """Indexes and encoded attachments, in turn."""
    return [part for attachment in attachments for part in (attachment.index, _encode(attachment))]


def _encode(attachment: Attachment) -> bytes:
    header = {
        "name": attachment.name,
        "step_name": attachment.step_name,
        "media_type": attachment.media_type,
    }
    return orjson.dumps(header) + b"\n" + attachment.data


def read_attachment(index: int, value: bytes) -> Attachment:
    """The attachment that stands at ``index``. Raises ValueError where it is none."""
    line, _, data = value.partition(b"\n")
    header = _Header.model_validate_json(line)
    return Attachment(index, header.name, header.step_name, header.media_type, data)


async def attach(
    scope: Scope, job_id: str, attempt: int, attachments: Sequence[Attachment], *, ending: bool = False
) -> bool:
    """Keep ``attachments`` with a job that ``attempt`` owns. False: it does not; nothing was written.

    They go in one script, so a long list of large ones should be given in pieces. A job that keeps no events keeps
    none of them. ``ending``: a full store takes them too.
    """
    code: int = await scope.run(_ATTACH, job_id, attempt, int(ending), packed(attachment_fields(attachments)))
    return code == 1
