-- Put what a holder executes back in its queue, or fail it after too many losses.
--
-- ARGV[5] holder: `boot.process`, `boot.` for a worker's every process, `.` for every worker
-- ARGV[6] '1' when each counts as a loss
--
-- Reply: {back, failed, ended} as in sweep. Reads all leases: as many as task runs execute at once.

local holder, counted = ARGV[5], ARGV[6] == '1'
local back, failed = {}, {}
for _, member in ipairs(redis.call('ZRANGE', prefix .. 'leases', 0, 9999)) do
  local id, number = split(member)
  local run = open(id, number)
  local t = run and run.text and parse(run, run.text)
  if t and t.s == 'r' and (t.holder == holder or holder == '.'
      or (string.sub(holder, -1) == '.' and string.sub(t.holder, 1, #holder) == holder)) then
    take_back(run, number, t, get_node(run, number), counted, back, failed)
    save(run)
  end
end
return { back, failed, ended }
