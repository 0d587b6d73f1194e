-- A worker does not know a task run's task: a loss, looked at again later.
--
-- KEYS[1] run hash
-- ARGV[5] run id  [6] number  [7] token of a running one, '' for a queued one  [8] error, JSON
--
-- Reply: {waiting, failed, ended} as in sweep; all empty when it is neither queued nor held by the token.

local id, number, token, body = ARGV[5], ARGV[6], ARGV[7], ARGV[8]

local run = open(id, number)
if not run or not run.text then return { {}, {}, {} } end
local t = parse(run, run.text)
if t.s ~= 'q' and not (t.s == 'r' and t.token == token) then return { {}, {}, {} } end
local node = get_node(run, number)
redis.call('ZREM', prefix .. 'queued:' .. node.list, ref(run, number))
t.losses, t.token = t.losses + 1, '-'
local waiting, failed = {}, {}
if t.losses >= max_lost then
  complete(run, number, t, node, 'f', body)
  failed[1] = ref(run, number)
else
  delay(run, number, t, now + UNKNOWN_MS)
  waiting[1] = ref(run, number)
end
save(run)
return { waiting, failed, ended }
