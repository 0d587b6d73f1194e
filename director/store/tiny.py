"""The store without a server: the rules run on TinyDB's documents, one locked transaction a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from director.models import AccessToken, Delivery, FullRun, Plan, Presented, Run, TaskError, TaskOptions, time_text
from director.states import ENDED, WORD
from director.store import base, rules, shapes, tokens
from director.store.files import files_of
from director.store.shapes import (
    LEASE_MS,
    Begun,
    Finished,
    NewRun,
    Outbox,
    Outcome,
    Ref,
    Started,
    Swept,
)
from director.store.tables import Documents, TinyCall, described

OUTBOX_LIMIT = 1000


class TinyStore(Documents):
    """What remembers runs, in a folder."""

    # The life of a run

    @described
    def start(self, new: NewRun) -> Started:
        if new.run_id in self._rows("runs"):
            return Started(run_id=new.run_id)
        if new.dedupe and (first := self._first(new.dedupe, new.plan.workflow)):
            same = first["fingerprint"] == new.dedupe.fingerprint
            return Started(run_id=first["run"], duplicate=same, conflict=not same)
        if new.dedupe:
            self._mark(new.dedupe, new.plan.workflow, new.run_id)
        if new.kept and self._run(new.relaunch_of) is None:
            raise base.no_run(new.relaunch_of)
        if new.fire and (refused := self._fire(new.fire, new.run_id)):
            return refused
        self._keep_plan(new.plan)
        run = rules.RunState(
            id=new.run_id,
            workflow=new.plan.workflow,
            plan=new.plan.digest,
            total=new.plan.total,
            nodes=len(new.plan.nodes),
            created=self._now,
        )
        moves = self._moves_of(run)
        texts = {"p": new.payload, "t": rules.pack_trigger(new.trigger), "c": new.comment.encode()}
        moves.data.update({name: body for name, body in {**texts, "z": new.relaunch_of.encode()}.items() if body})
        if new.kept:
            before = self._data(new.relaunch_of)
            moves.data.update({name: before[name] for n in new.kept if (name := f"r{n}") in before})
        moves.start(new.roots, new.kept, new.waits)
        self._save(moves)
        return Started(run_id=new.run_id)

    @described
    def begin(self, ref: Ref, token: str, holder: str) -> Begun | None:
        found = self._at(ref)
        if found is None:
            return None
        moves, task = found
        again = task.s == "r" and task.token == token
        begun = moves.begin(ref.number, token, holder)
        if begun is not None and not again:
            self._save(moves)
        return begun

    @described
    def finish(
        self, ref: Ref, token: str, outcome: Outcome, holder: str, wish: shapes.Next | None = None
    ) -> Finished:
        """Nothing is taken from the queue: messages wait in the broker's memory."""
        found = self._at(ref)
        if found is None or found[1].token != token:
            run = self._run(ref.run_id)
            return Finished(accepted=False, run_status=WORD[run.s] if run else "")
        moves, task = found
        if task.s == "r":
            kept = moves.finish(ref.number, token, outcome, holder, wish)
            self._save(moves)
        else:
            kept = moves.kept_before(ref.number, wish.token) if wish else None
        begun = None if kept is None else moves.begun(kept)
        return Finished(accepted=True, begun=begun, run_status=WORD[moves.run.s])

    @described
    def renew(self, held: Sequence[tuple[Ref, str]]) -> tuple[Ref, ...]:
        gone = []
        for ref, token in held:
            found = self._at(ref)
            if found is None or found[1].s != "r" or found[1].token != token:
                gone.append(ref)
            else:
                found[0].renew(ref.number)
                self._save(found[0])
        return tuple(gone)

    @described
    def hand_back(self, holder: str, counted: bool) -> Swept:
        back = []
        for moves in self._busy():
            for number, task in moves.run.tasks.items():
                if task.s == "r" and holder in (task.holder, task.holder.partition(".")[0] + ".", "."):
                    back.append((task.lease or 0, f"{moves.run.id}:{number}", Ref(moves.run.id, int(number))))
        return self._take_back([ref for _, _, ref in sorted(back)], counted=counted)

    def _take_back(self, refs: Sequence[Ref], *, counted: bool) -> Swept:
        lost: list[Ref] = []
        failed: list[Ref] = []
        ended: list[str] = []
        for ref in refs:
            moves = self._moves(ref.run_id)
            assert moves is not None
            (failed if moves.take_back(ref.number, counted=counted) else lost).append(ref)
            self._save(moves)
            ended += [ref.run_id] if moves.ended else []
        return Swept(lost=tuple(lost), failed=tuple(failed), ended=tuple(ended), idle=False)

    @described
    def unknown(self, ref: Ref, token: str, error: TaskError) -> Swept:
        found = self._at(ref)
        if found is None or (found[1].s != "q" and not (found[1].s == "r" and found[1].token == token)):
            return Swept(idle=False)
        moves = found[0]
        failed = moves.unknown(ref.number, error)
        self._save(moves)
        ended = (ref.run_id,) if moves.ended else ()
        return Swept(lost=() if failed else (ref,), failed=(ref,) if failed else (), ended=ended, idle=False)

    @described
    def cancel(self, run_id: str, token: str) -> None:
        moves = self._moves(run_id)
        if moves is None:
            raise base.no_run(run_id)
        if moves.run.s == "c" and moves.run.token == token:
            return
        if WORD[moves.run.s] in ENDED:
            raise base.has_ended(run_id, WORD[moves.run.s])
        moves.cancel(token)
        self._save(moves)

    @described
    def relaunch(self, order: shapes.Relaunch) -> int:
        run = self._run(order.run_id)
        if run is None:
            raise base.no_run(order.run_id)
        if run.token != order.token:
            if order.dedupe and self._first(order.dedupe, run.workflow):
                return 0
            if run.s not in "fc" or run.launch != order.launch:
                raise base.moved_on(order.run_id, WORD[run.s], run.launch)
            if order.dedupe:
                self._mark(order.dedupe, run.workflow, run.id)
            self._keep_plan(order.plan)
            run.plan = order.plan.digest
            moves = self._moves_of(run)
            moves.relaunch(order.resets, order.token)
            self._save(moves)
        return run.launch

    @described
    def seen(self, dedupe: shapes.Dedupe, workflow: str) -> str | None:
        first = self._first(dedupe, workflow)
        return first["run"] if first else None

    # The inbox

    def record(self, entries: Sequence[tuple[Delivery, bytes | None]]) -> TinyCall[None]:
        return TinyCall(lambda: self._inbox.record(entries), self._inbox.storage)

    def deliveries(self, which: shapes.DeliveryFilter) -> TinyCall[tuple[tuple[Delivery, ...], str | None]]:
        return TinyCall(lambda: self._inbox.list(which), self._inbox.storage)

    def delivery(self, name: str) -> TinyCall[tuple[Delivery, bytes | None]]:
        return TinyCall(lambda: self._inbox.get(name), self._inbox.storage)

    # The loop and workers

    @described
    def sweep(self, fires: bool = False) -> Swept:
        """No message is ever sent again: the broker lives and dies with the process."""
        if self._swept_at is None:
            # Large files that a killed process has left without a name.
            named = {file for row in self._rows("runs").values() for file in files_of(row["data"])}
            self._unnamed += [file.name for file in self._storage.large.iterdir() if file.name not in named]
            self._missed_until = self._now
        elif self._now - self._swept_at > shapes.OUTAGE_MS:
            # In memory: one process sweeps here, and an idle service should not write each second.
            self._grace_until = self._now + shapes.OUTAGE_GRACE_MS
        if self._swept_at is not None and self._now - self._swept_at > shapes.GAP_MS:
            self._missed_until = self._now
        self._swept_at = self._now
        swept = Swept()
        if self._now >= self._grace_until:
            swept = self._take_back(self._due("r"), counted=True)
        released = self._due("y")
        for ref in released:
            moves = self._moves(ref.run_id)
            assert moves is not None
            moves.queue(ref.number)
            self._save(moves)
        idle = not any(row["busy"] for row in self._rows("runs").values())
        swept = msgspec.structs.replace(swept, released=tuple(released), idle=idle, now=self._now)
        return self._with_due(swept) if fires else swept

    def _with_due(self, swept: Swept) -> Swept:
        rows = self._rows("schedules")
        self._remove("schedules", [id_ for id_, row in rows.items() if row["seen"] < self._now - shapes.FORGET_MS])
        known = sorted((row["due"], id_) for id_, row in self._rows("schedules").items())
        waits = [task.ended or 0 for moves in self._busy() for task in moves.run.tasks.values() if task.s == "y"]
        coming = [due for due in (*(due for due, _ in known), *waits) if due > self._now]
        return msgspec.structs.replace(
            swept,
            due=tuple((id_, due) for due, id_ in known if due <= self._now),
            next_in_ms=min(coming) - self._now if coming else None,
            missed_until=self._missed_until,
        )

    def _fire(self, fire: shapes.Fire, run_id: str) -> Started | None:
        """Let a schedule go on; return the answer when nothing is to be started."""
        row = self._rows("schedules").get(fire.schedule)
        if row is None or row["due"] != fire.was:
            return Started(run_id=run_id, refused="moved")
        last = self._run(row["last"]) if fire.alone and row["last"] else None
        if last is not None and last.s in "qr":
            self._go_on(fire, fire.skipped + 1, f"its last run was going on: {last.id}")
            return Started(run_id=last.id, refused="overlap")
        self._go_on(fire, fire.skipped, fire.reason, last=run_id, last_due=fire.due)
        return None

    def _go_on(self, fire: shapes.Fire, skipped: int, reason: str, **more: Any) -> None:
        row = {**self._rows("schedules")[fire.schedule], "due": fire.next, **more}
        if skipped:
            row |= {"skipped": row["skipped"] + skipped, "skip": f"{self._now} {fire.was} {reason}"}
        self._put("schedules", fire.schedule, row)

    @described
    def refresh(self, schedules: Sequence[str]) -> tuple[int, tuple[str, ...]]:
        rows = self._rows("schedules")
        for id_ in schedules:
            # Rarely: each time, the whole file is written.
            if id_ in rows and rows[id_]["seen"] < self._now - shapes.FORGET_MS // 3:
                self._put("schedules", id_, {**rows[id_], "seen": self._now})
        return self._now, tuple(id_ for id_ in schedules if id_ not in rows)

    @described
    def add(self, entries: Sequence[shapes.Entry]) -> None:
        for entry in entries:
            if entry.schedule not in self._rows("schedules"):
                new = {"due": entry.due, "seen": self._now, "last": "", "last_due": 0, "skipped": 0, "skip": ""}
                self._put("schedules", entry.schedule, new)

    @described
    def skip(self, fire: shapes.Fire) -> bool:
        row = self._rows("schedules").get(fire.schedule)
        if row is None or row["due"] != fire.was:
            return False
        self._go_on(fire, fire.skipped, fire.reason)
        return True

    @described
    def schedules(self, ids: Sequence[str]) -> tuple[shapes.ScheduleState, ...]:
        none = {"due": -1, "last_due": 0, "last": "", "skipped": 0, "skip": ""}
        rows = (self._rows("schedules").get(id_, none) for id_ in ids)
        return tuple(
            rules.schedule_state(row["due"], row["last_due"], row["last"], row["skipped"], row["skip"])
            for row in rows
        )

    def _due(self, letter: str) -> Sequence[Ref]:
        """Return what has a lease (r) or a wait (y) that is over, the longest over first, as Redis has it."""
        found = [
            (at, f"{moves.run.id}:{number}", Ref(moves.run.id, int(number)))
            for moves in self._busy()
            for number, task in moves.run.tasks.items()
            if task.s == letter and (at := (task.lease if letter == "r" else task.ended) or 0) <= self._now
        ]
        return [ref for _, _, ref in sorted(found)[: shapes.SWEEP_LIMIT]]

    @described
    def prune(self, keeps: Mapping[str, shapes.Keep], limit: int = shapes.PRUNE_LIMIT) -> int:
        gone: list[str] = []
        rows = self._rows("runs").items()
        for workflow in sorted({row["state"]["workflow"] for _, row in rows}):
            keep = keeps.get(workflow, keeps.get("", shapes.Keep()))
            of = sorted(
                (row["state"]["created"], id_) for id_, row in rows if row["state"]["workflow"] == workflow
            )
            surplus = 0 if keep.runs is None else len(of) - keep.runs
            for place, (_, id_) in enumerate(of):
                row = self._rows("runs")[id_]
                ended = row["state"].get("ended") if row["ended"] and not row["busy"] else None
                too_old = keep.age_ms is not None and ended is not None and ended <= self._now - keep.age_ms
                if ended is not None and (place < surplus or too_old):
                    gone.append(id_)
        self._forget(gone[:limit])
        return len(gone[:limit])

    @described
    def outbox(self) -> tuple[Outbox, ...]:
        queued = [
            Outbox(Ref(run.id, int(number)), run.plan, task.queued or 0, run.hooks[int(number) - run.nodes :][:1])
            if int(number) >= run.nodes
            else Outbox(Ref(run.id, int(number)), run.plan, task.queued or 0)
            for run in (moves.run for moves in self._busy())
            for number, task in run.tasks.items()
            if task.s == "q"
        ]
        return tuple(sorted(queued, key=lambda item: (item.queued_at, item.ref))[:OUTBOX_LIMIT])

    @described
    def publish(
        self, worker: str, tasks: Mapping[str, TaskOptions], queues: Sequence[str] = ()
    ) -> tuple[str, ...]:
        old = [name for name, row in self._rows("workers").items() if row["at"] < self._now - 2 * LEASE_MS]
        self._remove("workers", old)
        known = self._rows("workers").get(worker, {"at": 0})
        if known["at"] < self._now - LEASE_MS // 3 or known.get("queues") != list(queues):
            # Rarely: each time, the whole file is written.
            self._put("workers", worker, {"at": self._now, "queues": list(queues)})
        for name, options in tasks.items():
            row = msgspec.to_builtins(options)
            if self._rows("tasks").get(name) != row:
                self._put("tasks", name, row)
        return self._queues()

    def _queues(self) -> tuple[str, ...]:
        plans = [self._read_plan(digest) for digest in self._rows("plans")]
        return tuple(sorted({node.queue for plan in plans for node in plan.messaged}))

    @described
    def task_options(self) -> dict[str, TaskOptions]:
        return {name: msgspec.convert(row, TaskOptions) for name, row in self._rows("tasks").items()}

    # Access tokens

    @described
    def add_token(self, new: shapes.NewToken) -> AccessToken:
        row = self._rows("tokens").get(new.id)
        if row is None:
            expires = None if new.expires_in_ms is None else self._now + new.expires_in_ms
            row = {"digest": new.digest, "created": self._now, "expires": expires, "used": None}
            row["facts"] = tokens.facts(new).decode()
            self._put("tokens", new.id, row)
        elif row["digest"] != new.digest:
            raise tokens.taken(new.id)
        return _token(new.id, {**row, "used": None})

    @described
    def tokens(self) -> tuple[AccessToken, ...]:
        rows = sorted(self._rows("tokens").items(), key=lambda item: (item[1]["created"], item[0]))
        return tuple(_token(id_, row) for id_, row in rows)

    @described
    def revoke(self, token_id: str) -> None:
        if token_id not in self._rows("tokens"):
            raise tokens.missing(token_id)
        self._remove("tokens", [token_id])

    @described
    def authenticate(self, digest: str) -> Presented:
        rows = self._rows("tokens")
        found = next((id_ for id_, row in rows.items() if row["digest"] == digest), None)
        if found is None:
            return Presented(any_token=bool(rows))
        row = rows[found]
        expired = row["expires"] is not None and row["expires"] <= self._now
        if not expired and (row["used"] is None or self._now - row["used"] >= shapes.USE_NOTED_MS):
            row = {**row, "used": self._now}
            self._put("tokens", found, row)
        return Presented(token=_token(found, row), expired=expired, any_token=True)

    # Reading

    @described
    def plan(self, digest: str) -> Plan:
        return self._read_plan(digest)

    @described
    def get(self, run_id: str) -> tuple[FullRun, Plan]:
        run = self._run(run_id)
        if run is None:
            raise base.no_run(run_id)
        plan = self._read_plan(run.plan)
        return rules.view(run, plan, self._data(run_id)), plan

    @described
    def list(self, which: shapes.Filter) -> tuple[tuple[Run, ...], str | None]:
        rows = self._rows("runs")
        newest = sorted(((row["state"]["created"], run_id) for run_id, row in rows.items()), reverse=True)
        if which.after is not None:
            after = rows.get(which.after)
            bound = (after["state"]["created"] if after else _made_at(which.after), which.after)
            newest = [entry for entry in newest if entry < bound]
        found: list[Run] = []
        for created, run_id in newest:
            run = self._run(run_id)
            assert run is not None
            if (
                (which.workflow and run.workflow != which.workflow)
                or (which.status and WORD[run.s] != which.status)
                or (which.since is not None and created < which.since)
                or (which.until is not None and created >= which.until)
            ):
                continue
            if len(found) == which.limit:
                return tuple(found), found[-1].id
            key = "" if run.first_failed is None else self._read_plan(run.plan).nodes[run.first_failed].key
            found.append(rules.header(run, self._data(run_id), key))
        return tuple(found), None

    @described
    def inspect(self) -> shapes.Inspection:
        """No passes: the service that holds the folder makes them, and an idle one should not write."""
        rows = self._rows("workers").items()
        alive = {name: tuple(row.get("queues", ())) for name, row in rows if row["at"] >= self._now - LEASE_MS}
        return shapes.Inspection(now=self._now, workers=alive, queues=self._queues())

    @described
    def state(self, workflows: Sequence[str]) -> shapes.StoreState:
        tasks = [task for moves in self._busy() for task in moves.run.tasks.values()]
        queued = [task.queued or 0 for task in tasks if task.s == "q"]
        lines = {}
        for name in workflows:
            runs = [row for row in self._rows("runs").values() if row["state"]["workflow"] == name]
            newest = max((row["state"] for row in runs), key=lambda s: (s["created"], s["id"]), default=None)
            success = self._rows("successes").get(name)
            lines[name] = shapes.WorkflowState(
                status=WORD[newest.get("s", "q")] if newest else None,
                last_run=newest["id"] if newest else None,
                last_success_at=time_text(success["at"]) if success else None,
                active=sum(not row["ended"] for row in runs),
            )
        alive = sum(row["at"] >= self._now - LEASE_MS for row in self._rows("workers").values())
        oldest = (self._now - min(queued)) / 1000 if queued else None
        return shapes.StoreState(queued=len(queued), oldest_queued_s=oldest, workers=alive, workflows=lines)


def _token(id_: str, row: Mapping[str, Any]) -> AccessToken:
    return tokens.token(id_, row["created"], row["expires"], row["used"], row["facts"])


def _made_at(run_id: str) -> int:
    """Return the ms that a UUIDv7 was made at (RFC 9562, section 5.7)."""
    try:
        return int(run_id[:8] + run_id[9:13], 16)
    except ValueError:
        return 0
