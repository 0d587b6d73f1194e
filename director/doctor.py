"""`director doctor`: what is wrong with a deployment, and what to do, a line each.

`examine` asks the store and its server; each `of_…` judges what was read and asks nobody. No finding shows a
secret, and nothing that is away or broken raises: it is a finding.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

from director import plan
from director.errors import DirectorError
from director.models import Problem, Project, Run, Struct, TaskOptions, time_ms
from director.settings import Settings, hide_password
from director.states import ACTIVE, QUEUED, RUNNING
from director.store import open_store
from director.store.base import Store
from director.store.redis import RedisStore
from director.store.shapes import Filter, Inspection
from director.supervisor import ServiceLock, refusal

WAITING_S = 60
STUCK_S = 600
PASS_S = 30
"""Schedulers make a pass a second."""
SKEW_S = 2.0
SLOW_MS = 20.0
FREE_MB = (100, 1000)
"""Free disk space under which something must be done, or is worth a note."""
LOOKED_AT = 200
"""Active runs that are looked at, at most."""

# The releases that close the holes in Lua of October 2025 (CVE-2025-49844, -46817, -46818, -46819).
FIXED = {
    "Redis": {(6, 2): 20, (7, 2): 11, (7, 4): 6, (8, 0): 4, (8, 2): 2},
    "Valkey": {(7, 2): 11, (8, 0): 6, (8, 1): 4},
}


class Finding(Struct, frozen=True):
    """One thing that was looked at."""

    level: Literal["ok", "note", "fix"]
    """`fix`: something must be done; `note`: worth knowing."""
    about: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<5} {self.about:<12} {self.text}"


def ok(about: str, text: str) -> Finding:
    """Return that something is as it should be."""
    return Finding(level="ok", about=about, text=text)


def note(about: str, text: str) -> Finding:
    """Return what is worth knowing."""
    return Finding(level="note", about=about, text=text)


def fix(about: str, text: str) -> Finding:
    """Return what must be done."""
    return Finding(level="fix", about=about, text=text)


def examine(settings: Settings, project: Project, options: Mapping[str, TaskOptions]) -> Iterator[Finding]:
    """Look at the store, its server and who works on it.

    Args:
        options: what the decorators of `tasks/` say, for the queues that workflows need.
    """
    if not (settings.embedded or settings.broker_is_store):
        yield _broker(settings)
    try:
        store = open_store(settings)
    except DirectorError as exc:
        yield fix("store", str(exc))
        return
    try:
        if isinstance(store, RedisStore):
            yield from _server(store)
        else:
            yield from _folder(settings)
        known = store.do(store.inspect())
        if not settings.embedded:
            yield of_scheduler(known)
            yield from of_workers(
                known, _needed(project, options), _waiting(store, known.now), bool(project.workflows)
            )
        yield of_runs(*_stuck(store, known.now))
    except DirectorError as exc:
        more = "" if settings.embedded else " Look at DIRECTOR_REDIS_URL, at the server and at the way to it."
        yield fix("store", f"{exc}{more}")
    finally:
        store.close()


# What is read -------------------------------------------------------------------------------------


def _broker(settings: Settings) -> Finding:
    from director.web.status import answers

    if answers(settings.broker_uri or ""):
        return ok("broker", f"{settings.broker_name} answers")
    text = f"{settings.broker_name} does not answer; what it has to carry waits."
    return fix("broker", f"{text} Look at DIRECTOR_BROKER_URI, at the broker and at the way to it.")


def _server(store: RedisStore) -> Iterator[Finding]:
    trips, skew_s = [], 0.0
    for _ in range(5):
        began, at = time.perf_counter(), time.time()
        seconds, micros = map(int, store.do(store.ask("TIME")))
        trips.append(time.perf_counter() - began)
        skew_s = seconds + micros / 1e6 - (at + time.time()) / 2
    try:
        info = parse_info(store.do(store.ask("INFO")))
    except DirectorError as exc:
        yield note("redis", f"Cannot know its version, role and memory: {exc}")
        info = {}
    config: dict[str, str] | None = {}
    for name in ("maxmemory-policy", "appendonly", "save", "appendfsync"):
        try:
            reply = store.do(store.ask("CONFIG", "GET", name))
            if reply and config is not None:
                config[name] = reply[1].decode()
        except DirectorError:
            config = None  # managed servers forbid it
            break
    where = hide_password(store.url)
    yield from of_server(where, info, min(trips) * 1000, skew_s)
    yield of_persistence(info, config)
    yield of_eviction(info, config)


def parse_info(reply: bytes) -> dict[str, str]:
    """Return the fields of an INFO reply."""
    lines = (line.partition(":") for line in reply.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


def _folder(settings: Settings) -> Iterator[Finding]:
    lock = ServiceLock(settings.data_dir)
    role, pid = lock.holder() if lock.is_held() else ("", "")
    free_mb = shutil.disk_usage(settings.data_dir).free >> 20
    yield of_folder(str(settings.data_dir), free_mb)
    if role == "service":
        yield ok("service", f"runs (process {pid})")
    elif role == "web":
        yield fix("service", f"runs without a worker (process {pid}): nothing is executed. Leave out --no-worker.")
    elif role == "command":
        yield note("service", f"does not run; a command executes its own run (process {pid}).")
    else:
        yield note("service", "does not run here. Start it: director up")


def _needed(project: Project, options: Mapping[str, TaskOptions]) -> dict[str, str]:
    """Return the queues that workflows in service need, each with one that does."""
    return {
        node.queue: workflow.name
        for workflow in project.workflows.values()
        if workflow.enabled
        for node in plan.build(workflow, dict(options)).messaged
    }


def _waiting(store: Store, now: int) -> dict[str, tuple[int, float]]:
    """Return queue → how many task runs wait there, at most 1,000 a list, and the oldest's seconds."""
    found: dict[str, tuple[int, float]] = {}
    plans = {}
    for item in store.do(store.outbox()):
        if item.plan not in plans:
            plans[item.plan] = store.do(store.plan(item.plan))
        of = plans[item.plan]
        node = of.hook(item.hook) if item.hook else of.nodes[item.ref.number]
        queue = node.queue if node else ""
        count, oldest_s = found.get(queue, (0, 0.0))
        found[queue] = (count + 1, max(oldest_s, (now - item.queued_at) / 1000))
    return found


