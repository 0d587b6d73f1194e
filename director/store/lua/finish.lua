-- Record how an execution ended; release successors; end the run; begin one more for the caller (run-ahead).
--
-- KEYS[1] run hash
-- ARGV[5] run id  [6] number  [7] token  [8] s succeeded, f failed, y to be tried again
-- ARGV[9] result or error, JSON  [10] ms until the next try
-- ARGV[11] holder  [12] token for another task run, '' for none  [13] its list  [14] '1' to take from the list
--
-- Reply: {0, status} refused   {1, status, begun or false} accepted, or repeated with the token that was

local id, number, token, status = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local body, delay_ms, holder = ARGV[9], tonumber(ARGV[10]), ARGV[11]
local wish
if ARGV[12] ~= '' then wish = { token = ARGV[12], list = ARGV[13], take = ARGV[14] == '1', holder = holder } end
local last_key = prefix .. 'last:' .. holder

local function answer(run, kept_run, kept_number, t, node)
  return { 1, run.s, kept_run and begun(kept_run, kept_number, t, node) or false }
end

-- What the first call of a repeated finish began, found by the token it was given.
local function begun_before(run)
  if not wish then return answer(run) end
  local candidates = {}
  local taken, of, at = string.match(redis.call('GET', last_key) or '', '^(%S+) (%S+) (%d+)$')
  if taken == token then candidates[1] = { of, at } end
  local node = get_node(run, number)
  local waiting = { node.children }
  while #waiting > 0 do
    for child in string.gmatch(table.remove(waiting), '%d+') do
      if tonumber(child) >= run.total then
        waiting[#waiting + 1] = get_node(run, child).children
      else
        candidates[#candidates + 1] = { id, child }
      end
    end
  end
  candidates[#candidates + 1] = { id, tostring(run.nodes + run.launch - 1) }
  for _, candidate in ipairs(candidates) do
    local other = open(candidate[1], candidate[2])
    if other and other.text then
      local t = parse(other, other.text)
      if t.s == 'r' and t.token == wish.token then
        return answer(run, other, candidate[2], t, get_node(other, candidate[2]))
      end
    end
  end
  return answer(run)
end

-- Take the oldest message of the list, if it is ours and may run ahead, and begin its task run.
-- A message that is obsolete (its task run is not queued) is dropped and the next one looked at.
local function take(run)
  local list = prefix .. 'mq:' .. wish.list
  for _ = 1, 8 do
    local message = redis.call('LINDEX', list, -1)
    local of, at, ahead = string.match(message or '', '"director": "(%S+):(%d+) %d+ (%d)"')
    if ahead ~= '1' then return answer(run) end
    redis.call('RPOP', list)
    local other = open(of, at)
    local t = other and other.text and parse(other, other.text)
    if t and t.s == 'q' then
      local node = get_node(other, at)
      begin(other, at, t, node, wish.token, holder)
      save(other)
      redis.call('SET', last_key, token .. ' ' .. of .. ' ' .. at, 'EX', 600)
      return answer(run, other, at, t, node)
    end
  end
  return answer(run)
end

local run = open(id, number)
if not run or not run.text then return { 0, run and run.s or '' } end
local t = parse(run, run.text)
if t.token ~= token then return { 0, run.s } end
if t.s ~= 'r' then return begun_before(run) end

local node = get_node(run, number)
if status == 'y' then
  t.retries = t.retries + 1
  delay(run, number, t, now + delay_ms)
  redis.call('HSET', prefix .. 'data:' .. id, 'e' .. number, body)
else
  complete(run, number, t, node, status, body, wish)
end
save(run)
if not wish then return answer(run) end
if wish.number then return answer(run, run, wish.number, wish.t, wish.node) end
if wish.take and pushes then return take(run) end
return answer(run)
