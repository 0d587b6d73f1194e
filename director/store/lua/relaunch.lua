-- Take a failed or canceled run back to queued.
--
-- KEYS[1] run hash   KEYS[2] plan hash to go on with   KEYS[3] dedupe string, or the run hash again for none
-- ARGV[5] run id  [6] launch that was looked at  [7] token  [8] plan digest  [9] dedupe seconds, 0 for none
-- ARGV[10…] pairs: node to run again, parents it waits for
--
-- Reply: {1, launch} done (or was, by this token)   {0, status, launch} not possible   {-2} no such run
--        {2} the dedupe key is there   {-1} the plan is not there: store it and call again

local id, launch, token, digest, ttl = ARGV[5], tonumber(ARGV[6]), ARGV[7], ARGV[8], tonumber(ARGV[9])

local run = open(id)
if not run then return { -2 } end
if redis.call('HGET', KEYS[1], 'k') == token then return { 1, run.launch } end
if ttl > 0 and redis.call('EXISTS', KEYS[3]) == 1 then return { 2 } end
if (run.s ~= 'f' and run.s ~= 'c') or run.launch ~= launch then return { 0, run.s, run.launch } end
if redis.call('EXISTS', KEYS[2]) == 0 then return { -1 } end

run.plan, run.launch = digest, launch + 1
local data = prefix .. 'data:' .. id
local roots, reset = {}, {}
for i = 10, #ARGV, 2 do
  local number, waits = ARGV[i], tonumber(ARGV[i + 1])
  local node = get_node(run, number)
  local t = parse(run, redis.call('HGET', KEYS[1], number), node)
  if node.task ~= '' then
    if t.s == 's' then run.succeeded = run.succeeded - 1 end
    if t.s == 'f' then run.failed = run.failed - 1 end
    redis.call('HDEL', data, 'r' .. number, 'e' .. number)
  end
  reset[number] = true
  t = { s = 'p', attempts = t.attempts, retries = 0, losses = 0, waits = waits, holder = '-', token = '-' }
  if waits == 0 then roots[#roots + 1] = { number, t, node } else set_task(run, number, t) end
end
redis.call('HDEL', KEYS[1], 'b', 'e')
if run.first_failed and reset[run.first_failed] then
  redis.call('HDEL', KEYS[1], 'x')
  if run.failed > 0 then
    for number = 0, run.total - 1 do
      local text = redis.call('HGET', KEYS[1], number)
      if text and not reset[tostring(number)] and string.sub(text, 1, 1) == 'f' then
        set(run, 'x', number)
        break
      end
    end
  end
end
for _, root in ipairs(roots) do queue(run, root[1], root[2], root[3]) end
set(run, 's', 'q')
set(run, 'l', run.launch)
set(run, 'p', digest)
set(run, 'k', token)
set(run, 'o', run.succeeded)
set(run, 'f', run.failed)
set(run, 'a', #roots)
save(run)
redis.call('ZREM', prefix .. 'runs.failed', id)
redis.call('ZADD', prefix .. 'runs.active', run.created, id)
redis.call('HINCRBY', prefix .. 'stats', 'active:' .. run.workflow, 1)
if ttl > 0 then redis.call('SET', KEYS[3], id, 'EX', ttl) end
return { 1, run.launch }
