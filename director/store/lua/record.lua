-- Write deliveries down; the oldest go.
--
-- ARGV[5] verified ones to keep  [6] refused ones to keep
-- ARGV[7…] groups of 7: id, '1' verified or '0', source, verdict, the sender's id, JSON, body or ''
--
-- Reply: how many were new

local keep, new = { ['1'] = tonumber(ARGV[5]), ['0'] = tonumber(ARGV[6]) }, 0
local index = { ['1'] = prefix .. 'deliveries', ['0'] = prefix .. 'deliveries.refused' }
for i = 7, #ARGV, 7 do
  local id, verified = ARGV[i], ARGV[i + 1]
  if redis.call('ZADD', index[verified], 'NX', 0, id) == 1 then
    new = new + 1
    redis.call('HSET', prefix .. 'delivery:' .. id, 's', ARGV[i + 2], 'v', ARGV[i + 3], 'k', ARGV[i + 4],
      'd', ARGV[i + 5])
    if ARGV[i + 6] ~= '' then redis.call('HSET', prefix .. 'delivery:' .. id, 'b', ARGV[i + 6]) end
  end
end
for verified, key in pairs(index) do
  local surplus = redis.call('ZCARD', key) - keep[verified]
  if surplus > 0 then
    local oldest = redis.call('ZPOPMIN', key, surplus)
    for j = 1, #oldest, 2 do redis.call('UNLINK', prefix .. 'delivery:' .. oldest[j]) end
  end
end
return new
