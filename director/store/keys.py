"""Every key in Redis, all under one prefix.

    run:{id}          hash    the run: header fields (below) and one field per task run
    data:{id}         hash    what a user can make large: p payload, t trigger, c comment, z relaunch_of,
                              r{n} result, e{n} error
    plan:{digest}     hash    json; {n} what scripts need of a node; m{n} its message; hs, hf, mhs, mhf: hooks
    runs              zset    every run by its creation, ms
    runs:{workflow}   zset    the same of one workflow
    runs.failed       zset    the same, failed ones
    runs.active       zset    the same, queued and running ones
    leases            zset    RUN:NUMBER → when its lease ends, ms
    queued:{list}     zset    RUN:NUMBER → when to look whether its message is lost, ms
    delayed           zset    RUN:NUMBER → when it is queued again, ms
    tasks             hash    task name → options (JSON), published by workers
    workers           zset    worker → last seen, ms
    consumes          hash    worker → queues that it consumes, a line each
    queues            set     every list that a plan names
    outbox            list    messages that another broker has still to get, newest left
    outbox:{publisher}  list  the one that a publisher is sending
    publishers        zset    publisher → last seen, ms
    deliveries        zset    verified deliveries by their UUIDv7 (score 0), capped
    deliveries.refused  zset  the same of refused ones
    delivery:{id}     hash    d JSON, b body, s source, v verdict, k the sender's id
    seen:{source}:{id}:{workflow}  string  RUN FINGERPRINT, expires: dedupe
    last:{holder}     string  TOKEN RUN NUMBER, 10 minutes: what a finish took from a queue
    stats             hash    active:{workflow} count, ok:{workflow} last success in ms
    sweep             hash    at last sweep, grace leases are left alone until then, fires last look for what is
                              due, missed what was due by then was missed; ms
    rq:scheduler:scheduled_jobs  zset  schedule → its next due time, seconds (rq-scheduler's timetable)
    rq:job:{schedule}  hash   rq-scheduler's job, as JSON
    schedule:{id}     hash    r last run, d its due time in ms, n skipped due times, s AT DUE REASON of a skip
    schedules         zset    schedule → when a scheduler last said that it is its own, ms
    tokens.known      hash    SHA-256 of an access token → its id
    token:{id}        hash    d its SHA-256; c created, e expires, u last used, ms or empty; j name, scope and
                              workflows (JSON)
    mq:…              list …  everything that Celery and kombu keep (their `global_keyprefix`)

Header fields of `run:{id}`: w workflow, s status, l launch, c created, b began, e ended (ms), p plan,
n task runs, j nodes with joins, o succeeded, f failed, a active, h hooks (a letter per launch),
x first failed task run, k token of the last relaunch or cancel. What is not there is 0, l 1.

A task run's field: `STATUS ATTEMPTS,RETRIES,LOSSES,WAITS QUEUED STARTED ENDED HOLDER TOKEN`; zeros at the
end of the counts are left out; times are hex milliseconds since the run's creation, `-` for none; ENDED of a
retrying one is its next time. With holders of at most 11 characters it stays under 64 bytes, so that the hash
keeps its small encoding.
"""

from __future__ import annotations

from director.models import Node, Plan
from director.store.shapes import Dedupe


def queue_prefix(prefix: str) -> str:
    """Return kombu's `global_keyprefix`."""
    return prefix + "mq:"


def plan_key(prefix: str, digest: str) -> str:
    """Return the key of a plan."""
    return f"{prefix}plan:{digest}"


def seen_key(prefix: str, dedupe: Dedupe, workflow: str) -> str:
    """Return the key that makes two starts of a workflow the same one."""
    return f"{prefix}seen:{dedupe.key}:{workflow}"


def plan_fields(plan: Plan) -> dict[str, str]:
    """Return what scripts need of a plan, as the fields of its hash.

    A node is `PRIORITY AHEAD TIMEOUT_MS SHAPE PARENTS` and then, a line each: list, task, parents,
    children, key.
    """
    from director.messages import template

    named: list[tuple[str, Node]] = [(str(n), node) for n, node in enumerate(plan.nodes)]
    named += [("h" + kind, hook) for kind in "sf" if (hook := plan.hook(kind))]
    fields = {}
    for name, node in named:
        fields[name] = _node_line(node)
        if node.task:
            fields["m" + name] = template(node)
    return fields


def lists(plan: Plan) -> set[str]:
    """Return the names of the lists that a plan's messages go to."""
    from director.messages import queue_list

    return {queue_list(node.queue, node.priority) for node in plan.messaged}


def _node_line(node: Node) -> str:
    from director.messages import queue_list

    timeout_ms = int((node.timeout_s or 0) * 1000)
    return "\n".join(
        (
            f"{node.priority} {int(node.ahead)} {timeout_ms} {node.shape} {len(node.parents)}",
            queue_list(node.queue, node.priority),
            node.task,
            ",".join(map(str, node.parents)),
            ",".join(map(str, node.children)),
            node.key,
        )
    )
