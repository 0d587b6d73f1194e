-- Take a queued task run: queued → running, with a lease.
--
-- KEYS[1] run hash
-- ARGV[5] run id  [6] number  [7] token  [8] holder
--
-- Reply: what `begun` returns, or false when it is not queued (nothing changes).
-- A repeat with the token that holds it gets the same reply.

local id, number, token, holder = ARGV[5], ARGV[6], ARGV[7], ARGV[8]

local run = open(id, number)
if not run or not run.text then return false end
local t = parse(run, run.text)
if t.s == 'r' and t.token == token then return begun(run, number, t, get_node(run, number)) end
if t.s ~= 'q' then return false end
local node = get_node(run, number)
begin(run, number, t, node, token, holder)
save(run)
return begun(run, number, t, node)
