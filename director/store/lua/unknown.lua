-- A worker does not know a task run's task: a loss, looked at again later.
--
-- KEYS[1] run hash
-- ARGV[5] run id  [6] number  [7] token of a running one, '' for a queued one  [8] error, JSON
--
-- Reply: the task run's status letter, '' when there is none.

local id, number, token, body = ARGV[5], ARGV[6], ARGV[7], ARGV[8]

local run = open(id, number)
if not run or not run.text then return '' end
local t = parse(run, run.text)
if t.s ~= 'q' and not (t.s == 'r' and t.token == token) then return t.s end
local node = get_node(run, number)
redis.call('ZREM', prefix .. 'queued:' .. node.list, ref(run, number))
t.losses, t.token = t.losses + 1, '-'
if t.losses >= max_lost then
  complete(run, number, t, node, 'f', body)
else
  delay(run, number, t, now + UNKNOWN_MS)
end
save(run)
return t.s