def _stuck(store: Store, now: int) -> tuple[list[tuple[Run, str]], int]:
    """Return active runs that do not move and why, and how many were looked at."""
    stuck, looked = [], 0
    for status in (QUEUED, RUNNING):
        cursor = None
        while looked < LOOKED_AT:
            runs, cursor = store.do(store.list(Filter(status=status, until=now - WAITING_S * 1000, after=cursor)))
            looked += len(runs)
            stuck += [(run, why) for run in runs if (why := _why_stuck(store, run.id, now))]
            if cursor is None:
                break
    return stuck, looked


def _why_stuck(store: Store, run_id: str, now: int) -> str:
    try:
        run, _ = store.do(store.get(run_id))
    except DirectorError:
        return ""  # it has gone meanwhile
    if run.status not in ACTIVE:
        return ""
    active = [task for task in run.tasks if not task.hook and task.status in ACTIVE]
    if not active:
        return "nothing of it is queued, running or retrying"
    waits = [now - time_ms(task.queued_at) for task in active if task.queued_at]
    if all(task.status == QUEUED for task in active) and waits and min(waits) > STUCK_S * 1000:
        return f"queued for {_duration(min(waits) / 1000)}"
    return ""


# What it means ------------------------------------------------------------------------------------


def of_server(where: str, info: Mapping[str, str], trip_ms: float, skew_s: float) -> Iterator[Finding]:
    """Judge version, role, distance and clock."""
    product = "Valkey" if info.get("valkey_version") or info.get("server_name") == "valkey" else "Redis"
    version = info.get("valkey_version") or info.get("redis_version", "")
    text = f"{product} {version or '(version unknown)'} at {where}, {trip_ms:.2f} ms away"
    if info.get("redis_mode") == "cluster" or info.get("cluster_enabled") == "1":
        yield fix(
            "redis", f"{where} is a cluster, which is not supported. Use a single server, with replicas if wanted."
        )
    elif info.get("role") in ("slave", "replica"):
        primary = f"{info.get('master_host', '?')}:{info.get('master_port', '?')}"
        yield fix("redis", f"{where} is a read-only replica. Set DIRECTOR_REDIS_URL to its primary ({primary}).")
    elif info.get("loading") == "1":
        yield fix("redis", f"{where} is loading its data. Wait until it has.")
    elif trip_ms > SLOW_MS:
        yield note("redis", f"{text}: each task takes several round trips. Put workers and Redis close together.")
    else:
        yield ok("redis", text)
    if version:
        yield from of_version(product, version)
    if abs(skew_s) > SKEW_S:
        yield fix(
            "clock",
            f"This machine's clock is {abs(skew_s):.1f} s {'behind' if skew_s > 0 else 'ahead of'} Redis's. "
            "Signed webhooks and schedules depend on it. Run NTP on both machines.",
        )


