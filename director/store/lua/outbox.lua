-- Read queued task runs, for a broker that scripts cannot write to.
--
-- Reply: flat fives run id, number, queued at in ms, hook kind, plan; at most 1,000 of each queue.

local reply = {}
for _, list in ipairs(redis.call('SMEMBERS', prefix .. 'queues')) do
  for _, member in ipairs(redis.call('ZRANGE', prefix .. 'queued:' .. list, 0, 999)) do
    local id, number = split(member)
    local run = open(id, number)
    local t = run and run.text and parse(run, run.text)
    if t and t.s == 'q' then
      local _, kind = plan_name(run, number)
      for _, value in ipairs({ id, tonumber(number), string.format('%.0f', t.queued), kind, run.plan }) do
        reply[#reply + 1] = value
      end
    end
  end
end
return reply
