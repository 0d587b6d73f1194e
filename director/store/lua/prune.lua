-- Remove finished runs that are not kept any more, with data and index entries; what ended longest ago goes first.
--
-- ARGV[5] runs to remove at most
-- ARGV[6…] triples: workflow, '' for every other; ms that its runs are kept, '' for ever; runs that are kept, '' all
--
-- Reply: how many runs have gone.

local left, keep = tonumber(ARGV[5]), {}
for i = 6, #ARGV, 3 do keep[ARGV[i]] = { age = tonumber(ARGV[i + 1]), runs = tonumber(ARGV[i + 2]) } end

local gone = 0
for _, field in ipairs(redis.call('HKEYS', prefix .. 'stats')) do
  local workflow = string.match(field, '^active:(.*)$')
  local rule = workflow and (keep[workflow] or keep[''])
  if rule and left > 0 then
    local done, count = prefix .. 'done:' .. workflow, 0
    if rule.age then count = redis.call('ZCOUNT', done, '-inf', string.format('%.0f', now - rule.age)) end
    if rule.runs then count = math.max(count, redis.call('ZCARD', done) - rule.runs) end
    count = math.min(count, left)
    left = left - count
    for _, id in ipairs(count > 0 and redis.call('ZRANGE', done, 0, count - 1) or {}) do
      -- Never one that is active, whoever has written the index.
      local s = redis.call('HGET', prefix .. 'run:' .. id, 's')
      if s ~= 'q' and s ~= 'r' then
        redis.call('UNLINK', prefix .. 'run:' .. id, prefix .. 'data:' .. id)
        for _, index in ipairs({ 'runs', 'runs:' .. workflow, 'runs.failed' }) do
          redis.call('ZREM', prefix .. index, id)
        end
        gone = gone + 1
      end
      redis.call('ZREM', done, id)
    end
  end
end
return gone
