-- What the scripts share: reading and writing a run, queueing, beginning, ending. Put before each script.
--
-- ARGV[1] prefix of every key
-- ARGV[2] clock in ms, or '' for the server's
-- ARGV[3] '1' when the broker is this Redis, '0' when publishers take messages from here to another
-- ARGV[4] losses after which a task run fails
-- The script's own arguments follow from ARGV[5]. The layout of keys and fields is in store/keys.py.

local RESEND_MS, LEASE_MS, UNKNOWN_MS = 20000, 30000, 5000

local prefix, pushes, max_lost = ARGV[1], ARGV[3] == '1', tonumber(ARGV[4])
local now = tonumber(ARGV[2])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Task runs -----------------------------------------------------------------------------------

local function offset(run, ms) return ms and string.format('%x', ms - run.created) or '-' end

local function instant(run, hex) return hex ~= '-' and run.created + tonumber(hex, 16) or nil end

-- Text of a field, or false for one that was never written, to a table.
local function parse(run, text, node)
  if not text then
    return { s = 'p', attempts = 0, retries = 0, losses = 0, waits = node.waits, holder = '-', token = '-' }
  end
  local s, counts, queued, started, ended, holder, token = string.match(text,
    '^(%a) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+)$')
  local a, r, l, w = string.match(counts, '^(%d+),?(%d*),?(%d*),?(%d*)$')
  return { s = s, attempts = tonumber(a), retries = tonumber(r) or 0, losses = tonumber(l) or 0,
    waits = tonumber(w) or 0,
    queued = instant(run, queued), started = instant(run, started), ended = instant(run, ended),
    holder = holder, token = token }
end

-- Runs: read once, changed in memory, written by `save` -----------------------------------------

local function open(id, number)
  local key = prefix .. 'run:' .. id
  local v = redis.call('HMGET', key, 's', 'l', 'c', 'p', 'n', 'j', 'o', 'f', 'a', 'h', 'w', 'x', number or 's')
  if not v[1] then return nil end
  return { id = id, key = key, s = v[1], launch = tonumber(v[2] or 1), created = tonumber(v[3]), plan = v[4],
    total = tonumber(v[5]), nodes = tonumber(v[6]), succeeded = tonumber(v[7]), failed = tonumber(v[8] or 0),
    active = tonumber(v[9] or 0), hooks = v[10] or '', workflow = v[11], first_failed = v[12], text = v[13],
    fields = {} }
end

