-- Read all access tokens.
--
-- Reply, flat: id, created, expires, last used (ms, '' for none), name, scope, workflows as JSON

local found = {}
for _, id in ipairs(redis.call('HVALS', prefix .. 'tokens.known')) do
  found[#found + 1] = id
  for _, value in ipairs(redis.call('HMGET', prefix .. 'token:' .. id, 'c', 'e', 'u', 'j')) do
    found[#found + 1] = value
  end
end
return found