def of_version(product: str, version: str) -> Iterator[Finding]:
    """Judge a server's version by the holes that are known in its Lua."""
    try:
        major, minor, patch = map(int, version.split(".")[:3])
    except ValueError:
        return
    fixed = FIXED[product]
    line = (major, minor)
    if line > max(fixed) or patch >= fixed.get(line, 1 << 30):
        return
    known = "CVE-2025-49844 (a script can run any code; whoever may log in can send one)"
    if line in fixed:
        yield fix("version", f"{product} {version} has {known}. Update it to {major}.{minor}.{fixed[line]}.")
        return
    major, minor = min(found for found in fixed if found > line)
    yield note(
        "version",
        f"{product} {version} has {known} unless its packager has mended it; its line is at its end. "
        f"Go to {major}.{minor}.{fixed[major, minor]} or later.",
    )


def of_persistence(info: Mapping[str, str], config: Mapping[str, str] | None) -> Finding:
    """Judge whether accepted runs outlive the server. `config`: None when CONFIG is forbidden."""
    about, config = "persistence", config or {}
    aof = config.get("appendonly", {"1": "yes", "0": "no"}.get(info.get("aof_enabled", ""), ""))
    broken = [name for name in ("aof_last_write_status", "rdb_last_bgsave_status") if info.get(name) == "err"]
    if broken:
        return fix(
            about, f"Redis cannot write its files ({', '.join(broken)}: err). Look at its log and its disk."
        )
    if aof == "yes":
        fsync = config.get("appendfsync", "")
        if fsync == "no":
            return note(about, "The append-only file is written when the system likes. Set appendfsync everysec.")
        return ok(about, f"append-only file{fsync and f', fsync {fsync}'}")
    if not aof or "save" not in config:
        off = "; the append-only file is off" if aof else ""
        return note(
            about, f"Cannot know whether Redis saves its data: CONFIG is forbidden{off}. Ask your provider."
        )
    if config["save"]:
        return note(about, "Only snapshots: a crash loses what came after the last one. Set appendonly yes.")
    return fix(about, "Redis saves nothing: a restart loses every run. Set appendonly yes.")


def of_eviction(info: Mapping[str, str], config: Mapping[str, str] | None) -> Finding:
    """Judge what happens when memory is full."""
    policy = (config or {}).get("maxmemory-policy") or info.get("maxmemory_policy", "")
    if not policy:
        return note("memory", "Cannot know maxmemory-policy: CONFIG is forbidden. It must be noeviction.")
    if policy != "noeviction":
        return fix("memory", f"maxmemory-policy is {policy}: runs vanish when memory is full. Set noeviction.")
    used, most = (int(info.get(name) or 0) for name in ("used_memory", "maxmemory"))
    if most and used > most * 0.9:
        return fix(
            "memory", f"{used * 100 // most} % of maxmemory is used; at 100 % nothing is accepted. Raise it."
        )
    return ok("memory", f"noeviction, {used >> 20} MiB used" + (f" of {most >> 20}" if most else ""))


def of_scheduler(known: Inspection) -> Finding:
    """Judge whether a scheduler runs, by its last pass."""
    away_s = None if known.scheduled_at is None else (known.now - known.scheduled_at) / 1000
    if away_s is not None and away_s < PASS_S:
        return ok("scheduler", f"runs; its last pass was {_duration(away_s)} ago")
    seen = "has ever run" if away_s is None else f"has run for {_duration(away_s)}"
    return fix("scheduler", f"No scheduler {seen}: nothing fires, old runs stay. Start one: director scheduler")


