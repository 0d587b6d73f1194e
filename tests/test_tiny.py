"""Only TinyStore: its folder survives kills, is shared by processes, and says what is wrong with it."""

from __future__ import annotations

import errno
import itertools
import os
import random
import select
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import msgspec
import pytest

from director.engine import new_run_id
from director.errors import NotFound, SettingsError, StoreUnavailable
from director.store import files, shapes, tiny
from director.store.files import INLINE_BYTES
from director.store.shapes import LEASE_MS, Dedupe, Filter, Outcome
from director.store.tiny import TinyStore
from tests.contract.driving import begin, finish, get, new, plan_of, queued, start, succeed

KILLS = 30
LARGE = "x" * (INLINE_BYTES + 1)


def child(work: Callable[[IO[str]], None]) -> tuple[int, int]:
    """Fork; the child writes lines while it works, and leaves with 0. Return its pid and the pipe's end."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "w", buffering=1) as pipe:
                work(pipe)
            status = 0
        finally:
            os._exit(status)  # nothing of pytest's runs twice
    os.close(writing)
    return pid, reading


def lines_of(reading: int) -> list[str]:
    with os.fdopen(reading) as pipe:
        return pipe.read().splitlines()


def large_files(folder: Path) -> set[str]:
    return {file.name for file in (folder / "large").iterdir()}


def named_files(folder: Path) -> set[str]:
    state = msgspec.json.decode((folder / "state.json").read_bytes())
    values = [value for row in state["runs"].values() for value in row["data"].values()]
    return {value["file"] for value in values if isinstance(value, dict)}


# Kills ----------------------------------------------------------------------------------------


def write_for_ever(folder: Path, pipe: IO[str]) -> None:
    """Start runs and take them to their ends; say what has been answered."""
    store = TinyStore(folder, keep_runs=5)
    while True:
        order = new(plan_of(["A", ("B", "C")], failure_hook="BAD"), payload={"text": LARGE})
        store.do(store.start(order))
        print("started", order.run_id, file=pipe)
        for number in range(3):
            begun = begin(store, order.run_id, number)
            assert begun is not None
            assert finish(store, begun, LARGE if number else number).accepted
            print("finished", order.run_id, number, file=pipe)
        store.do(store.prune({"": shapes.Keep(runs=3)}))


def check(folder: Path, said: list[str]) -> None:
    """Everything that was answered is there, and everything that is there makes sense."""
    store = TinyStore(folder, keep_runs=5)
    runs = {run.id: get(store, run.id) for run in store.do(store.list(Filter(limit=1000)))[0]}
    for line in said[-8:]:  # older runs are pruned
        word, run_id, *number = line.split()
        task = runs[run_id].tasks[int(number[0])] if word == "finished" else None
        assert task is None or task.status == "succeeded"
    for run in runs.values():
        done = [task for task in run.tasks if task.status == "succeeded"]
        assert len(done) == run.progress.succeeded
        assert (run.status == "succeeded") == (len(done) == 3)
        assert all(msgspec.json.decode(task.result) == (LARGE if task.number else 0) for task in done)
        assert msgspec.json.decode(run.payload) == {"text": LARGE}
    ended = [run for run in runs.values() if run.status == "succeeded"]
    assert len(ended) <= 5
    store.do(store.sweep())
    assert large_files(folder) == named_files(folder), "what a kill left without a name is removed"


def test_a_folder_survives_kill_9_at_any_instruction(tmp_path):
    rng = random.Random(9)
    folder = tmp_path / "data"
    for _ in range(KILLS):
        pid, reading = child(lambda pipe: write_for_ever(folder, pipe))
        said = b""
        while said.count(b"\n") < 1 + rng.randrange(12):
            said += os.read(reading, 4096)
        select.select([], [], [], rng.random() * 0.004)  # anywhere within a call, not after an answer
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        said += b"".join(iter(lambda fd=reading: os.read(fd, 65536), b""))
        os.close(reading)
        check(folder, [line for line in said.decode().split("\n")[:-1] if line])


FULL = {
    "a large file": ("fsync", 1, False),
    "its folder": ("fsync", 2, False),
    "state.json": ("fsync", 3, False),
    "its folder, after the rename": ("fsync", 4, True),
    "a large file's name": ("replace", 1, False),
    "state.json's name": ("replace", 2, False),
}


@pytest.mark.parametrize(("what", "nth", "written"), FULL.values(), ids=FULL)
def test_a_full_disk_at_any_step_is_said_and_asking_again_is_safe(
    tmp_path, monkeypatch, clock, what, nth, written
):
    store = TinyStore(tmp_path, keep_runs=1, clock=clock)
    old = start(store, ["A"])
    finish(store, begin(store, old, 0), LARGE)
    clock.pass_s(1)
    run_id = start(store, ["A"])
    begun = begin(store, run_id, 0)
    before = [get(store, old), get(store, run_id)]
    home = files.os if what == "fsync" else files.Path
    real, count = getattr(home, what), itertools.count(1)

    def full(*args):
        if next(count) == nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(home, what, full)
        with pytest.raises(StoreUnavailable, match=r"No space left on device.*all the same.*free space"):
            finish(store, begun, LARGE)
    for reader in (store, TinyStore(tmp_path, clock=clock)):
        if written:
            assert get(reader, run_id).status == "succeeded"
        else:
            assert [get(reader, old), get(reader, run_id)] == before
    assert finish(store, begun, LARGE).accepted
    assert get(store, run_id).status == "succeeded"
    with pytest.raises(NotFound):
        get(store, old)
    store.do(store.sweep())
    assert large_files(tmp_path) == named_files(tmp_path)


# Several processes ------------------------------------------------------------------------------


def test_four_processes_write_at_once_and_nothing_is_lost(tmp_path):
    shared = [start(TinyStore(tmp_path), [tuple("ABCDEFGH"), "Z"]) for _ in range(2)]

    def work(pipe: IO[str]) -> None:
        store = TinyStore(tmp_path)
        for _ in range(10):
            run_id = start(store, ["A", "B"])
            succeed(store, run_id, 0, 1)
            print("made", run_id, file=pipe)
        for run_id in shared:
            for number in range(8):
                begun = begin(store, run_id, number)
                if begun:
                    assert finish(store, begun, number).accepted
                    print("won", run_id, number, file=pipe)

    children = [child(work) for _ in range(4)]
    said = [line for _, reading in children for line in lines_of(reading)]
    assert [os.waitpid(pid, 0)[1] for pid, _ in children] == [0] * 4
    store = TinyStore(tmp_path)
    runs, following = store.do(store.list(Filter(limit=100)))
    assert following is None
    made = {line.split()[1] for line in said if line.startswith("made")}
    assert len(made) == 40
    assert {run.id for run in runs if run.status == "succeeded"} == made
    won = sorted(line for line in said if line.startswith("won"))
    assert won == sorted(f"won {run_id} {number}" for run_id in shared for number in range(8)), "once each"
    for run_id in shared:
        assert begin(store, run_id, 8).results == tuple(b"%d" % number for number in range(8))


def test_one_delivery_sent_to_four_processes_starts_one_run(tmp_path):
    def work(pipe: IO[str]) -> None:
        store = TinyStore(tmp_path)
        order = new(plan_of(["A"]), dedupe=Dedupe(key="github:1", ttl_s=60))
        print(store.do(store.start(order)).run_id, file=pipe)

    TinyStore(tmp_path)
    children = [child(work) for _ in range(4)]
    assert len({line for _, reading in children for line in lines_of(reading)}) == 1
    assert [os.waitpid(pid, 0)[1] for pid, _ in children] == [0] * 4
    assert len(queued(TinyStore(tmp_path))) == 1


def test_a_file_that_looks_the_same_is_read_again(tmp_path, clock):
    """Another process's second write may get the inode number, size and (coarse) time that one remembers."""
    mine, other = TinyStore(tmp_path, clock=clock), TinyStore(tmp_path, clock=clock)
    run_id = start(mine, ["A"])
    begun = begin(mine, run_id, 0)
    before = (tmp_path / "state.json").stat()
    for _ in range(6):
        clock.pass_s(LEASE_MS / 1000 / 2)
        other.do(other.renew([(begun.ref, begun.token)]))
        os.utime(tmp_path / "state.json", ns=(before.st_mtime_ns, before.st_mtime_ns))
        after = (tmp_path / "state.json").stat()
        assert after.st_size == before.st_size
        assert (after.st_ino, after.st_mtime_ns) != (before.st_ino, before.st_mtime_ns)
    assert mine.do(mine.sweep()).lost == (), "renewed a moment ago"


