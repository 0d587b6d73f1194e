-- Read what is known of schedules.
--
-- ARGV[5…] schedules
--
-- Reply: flat fives next due in ms or -1, last due in ms, last run, skipped, last skip (false where there is none).

local reply = {}
for i = 5, #ARGV do
  local known = redis.call('HMGET', prefix .. 'schedule:' .. ARGV[i], 'd', 'r', 'n', 's')
  reply[#reply + 1] = due_of(ARGV[i]) or -1
  for field = 1, 4 do reply[#reply + 1] = known[field] end
end
return reply
