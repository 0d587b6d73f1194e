-- Write new schedules down; one that is there stays as it is.
--
-- ARGV[5…] of each: schedule, due time in ms, count of the words that follow, fields and values of its job hash

local i = 5
while i <= #ARGV do
  local id, due, words = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  if not redis.call('ZSCORE', timetable, id) then
    if words > 0 then redis.call('HSET', prefix .. 'rq:job:' .. id, unpack(ARGV, i + 3, i + 2 + words)) end
    redis.call('ZADD', prefix .. 'schedules', string.format('%.0f', now), id)
    redis.call('ZADD', timetable, seconds(due), id)
  end
  i = i + 3 + words
end
return 1