# Housekeeping -----------------------------------------------------------------------------------


def test_the_runs_that_ended_longest_ago_are_removed_with_all_that_is_theirs(tmp_path, clock):
    store = TinyStore(tmp_path, keep_runs=3, clock=clock)
    long = start(store, ["LONG"])
    begun = begin(store, long, 0)
    ids = []
    for index in range(5):
        clock.pass_s(1)
        ids.append(start(store, [f"T{index}"]))
        finish(store, begin(store, ids[-1], 0), LARGE)
    finish(store, begun, LARGE)
    left = [run.id for run in store.do(store.list(Filter()))[0]]
    assert left == [ids[4], ids[3], long], "the oldest start has the newest end"
    assert large_files(tmp_path) == named_files(tmp_path)
    assert len(large_files(tmp_path)) == 3
    state = msgspec.json.decode((tmp_path / "state.json").read_bytes())
    assert set(state["plans"]) == {row["state"]["plan"] for row in state["runs"].values()}
    reader = TinyStore(tmp_path, clock=clock)
    assert get(reader, long).status == "succeeded"
    with pytest.raises(NotFound):
        get(reader, ids[0])


def test_what_is_underway_is_never_removed(tmp_path, clock):
    store = TinyStore(tmp_path, keep_runs=1, clock=clock)
    hooked = start(store, ["A"], success_hook="GOOD")
    waiting = start(store, ["A"])
    succeed(store, hooked, 0)
    for _ in range(3):
        clock.pass_s(1)
        succeed(store, start(store, ["A"]), 0)
    assert get(store, waiting).status == "queued"
    succeed(store, hooked, 1)
    assert len(store.do(store.list(Filter()))[0]) == 2


