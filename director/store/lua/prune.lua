-- Remove finished runs that are not kept any more, with data and index entries; the oldest go first.
--
-- ARGV[5] runs to remove at most
-- ARGV[6…] triples: workflow, '' for every other; ms that its runs are kept, '' for ever; runs that are kept, '' all
--
-- Reply: how many runs have gone. Four times as many are looked at: those that cannot go are few, and the oldest.

local limit, keep = tonumber(ARGV[5]), {}
for i = 6, #ARGV, 3 do keep[ARGV[i]] = { age = tonumber(ARGV[i + 1]), runs = tonumber(ARGV[i + 2]) } end

-- When a run ended, or nil while anything is underway in it: hooks outlive their run's end.
local function ended_at(id)
  local run = open(id)
  if not run then return 0 end
  if run.s == 'q' or run.s == 'r' then return nil end
  for launch = 1, #run.hooks do
    local text = redis.call('HGET', run.key, run.nodes + launch - 1)
    if text and string.find(text, '^[qry]') then return nil end
  end
  return tonumber(redis.call('HGET', run.key, 'e'))
end

local gone = 0
for _, field in ipairs(redis.call('HKEYS', prefix .. 'stats')) do
  local workflow = string.match(field, '^active:(.*)$')
  local rule = workflow and (keep[workflow] or keep[''])
  if rule and gone < limit then
    local index = prefix .. 'runs:' .. workflow
    local surplus = rule.runs and redis.call('ZCARD', index) - rule.runs or 0
    local too_old = rule.age and now - rule.age or -1
    local oldest = redis.call('ZRANGE', index, 0, limit * 4 - 1, 'WITHSCORES')
    for i = 1, #oldest, 2 do
      local id, created = oldest[i], tonumber(oldest[i + 1])
      local is_surplus = i < surplus * 2
      if gone == limit or not (is_surplus or created <= too_old) then break end
      local ended = ended_at(id)
      if ended and (is_surplus or ended <= too_old) then
        redis.call('UNLINK', prefix .. 'run:' .. id, prefix .. 'data:' .. id)
        for _, name in ipairs({ 'runs', 'runs:' .. workflow, 'runs.failed' }) do
          redis.call('ZREM', prefix .. name, id)
        end
        gone = gone + 1
      end
    end
  end
end
return gone