local function set(run, field, value)
  local fields = run.fields
  fields[#fields + 1] = field
  fields[#fields + 1] = value
end

local function set_task(run, number, t)
  local counts = t.attempts
  if tonumber(t.waits) > 0 then
    counts = table.concat({ counts, t.retries, t.losses, t.waits }, ',')
  elseif t.losses > 0 then
    counts = table.concat({ counts, t.retries, t.losses }, ',')
  elseif t.retries > 0 then
    counts = counts .. ',' .. t.retries
  end
  set(run, number, table.concat({ t.s, counts, offset(run, t.queued), offset(run, t.started),
    offset(run, t.ended), t.holder, t.token }, ' '))
end

local function save(run)
  local fields = run.fields
  for first = 1, #fields, 1000 do
    redis.call('HSET', run.key, unpack(fields, first, math.min(first + 999, #fields)))
  end
  run.fields = {}
end

-- The name under which a plan knows a number: hooks are numbered from run.nodes on, one a launch.
local function plan_name(run, number)
  number = tonumber(number)
  if number < run.nodes then return tostring(number), '' end
  local kind = string.sub(run.hooks, number - run.nodes + 1, number - run.nodes + 1)
  return 'h' .. kind, kind
end

local function read_node(text, name, hook)
  local priority, ahead, timeout, shape, waits, list, task, parents, children = string.match(text,
    '^(%d+) (%d) (%d+) (%a+) (%d+)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n')
  return { name = name, hook = hook, ahead = ahead == '1', timeout = tonumber(timeout), shape = shape,
    waits = tonumber(waits), list = list, task = task, parents = parents, children = children }
end

local function get_node(run, number)
  local name, hook = plan_name(run, number)
  return read_node(redis.call('HGET', prefix .. 'plan:' .. run.plan, name), name, hook)
end

local function ref(run, number) return run.id .. ':' .. number end

-- Moves -----------------------------------------------------------------------------------------

-- To the broker's own list, or to the outbox, which publishers empty.
local function push(run, number, node)
  local template = redis.call('HGET', prefix .. 'plan:' .. run.plan, 'm' .. node.name)
  local id, at = ref(run, number), string.format('%.0f', now)
  -- The order is that of messages.template.
  redis.call('LPUSH', prefix .. (pushes and 'mq:' .. node.list or 'outbox'),
    string.format(template, id, id, id, at, id, id, at))
end

-- any → queued
local function queue(run, number, t, node)
  t.s, t.queued, t.token, t.holder, t.started, t.ended = 'q', now, '-', '-', nil, nil
  set_task(run, number, t)
  redis.call('ZADD', prefix .. 'queued:' .. node.list, now + RESEND_MS, ref(run, number))
  push(run, number, node)
end

local function lease_end(t, node)
  local ends = now + LEASE_MS
  if node.timeout > 0 then ends = math.min(ends, t.started + node.timeout) end
  return ends
end

-- What the executing process needs; also the answer to a repeated begin.
local function begun(run, number, t, node)
  local fields = { 'p', 't' }
  if node.shape ~= 'none' then
    local parents = node.parents
    if not string.find(parents, ',', 1, true) and tonumber(parents) >= run.total then
      parents = get_node(run, parents).parents
    end
    for parent in string.gmatch(parents, '%d+') do fields[#fields + 1] = 'r' .. parent end
  end
  local values = {}
  for first = 1, #fields, 1000 do
    local part = redis.call('HMGET', prefix .. 'data:' .. run.id,
      unpack(fields, first, math.min(first + 999, #fields)))
    for i = 1, #part do values[#values + 1] = part[i] end
  end
  local launch = node.hook == '' and run.launch or tonumber(number) - run.nodes + 1
  return { run.id, tonumber(number), t.token, run.workflow, run.plan, node.task, node.shape, t.attempts,
    t.retries, launch, node.hook, values }
end

-- queued → running (or pending → running for a kept successor)
local function begin(run, number, t, node, token, holder)
  t.s, t.attempts, t.token, t.holder, t.started, t.ended = 'r', t.attempts + 1, token, holder, now, nil
  set_task(run, number, t)
  if run.s == 'q' and node.hook == '' then -- a former launch's hook is none of this launch
    run.s = 'r'
    set(run, 's', 'r')
    set(run, 'b', string.format('%.0f', now))
  end
  redis.call('ZREM', prefix .. 'queued:' .. node.list, ref(run, number))
  redis.call('ZADD', prefix .. 'leases', lease_end(t, node), ref(run, number))
end

-- Offer a released task run to the caller's wish, else queue it. Returns true when it was kept.
local function queue_or_keep(run, number, t, node, wish)
  if wish and not wish.number and node.ahead and node.list == wish.list then
    t.queued = now
    begin(run, number, t, node, wish.token, wish.holder)
    wish.number, wish.t, wish.node = number, t, node
  else
    queue(run, number, t, node)
  end
end

-- A parent has succeeded: count down, queue what waits for nothing more. Joins release at once.
local function release(run, children, wish)
  if children == '' then return end
  local numbers = {}
  for child in string.gmatch(children, '%d+') do numbers[#numbers + 1] = child end
  for first = 1, #numbers, 1000 do
    local last = math.min(first + 999, #numbers)
    local texts = redis.call('HMGET', run.key, unpack(numbers, first, last))
    local lines = redis.call('HMGET', prefix .. 'plan:' .. run.plan, unpack(numbers, first, last))
    for i = first, last do
      local number = numbers[i]
      local node = read_node(lines[i - first + 1], number, '')
      local t = parse(run, texts[i - first + 1], node)
      if t.s == 'p' then
        t.waits = t.waits - 1
        if t.waits > 0 then
          set_task(run, number, t)
        elseif node.task == '' then
          t.s, t.ended = 's', now
          set_task(run, number, t)
          release(run, node.children, wish)
        else
          run.active = run.active + 1
          queue_or_keep(run, number, t, node, wish)
        end
      end
    end
  end
end

-- Runs that failed in this call.
local ended = {}

-- The last active task run has ended: so has the run, and its hook is queued.
local function end_run(run, wish)
  local ok = run.succeeded == run.total
  run.s = ok and 's' or 'f'
  local kind = ok and 's' or 'f'
  local line = redis.call('HGET', prefix .. 'plan:' .. run.plan, 'h' .. kind)
  run.hooks = run.hooks .. (line and kind or '-')
  set(run, 's', run.s)
  set(run, 'e', string.format('%.0f', now))
  set(run, 'h', run.hooks)
  redis.call('ZREM', prefix .. 'runs.active', run.id)
  redis.call('HINCRBY', prefix .. 'stats', 'active:' .. run.workflow, -1)
  if ok then
    redis.call('HSET', prefix .. 'stats', 'ok:' .. run.workflow, string.format('%.0f', now))
  else
    redis.call('ZADD', prefix .. 'runs.failed', run.created, run.id)
    ended[#ended + 1] = run.id
  end
  if line then
    local number = run.nodes + run.launch - 1
    local node = read_node(line, 'h' .. kind, kind)
    queue_or_keep(run, number, parse(run, false, node), node, wish)
  end
end

-- running or queued → succeeded | failed, with all that follows from it. `body` is the result or the error.
local function complete(run, number, t, node, status, body, wish)
  t.s, t.ended = status, now
  set_task(run, number, t)
  redis.call('ZREM', prefix .. 'leases', ref(run, number))
  local data = prefix .. 'data:' .. run.id
  if status == 'f' then
    redis.call('HSET', data, 'e' .. number, body)
  else
    if t.attempts > 1 then redis.call('HDEL', data, 'e' .. number) end
    if body ~= 'null' then redis.call('HSET', data, 'r' .. number, body) end
  end
  if node.hook ~= '' then return end
  run.active = run.active - 1
  if status == 's' then
    run.succeeded = run.succeeded + 1
    release(run, node.children, wish)
    set(run, 'o', run.succeeded)
  else
    run.failed = run.failed + 1
    set(run, 'f', run.failed)
    if not run.first_failed then
      run.first_failed = number
      set(run, 'x', number)
    end
  end
  if run.active > 0 then
    set(run, 'a', run.active)
  else
    redis.call('HDEL', run.key, 'a')
    end_run(run, wish)
  end
end

-- running → retrying, or queued → retrying for an unknown task
local function delay(run, number, t, until_ms)
  t.s, t.ended = 'y', until_ms
  set_task(run, number, t)
  redis.call('ZREM', prefix .. 'leases', ref(run, number))
  redis.call('ZADD', prefix .. 'delayed', until_ms, ref(run, number))
end

-- running → queued, or failed: past its timeout, or after too many losses
local function take_back(run, number, t, node, counted, back, failed)
  redis.call('ZREM', prefix .. 'leases', ref(run, number))
  t.token = '-'
  local late = node.timeout > 0 and now >= t.started + node.timeout
  if counted and not late then t.losses = t.losses + 1 end
  local why
  if late then
    why = string.format('{"type":"Timeout","message":"it took longer than its timeout of %g s"}', node.timeout / 1000)
  elseif counted and t.losses >= max_lost then
    why = '{"type":"WorkerLost","message":"its worker disappeared ' .. t.losses .. ' times"}'
  end
  if why then
    complete(run, number, t, node, 'f', why)
    failed[#failed + 1] = ref(run, number)
  else
    queue(run, number, t, node)
    back[#back + 1] = ref(run, number)
  end
end

local function split(member)
  return string.match(member, '^(.*):(%d+)$')
end

-- Schedules -------------------------------------------------------------------------------------

local timetable = prefix .. 'rq:scheduler:scheduled_jobs'

-- rq-scheduler's scores are seconds.
local function due_of(id)
  local score = redis.call('ZSCORE', timetable, id)
  return score and math.floor(tonumber(score) * 1000 + 0.5)
end

local function seconds(ms) return string.format('%.3f', ms / 1000) end

-- Go on to the next due time; write down how many were skipped, and why.
local function go_on(id, was, next_due, skipped, reason)
  redis.call('ZADD', timetable, 'XX', seconds(next_due), id)
  if skipped > 0 then
    redis.call('HINCRBY', prefix .. 'schedule:' .. id, 'n', skipped)
    redis.call('HSET', prefix .. 'schedule:' .. id, 's', string.format('%.0f %.0f %s', now, was, reason))
  end
end
