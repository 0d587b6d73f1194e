-- Read all of a run.
--
-- KEYS[1] run hash   KEYS[2] data hash
--
-- Reply: {run, data, plan as JSON}, or false when there is no such run.

local fields = redis.call('HGETALL', KEYS[1])
if #fields == 0 then return false end
local digest = redis.call('HGET', KEYS[1], 'p')
return { fields, redis.call('HGETALL', KEYS[2]), redis.call('HGET', prefix .. 'plan:' .. digest, 'json') }
