-- Read who looks after the runs.
--
-- Reply: {now, when a scheduler last looked or false, lists that plans name, worker, its queues or false, …}

local reply = { string.format('%.0f', now), redis.call('HGET', prefix .. 'sweep', 'fires'),
  redis.call('SMEMBERS', prefix .. 'queues') }
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'workers', string.format('%.0f', now - 30000), '+inf')) do
  reply[#reply + 1] = worker
  reply[#reply + 1] = redis.call('HGET', prefix .. 'consumes', worker)
end
return reply
