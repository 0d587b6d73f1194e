-- A worker says that it is alive and what its tasks' decorators say.
--
-- ARGV[5] worker  [6] queues that it consumes, a line each  [7…] pairs: task, options as JSON
--
-- Reply: every list that a plan names

local old = string.format('%.0f', now - 60000)
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'workers', '-inf', old, 'LIMIT', 0, 100)) do
  redis.call('HDEL', prefix .. 'consumes', worker)
  redis.call('ZREM', prefix .. 'workers', worker)
end
redis.call('ZADD', prefix .. 'workers', string.format('%.0f', now), ARGV[5])
redis.call('HSET', prefix .. 'consumes', ARGV[5], ARGV[6])
for first = 7, #ARGV, 1000 do
  redis.call('HSET', prefix .. 'tasks', unpack(ARGV, first, math.min(first + 999, #ARGV)))
end
return redis.call('SMEMBERS', prefix .. 'queues')