def test_a_relaunch_removes_large_results_that_run_again(tmp_path):
    store = TinyStore(tmp_path)
    built = plan_of(["A", "B"])
    order = new(built)
    store.do(store.start(order))
    finish(store, begin(store, order.run_id, 0), LARGE)
    store.do(store.cancel(order.run_id, "stop"))
    assert len(large_files(tmp_path)) == 1
    again = shapes.Relaunch(run_id=order.run_id, launch=1, token="t", plan=built, resets={0: 0, 1: 1})
    store.do(store.relaunch(again))
    assert large_files(tmp_path) == set()
    assert get(store, order.run_id).tasks[0].result is None


def test_reading_and_refused_calls_write_nothing(tmp_path):
    store = TinyStore(tmp_path)
    run_id = start(store, ["A"])
    begun = begin(store, run_id, 0)
    before = (tmp_path / "state.json").stat()
    for call in (
        *(store.get(run_id), store.list(Filter()), store.state(["w"]), store.plan(plan_of(["A"]).digest)),
        *(store.outbox(), store.task_options(), store.sweep()),
        *(store.begin(begun.ref, "another", "boot.2"), store.begin(begun.ref, begun.token, "boot.1")),
        *(store.hand_back("boot.2", True), store.finish(begun.ref, "another", Outcome(), "boot.1")),
    ):
        store.do(call)
    after = (tmp_path / "state.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_an_error_undoes_what_its_call_has_written(tmp_path):
    """No verb does so now; a later one that checks too late must not leave half of its changes."""
    store = TinyStore(tmp_path)
    run_id = start(store, ["A"])

    def half():
        store._put("runs", run_id, {"state": {}, "data": {}, "busy": False, "ended": True})
        store._put("new", "x", {})
        store._unnamed.append("y")
        raise NotFound("too late")

    with pytest.raises(NotFound, match="too late"):
        store.do(tiny.TinyCall(half))
    assert begin(store, run_id, 0).attempt == 1
    assert get(TinyStore(tmp_path), run_id).status == "running"
    assert "new" not in msgspec.json.decode((tmp_path / "state.json").read_bytes())


# What is wrong with the folder --------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_said_at_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        SettingsError, match=r"file/data cannot be written \(Not a directory\). Set DIRECTOR_DATA_DIR"
    ):
        TinyStore(tmp_path / "file" / "data")


