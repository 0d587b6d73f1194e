-- End a run as canceled: leases void, nothing queued, no hook.
--
-- KEYS[1] run hash
-- ARGV[5] run id  [6] token of this call
--
-- Reply: '' canceled (or was, by this token)   status letter of a run that had ended   false no such run

local id, token = ARGV[5], ARGV[6]

local run = open(id)
if not run then return false end
if run.s == 'c' and redis.call('HGET', KEYS[1], 'k') == token then return '' end
if run.s ~= 'q' and run.s ~= 'r' then return run.s end

local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local number = tonumber(all[i])
  if number and number < run.nodes then
    local t = parse(run, all[i + 1])
    if t.s == 'q' or t.s == 'r' or t.s == 'y' then
      local member = ref(run, all[i])
      redis.call('ZREM', prefix .. 'leases', member)
      redis.call('ZREM', prefix .. 'delayed', member)
      redis.call('ZREM', prefix .. 'queued:' .. get_node(run, all[i]).list, member)
      t.s, t.token, t.ended = 'c', '-', now
      set_task(run, all[i], t)
    end
  end
end
set(run, 's', 'c')
set(run, 'e', string.format('%.0f', now))
set(run, 'h', run.hooks .. '-')
set(run, 'k', token)
save(run)
redis.call('HDEL', KEYS[1], 'a')
redis.call('ZREM', prefix .. 'runs.active', id)
redis.call('HINCRBY', prefix .. 'stats', 'active:' .. run.workflow, -1)
return ''
