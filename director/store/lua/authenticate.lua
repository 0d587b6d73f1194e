-- Say which access token was presented, and whether there is any; note the use.
--
-- ARGV[5] SHA-256 of what was presented, hex, or ''  [6] ms after which a use is noted again
--
-- Reply: 1 when there is a token, else 0; of a known one also 1 when it has expired, else 0, then as in tokens.lua

local any = redis.call('EXISTS', prefix .. 'tokens.known')
local id = redis.call('HGET', prefix .. 'tokens.known', ARGV[5])
if not id then return { any } end
local key = prefix .. 'token:' .. id
local created, expires, used, facts = unpack(redis.call('HMGET', key, 'c', 'e', 'u', 'j'))
local expired = expires ~= '' and tonumber(expires) <= now
if not expired and (used == '' or now - tonumber(used) >= tonumber(ARGV[6])) then
  local noted = string.format('%.0f', now)
  -- A server without room for it, or one that only reads, still says who may look.
  if type(redis.pcall('HSET', key, 'u', noted)) == 'number' then used = noted end
end
return { any, expired and 1 or 0, id, created, expires, used, facts }
