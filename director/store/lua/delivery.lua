-- Find one delivery.
--
-- ARGV[5] its id, or its sender's
--
-- Reply: {JSON, body or false}, or false

local name = ARGV[5]
local function read(id) return redis.call('HMGET', prefix .. 'delivery:' .. id, 'd', 'b') end
local exact = read(name)
if exact[1] then return exact end
for _, index in ipairs({ 'deliveries', 'deliveries.refused' }) do
  for _, id in ipairs(redis.call('ZREVRANGE', prefix .. index, 0, -1)) do
    if redis.call('HGET', prefix .. 'delivery:' .. id, 'k') == name then return read(id) end
  end
end
return false
