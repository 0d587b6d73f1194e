-- A worker says that it is alive and what its tasks' decorators say.
--
-- ARGV[5] worker  [6…] pairs: task, options as JSON
--
-- Reply: every list that a plan names

redis.call('ZREMRANGEBYSCORE', prefix .. 'workers', '-inf', string.format('%.0f', now - 60000))
redis.call('ZADD', prefix .. 'workers', string.format('%.0f', now), ARGV[5])
for first = 6, #ARGV, 1000 do
  redis.call('HSET', prefix .. 'tasks', unpack(ARGV, first, math.min(first + 999, #ARGV)))
end
return redis.call('SMEMBERS', prefix .. 'queues')
