"""How jobs wait, as Lua that every script shares: in lanes that take turns, or for their time to come.

``queue`` holds all that wait, by when they are due. What is due stands in its lane too, ordered by when it was due with
its priority counted in; what is not due yet stands in ``scheduled``. ``lanes`` gives each lane that has jobs its turn:
the lowest is next, and is a round (2) higher after it was served, so all turns lie within a round. A lane that newly
has jobs enters half a round (1) above the lowest: it waits for each other lane once at most, and one that has one job
at a time can't come first again and again.
"""

from __future__ import annotations

_TURN, _NEWCOMER = 2, 1

WAITING = """
local LANES, SCHEDULED, EXPIRY = P..'lanes', P..'scheduled', P..'expiry'
local function lane_key(lane) return P..'lane:'..lane end

local function wake()
  call('LPUSH', WAKE, '1')
  call('LTRIM', WAKE, 0, @WAKE_TOKENS@ - 1)
  call('EXPIRE', WAKE, @WAKE_TTL@)
end

-- A due job takes its place in its lane. One that was given back waits for no other lane: its turn has been.
local function line_up(id, lane, due_ms, priority, given_back)
  if not call('ZSCORE', LANES, lane) then
    local first = call('ZRANGE', LANES, 0, 0, 'WITHSCORES')
    local turn = 0
    if first[2] then turn = tonumber(first[2]) + (given_back and 0 or @NEWCOMER@) end
    call('ZADD', LANES, turn, lane)
  end
  call('ZADD', lane_key(lane), due_ms - priority * @PRIORITY_MS@, id)
  wake()
end

local function close_if_empty(lane)
  if call('EXISTS', lane_key(lane)) == 0 then call('ZREM', LANES, lane) end
end

-- Begins to wait, now or again. The times of its record are in microseconds.
local function enqueue(id, lane, created_at, run_at, priority, given_back)
  local due_ms = math.max(tonumber(created_at), tonumber(run_at or 0)) / 1000
  call('ZADD', QUEUE, due_ms, id)
  if run_at and tonumber(run_at) / 1000 > now_ms then  -- of that alone: the clock may be behind created_at by now
    call('ZADD', SCHEDULED, due_ms, id)
  else
    line_up(id, lane, due_ms, tonumber(priority or 0), given_back)
  end
end

local function dequeue(id, lane)
  call('ZREM', QUEUE, id)
  call('ZREM', SCHEDULED, id)
  call('ZREM', EXPIRY, id)
  if call('ZREM', lane_key(lane), id) == 1 then close_if_empty(lane) end
end

-- Jobs whose time has come: a bounded number, for the server does nothing else meanwhile.
local function line_up_scheduled()
  for _, id in ipairs(call('ZRANGEBYSCORE', SCHEDULED, '-inf', now_ms, 'LIMIT', 0, 100)) do
    call('ZREM', SCHEDULED, id)
    local job = call('HMGET', job_key(id), 'status', 'lane', 'run_at', 'priority')
    if job[1] == 'pending' then line_up(id, job[2] or '', tonumber(job[3]) / 1000, tonumber(job[4] or 0)) end
  end
end

-- Up to so many jobs of the lane whose turn it is; several only where no other lane waits. nil: none waits.
local function take_turn(most)
  local first = call('ZRANGE', LANES, 0, 1, 'WITHSCORES')
  local lane, turn = first[1], tonumber(first[2])
  if not lane then return nil end
  local popped = call('ZPOPMIN', lane_key(lane), first[3] and 1 or most)
  call('ZADD', LANES, turn + @TURN@, lane)
  close_if_empty(lane)
  local ids = {}
  for at = 1, #popped, 2 do
    ids[#ids + 1] = popped[at]
    call('ZREM', QUEUE, popped[at])
  end
  return ids
end

-- All lanes as name, turn and jobs in turn: looked up once for many positions, so after the last change of the queue.
local all_lanes
local function lanes_by_turn()
  if not all_lanes then
    all_lanes = {}
    local turns = call('ZRANGE', LANES, 0, -1, 'WITHSCORES')
    for at = 1, #turns, 2 do
      all_lanes[#all_lanes + 1] = {turns[at], tonumber(turns[at + 1]), call('ZCARD', lane_key(turns[at]))}
    end
  end
  return all_lanes
end

-- How many jobs go before this one, if no other comes; false: it is in no lane. Very many lanes are only estimated.
local function position_of(id, lane)
  local rank = call('ZRANK', lane_key(lane), id)
  if not rank then return false end
  local turn = call('ZSCORE', LANES, lane)
  if not turn then return false end  -- the reconciler will give the lane a turn
  local count = call('ZCARD', LANES)
  if count == 1 then return rank end
  if count > @MOST_LANES@ then
    local before = rank * count + call('ZRANK', LANES, lane)
    return math.min(before, call('ZCARD', QUEUE) - call('ZCARD', SCHEDULED) - 1)
  end
  turn = tonumber(turn) + rank * @TURN@
  local position = rank
  for _, other in ipairs(lanes_by_turn()) do
    if other[1] ~= lane then
      local rest = turn - other[2]
      local rounds = math.floor(rest / @TURN@)
      if rest > rounds * @TURN@ or other[1] < lane then rounds = rounds + 1 end
      position = position + math.max(math.min(other[3], rounds), 0)
    end
  end
  return position
end

-- How many jobs were claimed, and refused for want of room, by steps of ten seconds.
local function note_pace(name, count)
  local key = P..'pace:'..int(math.floor(now_ms / 10000))
  call('HINCRBY', key, name, count)
  call('EXPIRE', key, @PACE_TTL@)
end

-- Claims per second of the last minute, 0 if there were none, and refusals of the last ten to twenty seconds.
local function pace()
  local newest = math.floor(now_ms / 10000)
  local claimed, refused, since = 0, 0, nil
  for bucket = newest - 6, newest do
    local noted = call('HMGET', P..'pace:'..int(bucket), 'claimed', 'refused')
    if noted[1] then
      claimed = claimed + tonumber(noted[1])
      since = since or bucket * 10000
    end
    if noted[2] and bucket >= newest - 1 then refused = refused + tonumber(noted[2]) end
  end
  if claimed == 0 then return 0, refused end
  return claimed / math.max((now_ms - since) / 1000, 1), refused
end
""".replace("@TURN@", str(_TURN)).replace("@NEWCOMER@", str(_NEWCOMER))
