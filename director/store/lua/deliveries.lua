-- List deliveries, newest first.
--
-- ARGV[5] source or ''  [6] verdict or ''  [7] id that the listing goes on after, or ''  [8] limit
--
-- Reply: {cursor or '', JSON, …}. Ids are UUIDv7, so their order is that of the time.

local source, verdict, after, limit = ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[8])
local ids = redis.call('ZUNION', 2, prefix .. 'deliveries', prefix .. 'deliveries.refused')
local found, last = { '' }, ''
for i = #ids, 1, -1 do
  local id = ids[i]
  if after == '' or id < after then
    local v = redis.call('HMGET', prefix .. 'delivery:' .. id, 's', 'v', 'd')
    if v[3] and (source == '' or v[1] == source) and (verdict == '' or v[2] == verdict) then
      if #found > limit then
        found[1] = last
        break
      end
      found[#found + 1], last = v[3], id
    end
  end
end
return found