def test_a_folder_that_may_not_be_written_is_said_at_start():
    """As somebody who is not root: root may write everywhere."""
    folder = Path(tempfile.mkdtemp())
    TinyStore(folder)

    def work(pipe: IO[str]) -> None:
        if os.getuid() == 0:
            os.setuid(65534)
        try:
            TinyStore(folder)
        except SettingsError as exc:
            print(exc, file=pipe)

    try:
        (folder / "lock").chmod(0o666)
        folder.chmod(0o555)
        pid, reading = child(work)
        assert lines_of(reading) == [
            f"{folder} cannot be written (Permission denied). Set DIRECTOR_DATA_DIR to a folder that can, "
            "or DIRECTOR_REDIS_URL to keep state in Redis."
        ]
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        folder.chmod(0o700)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '"runs"', '{"runs": 5}', '{"runs": {"x": 5}}', '{"runs": {"x": {}}}', "\x00\x00\x00"]
)
def test_a_file_that_is_not_ours_is_named_and_left_alone(tmp_path, text):
    store = TinyStore(tmp_path)
    start(store, ["A"])
    (tmp_path / "state.json").write_text(text)
    for reader in (store, TinyStore(tmp_path)):
        for call in (reader.get("x"), reader.start(new(plan_of(["A"]))), reader.sweep()):
            with pytest.raises(
                StoreUnavailable, match=r"state\.json is not what this service wrote .*put a backup"
            ):
                reader.do(call)
    assert (tmp_path / "state.json").read_text() == text
    (tmp_path / "state.json").unlink()
    assert start(store, ["A"]), "moved away: it starts afresh"


def test_a_document_that_is_not_ours_is_said(tmp_path):
    store = TinyStore(tmp_path)
    (tmp_path / "state.json").write_text(
        '{"runs": {"x": {"state": {"id": 5}, "data": {}, "busy": true, "ended": false}}}'
    )
    for call in (store.get("x"), store.sweep(), store.outbox()):
        with pytest.raises(StoreUnavailable, match=r"state\.json is not what this service wrote"):
            store.do(call)


@pytest.mark.parametrize("row", ["5", "{}", '{"entry": {}, "body": null}', '{"entry": {"secret": 5}, "body": 5}'])
def test_an_inbox_that_is_not_ours_is_said(tmp_path, row):
    store = TinyStore(tmp_path)
    text = f'{{"deliveries": {{"x": {row}}}}}'
    (tmp_path / "deliveries.json").write_text(text)
    for call in (store.delivery("x"), store.deliveries(shapes.DeliveryFilter()), store.record([])):
        with pytest.raises(StoreUnavailable, match=r"deliveries\.json is not what this service wrote"):
            store.do(call)
    assert (tmp_path / "deliveries.json").read_text() == text


def test_a_folder_that_goes_away_is_said(tmp_path):
    store = TinyStore(tmp_path / "data")
    start(store, ["A"])
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(StoreUnavailable, match=r"data cannot be read or written \(No such file or directory\)"):
        store.do(store.get(new_run_id()))


def test_the_folder_is_nobody_elses(tmp_path):
    """Payloads and bodies of deliveries are in it."""
    TinyStore(tmp_path / "data")
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0