def of_workers(
    known: Inspection, needed: Mapping[str, str], waiting: Mapping[str, tuple[int, float]], has_workflows: bool
) -> Iterator[Finding]:
    """Judge who executes what.

    Args:
        needed: queue → a workflow that needs it.
        waiting: queue → how many task runs wait there, and the oldest's seconds.
    """
    late = {queue: it for queue, it in waiting.items() if it[1] > WAITING_S}
    if not known.workers:
        text = "No worker has been seen for 30 s"
        if waiting:
            text += f"; {sum(count for count, _ in waiting.values())} task runs wait"
        level = fix if has_workflows or waiting else note
        yield level("workers", f"{text}. Start one: director worker")
        return
    consumed = {queue for queues in known.workers.values() for queue in queues}
    count = len(known.workers)
    yield ok("workers", f"{count} worker{'s' * (count != 1)} on {', '.join(sorted(consumed)) or 'no queue'}")
    for queue in sorted({*needed, *late} - consumed):
        count, oldest_s = waiting.get(queue, (0, 0.0))
        why = f"which {needed[queue]} needs" if queue in needed else "which older runs need"
        wait = f"; {count} task runs wait, for {_duration(oldest_s)}" if count else ""
        yield fix("queues", f'No worker consumes "{queue}", {why}{wait}. Start one: director worker -Q {queue}')
    slow = [
        f"{queue} ({waiting[queue][0]}, {_duration(at)})" for queue, (_, at) in late.items() if queue in consumed
    ]
    if slow:
        yield note("queues", f"Task runs wait long: {', '.join(slow)}. Start more workers, or raise concurrency.")
    elif {*needed, *late} <= consumed:
        total = sum(count for count, _ in waiting.values())
        yield ok("queues", f"every one is consumed; {total or 'no'} task run{'s' * (total != 1)} wait")


def of_runs(stuck: Sequence[tuple[Run, str]], looked: int) -> Finding:
    """Judge active runs."""
    if not stuck:
        more = f" ({looked} of the newest looked at)" if looked >= LOOKED_AT else ""
        return ok("runs", f"none is stuck{more}")
    shown = "; ".join(f"{run.id} ({run.workflow}: {why})" for run, why in stuck[:3])
    more = f" and {len(stuck) - 3} more" if len(stuck) > 3 else ""
    verb = "are" if len(stuck) > 1 else "is"
    what = "Look at its queue's workers, or cancel and relaunch it" if len(stuck) == 1 else "Look at the workers"
    return fix("runs", f"{len(stuck)} {verb} stuck: {shown}{more}. {what}.")


def of_folder(where: str, free_mb: int) -> Finding:
    """Judge embedded mode's disk."""
    text = f"{where}, {free_mb} MB free"
    if free_mb < FREE_MB[0]:
        return fix("folder", f"{text}: soon nothing can be accepted. Make room, or set DIRECTOR_DATA_DIR.")
    return (note if free_mb < FREE_MB[1] else ok)("folder", text)


def of_settings(settings: Settings) -> Iterator[Finding]:
    """Judge what the environment says."""
    if reason := refusal(settings):
        yield fix("access", reason)
    else:
        kind = f"with a token{'' if settings.token else '; while there is none, for this machine only'}"
        yield ok("access", f"{settings.host}:{settings.port} {kind}")
    for warning in settings.warnings:
        yield note("settings", warning)


def of_files(project: Project, problems: Sequence[Problem], closed: Iterable[Problem]) -> Iterator[Finding]:
    """Judge workflow files and secrets.

    Args:
        problems: of files and tasks.
        closed: `Definitions.source_problems`.
    """
    counts = {"workflow": len(project.workflows), "source": len(project.sources)}
    text = ", ".join(f"{count or 'no'} {word}{'s' * (count != 1)}" for word, count in counts.items())
    if problems:
        some = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        yield fix("files", f"{text}, {some}; see director check")
    else:
        yield ok("files", f"{text}, no problem")
    texts = [problem.text for problem in closed]
    yield from (fix("secrets", said) for said in texts)
    if project.sources and not texts:
        yield ok("secrets", "every source is open")


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
