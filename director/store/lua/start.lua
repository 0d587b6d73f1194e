-- Write a run, its index entries, its dedupe key and its first messages.
--
-- KEYS[1] run hash      KEYS[2] data hash     KEYS[3] plan hash
-- KEYS[4] runs zset     KEYS[5] runs of the workflow   KEYS[6] active runs
-- KEYS[7] dedupe string, or the run hash again when there is none
-- ARGV[5] run id  [6] workflow  [7] plan digest  [8] task runs  [9] nodes
-- ARGV[10] payload  [11] trigger  [12] comment  [13] relaunch_of
-- ARGV[14] dedupe seconds, 0 for none  [15] fingerprint
-- ARGV[16] schedule, '' for none  [17] its due time that is written down  [18] the one that fires  [19] next, all ms
-- ARGV[20] how many are skipped  [21] why  [22] '1' to start nothing while its last run is going on
-- ARGV[23] n, then n roots; n, then n kept; n, then n pairs number, waits
--
-- Reply: {1, id} started (or was, under this id)   {2, id} duplicate   {3, id} duplicate, other fingerprint
--        {4, id} the schedule had gone on already   {5, id} its last run is going on
--        {-2, id} the run of kept results is not there   {-1} the plan is not there: store it and call again

local id, workflow, digest, total, nodes = ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[8]), ARGV[9]
local payload, trigger, comment, relaunch_of = ARGV[10], ARGV[11], ARGV[12], ARGV[13]
local ttl, fingerprint = tonumber(ARGV[14]), ARGV[15]
local schedule, was, due, next_due = ARGV[16], tonumber(ARGV[17]), tonumber(ARGV[18]), tonumber(ARGV[19])
local skipped, reason, alone = tonumber(ARGV[20]), ARGV[21], ARGV[22] == '1'
local argument = 23
local function numbers(width)
  local list = {}
  local count = tonumber(ARGV[argument]) * width
  for i = 1, count do list[i] = ARGV[argument + i] end
  argument = argument + count + 1
  return list
end
local roots, kept, waits = numbers(1), numbers(1), numbers(2)

if redis.call('EXISTS', KEYS[1]) == 1 then return { 1, id } end
if ttl > 0 then
  local seen = redis.call('GET', KEYS[7])
  if seen then
    local first, mark = string.match(seen, '^(%S+) ?(.*)$')
    return { mark == fingerprint and 2 or 3, first }
  end
end
if #kept > 0 and redis.call('EXISTS', prefix .. 'run:' .. relaunch_of) == 0 then return { -2, relaunch_of } end
local record = prefix .. 'schedule:' .. schedule
if schedule ~= '' then
  if due_of(schedule) ~= was then return { 4, id } end
  local last = alone and redis.call('HGET', record, 'r')
  local status = last and redis.call('HGET', prefix .. 'run:' .. last, 's')
  if status == 'q' or status == 'r' then
    go_on(schedule, was, next_due, skipped + 1, 'its last run was going on: ' .. last)
    return { 5, last }
  end
end
if redis.call('EXISTS', KEYS[3]) == 0 then return { -1 } end
if schedule ~= '' then
  go_on(schedule, was, next_due, skipped, reason)
  redis.call('HSET', record, 'r', id, 'd', string.format('%.0f', due))
end

local run = { id = id, key = KEYS[1], s = 'q', launch = 1, created = now, plan = digest, total = total,
  nodes = tonumber(nodes), hooks = '', workflow = workflow, active = #roots, succeeded = 0, fields = {} }

local data = {}
if payload ~= '{}' then data[#data + 1] = 'p' data[#data + 1] = payload end
if trigger ~= '' then data[#data + 1] = 't' data[#data + 1] = trigger end
if comment ~= '' then data[#data + 1] = 'c' data[#data + 1] = comment end
if relaunch_of ~= '' then data[#data + 1] = 'z' data[#data + 1] = relaunch_of end
for _, number in ipairs(kept) do
  if tonumber(number) < total then run.succeeded = run.succeeded + 1 end
  set_task(run, number, { s = 's', attempts = 0, retries = 0, losses = 0, waits = 0, ended = now, holder = '-',
    token = '-' })
  local result = redis.call('HGET', prefix .. 'data:' .. relaunch_of, 'r' .. number)
  if result then data[#data + 1] = 'r' .. number data[#data + 1] = result end
end
for first = 1, #data, 1000 do
  redis.call('HSET', KEYS[2], unpack(data, first, math.min(first + 999, #data)))
end
for i = 1, #waits, 2 do
  set_task(run, waits[i], { s = 'p', attempts = 0, retries = 0, losses = 0, waits = waits[i + 1], holder = '-',
    token = '-' })
end
local clock = string.format('%.0f', now)
redis.call('HSET', KEYS[1], 'w', workflow, 's', 'q', 'c', clock, 'p', digest, 'n', total, 'j', nodes,
  'o', run.succeeded, 'a', #roots)
redis.call('ZADD', KEYS[4], clock, id)
redis.call('ZADD', KEYS[5], clock, id)
redis.call('ZADD', KEYS[6], clock, id)
redis.call('HINCRBY', prefix .. 'stats', 'active:' .. workflow, 1)
if ttl > 0 then
  redis.call('SET', KEYS[7], fingerprint == '' and id or id .. ' ' .. fingerprint, 'EX', ttl)
end
for _, number in ipairs(roots) do
  local node = get_node(run, number)
  queue(run, number, parse(run, false, { waits = 0 }), node)
end
save(run)
return { 1, id }
