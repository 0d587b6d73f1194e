-- Forget an access token.
--
-- ARGV[5] id
--
-- Reply: 1, or 0 when there is none.

local key = prefix .. 'token:' .. ARGV[5]
local digest = redis.call('HGET', key, 'd')
if not digest then return 0 end
redis.call('HDEL', prefix .. 'tokens.known', digest)
redis.call('DEL', key)
return 1
