"""A marker that tells a store from one that was emptied.

Each beat of a process brings the marker that it knows. ``FLUSHALL``, lost files or a restart without persistence leave
none, or one that a newer process has made since. Emptying is counted once, by whoever notices it first.
"""

from __future__ import annotations

from typing import Any

EPOCH = """
-- The marker that is there now. known: what this process last saw, or ''. fresh: a new one, or '' to make none.
local function epoch_now(known, fresh)
  local key = P..'epoch'
  local marker, emptied_at = string.match(call('GET', key) or '', '^(%w+):(%d+)$')
  if not marker then
    if fresh == '' then return '' end
    marker, emptied_at = fresh, '0'
  end
  if known ~= '' and known ~= marker and emptied_at == '0' then
    emptied_at = int(now_ms)
    call('HINCRBYFLOAT', P..'counters', 'store_emptied', 1)
    call('EXPIRE', P..'counters', @FIGURES_TTL@)
  end
  call('SET', key, marker..':'..emptied_at, 'EX', @EPOCH_TTL@)
  return marker
end
"""


def emptied_at(marker: bytes | None) -> float | None:
    """Unix time at which it was noticed that the store had been emptied, by the marker's key; None: it was not."""
    moment = int((marker or b":0").rpartition(b":")[2])
    return moment / 1000 if moment else None


def read_epoch(reply: Any) -> str:
    """The marker in the reply of a renewal; empty: there is none."""
    marker: bytes = reply[2]
    return marker.decode()
