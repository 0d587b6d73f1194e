-- Put a running task run back in its queue, or fail it after too many losses.
--
-- KEYS[1] run hash
-- ARGV[5] run id  [6] number  [7] token  [8] '1' when it counts as a loss
--
-- Reply: 1, or 0 when the token is not live.

local id, number, token, counted = ARGV[5], ARGV[6], ARGV[7], ARGV[8] == '1'

local run = open(id, number)
local t = run and run.text and parse(run, run.text)
if not t or t.s ~= 'r' or t.token ~= token then return 0 end
take_back(run, number, t, get_node(run, number), counted)
save(run)
return 1
