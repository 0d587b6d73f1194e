-- Say that schedules are somebody's.
--
-- ARGV[5…] schedules
--
-- Reply: the clock in ms, then those that the timetable does not have.

local missing = { now }
for i = 5, #ARGV do
  if redis.call('ZSCORE', timetable, ARGV[i]) then
    redis.call('ZADD', prefix .. 'schedules', string.format('%.0f', now), ARGV[i])
  else
    missing[#missing + 1] = ARGV[i]
  end
end
return missing
