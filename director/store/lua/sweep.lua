-- One pass over what may be stuck: ended leases, waits that are over, lost messages.
--
-- ARGV[5] task runs to change at most, of each kind
-- ARGV[6] ms without a sweep after which the store is taken to have been away  [7] ms that leases then get
-- ARGV[8] '1' when whoever asks fires schedules  [9] ms without such a one after which due times count as missed
-- ARGV[10] ms after which a schedule that nobody has refreshed is forgotten
-- ARGV[11] publisher that asks, '' for none  [12…] queues of which its broker holds no message
--
-- Reply: {lost, failed, ended, released, resent, busy, due, next, now, missed, unsure}; lists of RUN:NUMBER (ended:
-- of runs that failed), 1 when anything is still underway, pairs of schedule and due time, then ms: the next due time of
-- a schedule or a waiting task run or -1, the clock, until when due times count as missed (-1 at the first
-- pass ever); the queues of which a publisher should ask its broker.

local LONGEST_WAIT_MS, PUBLISHER_MS = 600000, 10000
local limit, outage_ms, grace_ms = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local leases, delayed = prefix .. 'leases', prefix .. 'delayed'
local lost, failed, released, resent, unsure = {}, {}, {}, {}, {}
local drained = {}
for i = 12, #ARGV do drained[ARGV[i]] = true end

local function due(key, most)
  return redis.call('ZRANGEBYSCORE', key, '-inf', string.format('%.0f', most), 'LIMIT', 0, limit)
end

local function look(member)
  local id, number = split(member)
  local run = open(id, number)
  return run, number, run and run.text and parse(run, run.text)
end

local seen = redis.call('HMGET', prefix .. 'sweep', 'at', 'grace')
local grace = tonumber(seen[2]) or 0
if seen[1] and now - tonumber(seen[1]) > outage_ms then
  grace = now + grace_ms
  redis.call('HSET', prefix .. 'sweep', 'grace', string.format('%.0f', grace))
end
redis.call('HSET', prefix .. 'sweep', 'at', string.format('%.0f', now))

if now >= grace then
  for _, member in ipairs(due(leases, now)) do
    local run, number, t = look(member)
    if not t or t.s ~= 'r' then
      redis.call('ZREM', leases, member)
    else
      take_back(run, number, t, get_node(run, number), true, lost, failed)
      save(run)
    end
  end
end

for _, member in ipairs(due(delayed, now)) do
  local run, number, t = look(member)
  redis.call('ZREM', delayed, member)
  if t and t.s == 'y' then
    queue(run, number, t, get_node(run, number))
    save(run)
    released[#released + 1] = member
  end
end

-- What a publisher held when it died is not confirmed.
if not pushes then
  local publishers = prefix .. 'publishers'
  if ARGV[11] ~= '' then redis.call('ZADD', publishers, string.format('%.0f', now), ARGV[11]) end
  for _, dead in ipairs(due(publishers, now - PUBLISHER_MS)) do
    repeat until not redis.call('LMOVE', prefix .. 'outbox:' .. dead, prefix .. 'outbox', 'LEFT', 'RIGHT')
    redis.call('ZREM', publishers, dead)
  end
end

-- A message is lost when its own list holds only newer ones. The list is in the order of sending, so
-- what was sent before the oldest message there, and is still queued, is in no list. Of another broker's
-- queue we only hear that it is empty.
local busy = redis.call('ZCARD', leases) + redis.call('ZCARD', delayed)
for _, list in ipairs(redis.call('SMEMBERS', prefix .. 'queues')) do
  local queued = prefix .. 'queued:' .. list
  local count = redis.call('ZCARD', queued)
  local queue = string.match(list, '^[^\6]*')
  busy = busy + count
  if count > 0 and not pushes and not drained[queue] then
    if #due(queued, now) > 0 then unsure[#unsure + 1] = queue end
  elseif count > 0 then
    local most = now
    local tail = redis.call('LRANGE', prefix .. (pushes and 'mq:' .. list or 'outbox'), -5, -1)
    if #tail > 0 then
      most = -1
      for i = #tail, 1, -1 do
        local at = string.match(tail[i], '"director": "%S+ (%d+) %d"')
        if at then
          most = math.min(now, tonumber(at) + RESEND_MS - 1)
          break
        end
      end
    end
    for _, member in ipairs(most > 0 and due(queued, most) or {}) do
      local run, number, t = look(member)
      if not t or t.s ~= 'q' then
        redis.call('ZREM', queued, member)
      else
        push(run, number, get_node(run, number))
        local wait = math.min(LONGEST_WAIT_MS, now - t.queued + RESEND_MS)
        redis.call('ZADD', queued, now + wait, member)
        resent[#resent + 1] = member
      end
    end
  end
end

local coming, missed, next_due = {}, 0, -1
if ARGV[8] == '1' then
  local clock = string.format('%.0f', now)
  local known = redis.call('HMGET', prefix .. 'sweep', 'fires', 'missed')
  missed = known[1] and (tonumber(known[2]) or 0) or -1
  if known[1] and now - tonumber(known[1]) > tonumber(ARGV[9]) then
    missed = now
    redis.call('HSET', prefix .. 'sweep', 'missed', clock)
  end
  redis.call('HSET', prefix .. 'sweep', 'fires', clock)
  local nobodys = now - tonumber(ARGV[10])
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'schedules', '-inf', nobodys, 'LIMIT', 0, limit)) do
    redis.call('ZREM', timetable, id)
    redis.call('ZREM', prefix .. 'schedules', id)
    redis.call('DEL', prefix .. 'schedule:' .. id, prefix .. 'rq:job:' .. id)
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', timetable, '-inf', seconds(now), 'LIMIT', 0, 1000)) do
    coming[#coming + 1] = id
    coming[#coming + 1] = due_of(id)
  end
  local later = redis.call('ZRANGEBYSCORE', timetable, '(' .. seconds(now), '+inf', 'LIMIT', 0, 1)[1]
  local waiting = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2]
  next_due = math.min(later and due_of(later) or math.huge, tonumber(waiting) or math.huge)
  if next_due == math.huge then next_due = -1 end
end
return { lost, failed, ended, released, resent, busy > 0 and 1 or 0, coming, next_due, now, missed, unsure }
