-- Say which access token was presented, and whether any counts; note the use.
--
-- ARGV[5] SHA-256 of what was presented, hex, or ''  [6] ms after which a use is noted again
--
-- Reply: 1 when a token is live, else 0; of a known one also 1 when it has expired, else 0, then as in tokens.lua

local ms = string.format('%.0f', now)
local live = redis.call('ZCOUNT', prefix .. 'tokens', '(' .. ms, 'inf') > 0 and 1 or 0
local id = redis.call('HGET', prefix .. 'tokens.known', ARGV[5])
if not id then return { live } end
local key = prefix .. 'token:' .. id
local created, expires, used, facts = unpack(redis.call('HMGET', key, 'c', 'e', 'u', 'j'))
local expired = expires ~= '' and tonumber(expires) <= now
if not expired and (used == '' or now - tonumber(used) >= tonumber(ARGV[6])) then
  used = ms
  redis.call('HSET', key, 'u', used)
end
return { live, expired and 1 or 0, id, created, expires, used, facts }
