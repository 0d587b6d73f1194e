-- Keep a new access token.
--
-- ARGV[5] id  [6] its SHA-256, hex  [7] ms until it expires, or '' for never  [8] name, scope, workflows as JSON
--
-- Reply: created and expires (ms, '' for never); the first answer when it is there already. 0: another token has
-- the id.

local id, digest, lasts, facts = ARGV[5], ARGV[6], tonumber(ARGV[7]), ARGV[8]
local key = prefix .. 'token:' .. id
local known = redis.call('HMGET', key, 'd', 'c', 'e')
if known[1] then return known[1] == digest and { known[2], known[3] } or 0 end
local created = string.format('%.0f', now)
local expires = lasts and string.format('%.0f', now + lasts) or ''
redis.call('HSET', key, 'd', digest, 'c', created, 'e', expires, 'u', '', 'j', facts)
redis.call('HSET', prefix .. 'tokens.known', digest, id)
return { created, expires }
