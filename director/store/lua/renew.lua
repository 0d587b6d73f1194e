-- Lengthen leases.
--
-- ARGV[5…] triples: run id, number, token
--
-- Reply: the positions (from 0) of those that are not held any more.

local gone = {}
for i = 5, #ARGV, 3 do
  local id, number, token = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local run = open(id, number)
  local t = run and run.text and parse(run, run.text)
  if t and t.s == 'r' and t.token == token then
    redis.call('ZADD', prefix .. 'leases', lease_end(t, get_node(run, number)), ref(run, number))
  else
    gone[#gone + 1] = (i - 5) / 3
  end
end
return gone
