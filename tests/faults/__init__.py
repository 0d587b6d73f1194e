"""Whole services under faults: real processes, killed, frozen and told to end, counted from outside.

project    workflows whose right results are known, tasks that write a history
services   the processes, each restarted by a thread of its own; a Redis that survives SIGKILL
nemesis    a seed's schedule of faults, and who carries it out
sender     signed deliveries, each repeated until it has a 2xx
checker    what must hold once nothing is active any more
soak       all of it together            `python -m tests.faults --seed 7 --seconds 60`
"""
