-- Let a schedule go on to its next due time without a run.
--
-- ARGV[5] schedule  [6] due time that is written down  [7] next  [8] how many are skipped  [9] reason
--
-- Reply: 1, or 0 when it had gone on already.

local was = tonumber(ARGV[6])
if due_of(ARGV[5]) ~= was then return 0 end
go_on(ARGV[5], was, tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9])
return 1
