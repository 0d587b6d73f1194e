-- What a holder has leases for.
--
-- ARGV[5] holder, or a boot's prefix ending in '.'
--
-- Reply: flat triples run id, number, token. Reads all leases: as many as task runs execute at once.

local holder = ARGV[5]
local held = {}
for _, member in ipairs(redis.call('ZRANGE', prefix .. 'leases', 0, 9999)) do
  local id, number = split(member)
  local run = open(id, number)
  local t = run and run.text and parse(run, run.text)
  if t and t.s == 'r' and (t.holder == holder
      or (string.sub(holder, -1) == '.' and string.sub(t.holder, 1, #holder) == holder)) then
    held[#held + 1] = id
    held[#held + 1] = tonumber(number)
    held[#held + 1] = t.token
  end
end
return held
