-- Read counts, and the newest run of each workflow.
--
-- ARGV[5…] workflows
--
-- Reply: {queued, oldest queued in ms or -1, workers, status, last run, last success, active, …} (four a workflow)

local queued, oldest = 0, -1
for _, list in ipairs(redis.call('SMEMBERS', prefix .. 'queues')) do
  local key = prefix .. 'queued:' .. list
  queued = queued + redis.call('ZCARD', key)
  -- Sorted by when to look at them again: what was sent again waits longer, so the oldest is at either end.
  local ends = redis.call('ZRANGE', key, 0, 0)
  ends[2] = redis.call('ZRANGE', key, -1, -1)[1]
  for _, member in ipairs(ends) do
    local id, number = split(member)
    local run = open(id, number)
    local t = run and run.text and parse(run, run.text)
    if t and t.queued then oldest = math.max(oldest, now - t.queued) end
  end
end
local workers = redis.call('ZCOUNT', prefix .. 'workers', string.format('%.0f', now - 30000), '+inf')
local reply = { queued, oldest, workers }
for i = 5, #ARGV do
  local last = redis.call('ZREVRANGE', prefix .. 'runs:' .. ARGV[i], 0, 0)[1]
  local stats = redis.call('HMGET', prefix .. 'stats', 'ok:' .. ARGV[i], 'active:' .. ARGV[i])
  reply[#reply + 1] = last and redis.call('HGET', prefix .. 'run:' .. last, 's') or ''
  reply[#reply + 1] = last or ''
  reply[#reply + 1] = stats[1] or ''
  reply[#reply + 1] = stats[2] or '0'
end
return reply
