-- Read runs, newest first.
--
-- KEYS[1] the zset to walk
-- ARGV[5] status letter or ''  [6] workflow or ''  [7] created at or after, ms or '-inf'
-- ARGV[8] created before, '(ms' or '+inf'  [9] start after this run or ''  [10] runs to return at most
--
-- Reply: {next, id, header, data, id, header, data, …}; next is '' at the end. Looks at 2,000 runs at most, so a
-- page may be short while there is a next one.

local HEADER = { 'w', 's', 'l', 'c', 'b', 'e', 'n', 'o', 'f', 'x', 'p' }
local status, workflow, low, high, after, limit = ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9], tonumber(ARGV[10])

local skip = 0
if after ~= '' then
  local score = redis.call('ZSCORE', KEYS[1], after)
  -- A cursor's run may have gone; its id is a UUIDv7 and holds the time of its creation.
  score = score and tonumber(score) or tonumber(string.sub(after, 1, 8) .. string.sub(after, 10, 13), 16)
  if not score then return { '' } end
  local bound = string.format('%.0f', score)
  if high == '+inf' or score < tonumber(string.sub(high, 2)) then
    high = bound
    for _, id in ipairs(redis.call('ZREVRANGEBYSCORE', KEYS[1], bound, bound)) do
      if id >= after then skip = skip + 1 end
    end
  end
end

local reply, looked, last = { '' }, 0, ''
while looked < 2000 do
  local ids = redis.call('ZREVRANGEBYSCORE', KEYS[1], high, low, 'LIMIT', skip + looked, 100)
  for _, id in ipairs(ids) do
    looked = looked + 1
    local header = redis.call('HMGET', prefix .. 'run:' .. id, unpack(HEADER))
    if header[1] and (status == '' or header[2] == status) and (workflow == '' or header[1] == workflow) then
      if #reply > limit * 3 then
        reply[1] = last
        return reply
      end
      reply[#reply + 1] = id
      reply[#reply + 1] = header
      local data = redis.call('HMGET', prefix .. 'data:' .. id, 't', 'c', 'z', 'e' .. (header[10] or '-'))
      local node = header[10] and redis.call('HGET', prefix .. 'plan:' .. header[11], header[10])
      data[5] = node and string.match(node, '([^\n]*)$')
      reply[#reply + 1] = data
    end
    last = id
  end
  if #ids < 100 then return reply end
end
reply[1] = last
return reply
