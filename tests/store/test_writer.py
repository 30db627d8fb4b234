"""Group commit on the real file: what one command does to its neighbours, to its caller and to the process."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from halfmsg.coordinator.env import Env
from halfmsg.coordinator.errors import Problem
from halfmsg.coordinator.settings import Settings
from halfmsg.coordinator.store import failpoints
from halfmsg.coordinator.store.sqlite.backend import SqliteBackend
from halfmsg.coordinator.store.writer import GROUP_CALLS_MAX, Writer
from tests.support.clock import ManualClock
from tests.support.serving import eventually

INSERT = "INSERT INTO audit (at, actor, act, target, reason) VALUES (0, '', '', ?, '')"


class Bench:
    """A writer over a file, what it told, and a gate that holds its thread so that a test can fill one group."""

    def __init__(self, path: Path, *, calls_max: int = 100, bytes_max: int = 10_000) -> None:
        self.path = path
        self.clock = ManualClock()
        self.events: list[tuple[Any, ...]] = []
        self.groups: list[int] = []
        self.broken: list[BaseException] = []
        self.stored_when_told: list[list[str]] = []
        self.backend = SqliteBackend(path, env=Env(Settings()), synchronous="FULL", now_ms=0)
        self.writer = Writer(
            self.backend, self.clock, calls_max=calls_max, bytes_max=bytes_max, on_durable=self._told,
            on_group=lambda calls, s: self.groups.append(calls), on_broken=self.broken.append,
        )  # fmt: skip

    def _told(self, events: list[tuple[Any, ...]]) -> None:
        self.events += events
        self.stored_when_told.append(self.stored())

    def stored(self) -> list[str]:
        """What another process reads now, in order."""
        conn = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            return [row[0] for row in conn.execute("SELECT target FROM audit ORDER BY id")]
        finally:
            conn.close()

    def hold(self) -> threading.Event:
        """The writer's thread waits until the event is set; what is submitted meanwhile is one group."""
        gate, reached = threading.Event(), threading.Event()

        def wait() -> None:
            reached.set()
            gate.wait(20)

        self.held = asyncio.ensure_future(self.writer.outside(wait))
        self._reached = reached
        return gate

    async def holds(self) -> threading.Event:
        gate = self.hold()
        await eventually(self._reached.is_set, "the writer's thread at the gate")
        return gate


def write(tx: Any, now: int, name: str) -> str:
    tx.run(INSERT, name)
    tx.emit(("wrote", name))
    return name


def refuse_first(tx: Any, now: int, name: str) -> None:
    tx.emit(("refused", name))
    raise Problem("bad_request", name)


def refuse_after(tx: Any, now: int, name: str) -> None:
    write(tx, now, name)
    raise Problem("state_changed", name)


def crash_after(tx: Any, now: int, name: str) -> None:
    write(tx, now, name)
    raise KeyError(name)


def return_refusal(tx: Any, now: int, name: str) -> Problem:
    write(tx, now, name)
    return Problem("decided_otherwise", name)


def is_problem(code: str) -> Callable[[Any], bool]:
    return lambda result: isinstance(result, Problem) and result.code == code


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    one = Bench(tmp_path / "store.db")
    yield one
    await one.writer.stop()


async def together(bench: Bench, *calls: tuple[Any, str]) -> list[Any]:
    """Each call a job of its own, all in one group."""
    gate = await bench.holds()
    futures = [bench.writer.submit((call,)) for call in calls]
    gate.set()
    return [(await future)[0] for future in futures]


async def test_p3_answer_means_stored(bench: Bench) -> None:
    """When a call returns another process reads what it wrote."""
    assert await bench.writer.call(write, "a") == "a"
    assert bench.stored() == ["a"]


async def test_p3_nobody_is_answered_before_the_commit_has_returned(bench: Bench) -> None:
    """While COMMIT has not begun no answer and no event is out, however long it takes; after it both are."""
    reached, go = threading.Event(), threading.Event()

    def wait(_: str) -> None:
        reached.set()
        go.wait(20)

    failpoints.arm("applied@1", act=wait)
    try:
        answer = bench.writer.submit(((write, "a"),))
        await eventually(reached.is_set, "the writer's thread before its COMMIT")
        await _turns()
        assert (answer.done(), bench.events, bench.stored()) == (False, [], [])
        go.set()
        assert await answer == ["a"]
    finally:
        go.set()
        failpoints.arm("")
    assert bench.stored() == ["a"]


async def _turns() -> None:
    """Whatever a thread had asked of this loop has been done."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_waits_is_one_group(bench: Bench) -> None:
    """Twenty jobs that came while the writer was busy are one COMMIT, in the order they came."""
    names = [str(i) for i in range(20)]
    assert await together(bench, *((write, name) for name in names)) == names
    assert bench.groups == [1, 20]
    assert bench.stored() == names


async def test_group_is_bounded(tmp_path: Path) -> None:
    """What is past the limit of a group is the next one."""
    bench = Bench(tmp_path / "store.db", calls_max=10_000)
    gate = await bench.holds()
    futures = [bench.writer.submit(((write, "x"),) * 500) for _ in range(6)]
    gate.set()
    await asyncio.gather(*futures)
    assert bench.groups == [1, GROUP_CALLS_MAX, 1_000]
    await bench.writer.stop()


@pytest.mark.parametrize("bad", [refuse_first, refuse_after, crash_after])
@pytest.mark.parametrize("at", [0, 1, 2])
async def test_p9_failing_command_never_fails_its_neighbours(bench: Bench, bad: Any, at: int) -> None:
    """Wherever it stands, and whether it had written or not: it alone is undone and answered, the others are stored in order."""
    calls = [(write, "a"), (write, "b")]
    calls.insert(at, (bad, "bad"))
    results = await together(bench, *calls)
    code = {refuse_first: "bad_request", refuse_after: "state_changed", crash_after: "internal"}[bad]
    assert is_problem(code)(results.pop(at))
    assert results == bench.stored() == ["a", "b"]
    assert bench.events == [("wrote", "a"), ("wrote", "b")]


async def test_many_failing_commands_in_one_group(bench: Bench) -> None:
    """Every second one fails after its write: each is redone without, and each keeps its own answer."""
    calls = [(refuse_after if i % 2 else write, str(i)) for i in range(20)]
    results = await together(bench, *calls)
    assert [result if i % 2 == 0 else result.detail for i, result in enumerate(results)] == [str(i) for i in range(20)]
    assert bench.stored() == [str(i) for i in range(0, 20, 2)]


async def test_calls_of_one_job_run_in_order_and_fail_alone(bench: Bench) -> None:
    """Ops of one batch are not one transaction; each has its result, in its place."""
    first, bad, last = await bench.writer.submit(((write, "a"), (refuse_after, "b"), (write, "c")))
    assert (first, bad.code, last) == ("a", "state_changed", "c")
    assert bench.stored() == ["a", "c"]


async def test_p4_returned_refusal_keeps_what_it_noted(bench: Bench) -> None:
    """A Problem that is returned, not raised, is stored with what it listed, and its caller is refused."""
    with pytest.raises(Problem, match="decided_otherwise"):
        await bench.writer.call(return_refusal, "conflict")
    assert bench.stored() == ["conflict"]


async def test_events_come_after_the_commit(bench: Bench) -> None:
    """When an event is told, another process already reads what it is about."""
    await together(bench, (write, "a"), (write, "b"))
    assert bench.stored_when_told == [["a", "b"]]


async def test_p3_cancelled_caller_does_not_cut_the_transaction(bench: Bench) -> None:
    """Cancelling loses the answer: the command is stored, its neighbours too, and the writer goes on."""
    gate = await bench.holds()
    caller = asyncio.ensure_future(bench.writer.call(write, "cancelled"))
    neighbour = asyncio.ensure_future(bench.writer.call(write, "neighbour"))
    await asyncio.sleep(0)
    caller.cancel()
    gate.set()
    assert await neighbour == "neighbour"
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert bench.stored() == ["cancelled", "neighbour"]
    assert await bench.writer.call(write, "next") == "next"


async def test_p9_overloaded_at_the_door(tmp_path: Path) -> None:
    """Past the limit of commands prepare and submit are refused at once, the rest at twice the limit; what waits is stored."""
    bench = Bench(tmp_path / "store.db", calls_max=10)
    gate = await bench.holds()
    futures = [bench.writer.submit(((write, str(i)),), essential=False) for i in range(9)]
    with pytest.raises(Problem, match="overloaded"):
        bench.writer.submit(((write, "refused"),), essential=False)
    futures += [bench.writer.submit(((write, "decision"),)) for _ in range(10)]
    with pytest.raises(Problem, match="overloaded"):
        bench.writer.submit(((write, "refused"),))
    gate.set()
    await asyncio.gather(*futures)
    assert len(bench.stored()) == 19 and "refused" not in bench.stored()
    await bench.writer.submit(((write, "again"),), essential=False)
    await bench.writer.stop()


async def test_p9_overloaded_by_bytes(tmp_path: Path) -> None:
    """Bodies that wait are counted, and given back when they are stored."""
    bench = Bench(tmp_path / "store.db", bytes_max=100)
    gate = await bench.holds()
    waiting = bench.writer.submit(((write, "a"),), weight=100, essential=False)
    with pytest.raises(Problem, match="overloaded"):
        bench.writer.submit(((write, "b"),), weight=1, essential=False)
    gate.set()
    await waiting
    await bench.writer.submit(((write, "c"),), weight=100, essential=False)
    assert bench.stored() == ["a", "c"]
    await bench.writer.stop()


async def test_clock_that_goes_back_does_not(bench: Bench) -> None:
    """`now` of a transaction never goes back, whatever the clock says (R19)."""
    first = await bench.writer.call(lambda tx, now, _: now, None)
    bench.clock.advance(-60)
    assert await bench.writer.call(lambda tx, now, _: now, None) == first


async def test_p9_full_disk_refuses_and_goes_on(bench: Bench) -> None:
    """No page left: storage_full for the whole group, nothing of it stored, reads go on; with room again all goes on."""
    await bench.writer.call(write, "before")

    def limit(pages: int) -> Callable[[], Any]:
        return lambda: bench.backend._conn.execute(f"PRAGMA max_page_count = {pages}").fetchone()

    await bench.writer.outside(limit(1))  # SQLite takes the size that the file has
    big = lambda tx, now, name: write(tx, now, name * 100_000)  # noqa: E731
    results = await together(bench, (write, "small"), (big, "big"), (write, "other"))
    assert [result.code for result in results] == ["storage_full"] * 3
    assert bench.stored() == ["before"] and bench.broken == []
    assert [event for event in bench.events if event[1] != "before"] == []
    await bench.writer.outside(limit(1_000_000))
    assert await bench.writer.call(write, "after") == "after"
    assert bench.stored() == ["before", "after"]


async def test_p3_broken_store_stops(bench: Bench) -> None:
    """An I/O error: the group is refused, the process is told once, and nothing is written any more."""

    def fail(tx: Any, now: int, _: None) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error

    results = await together(bench, (write, "a"), (fail, "x"), (write, "b"))
    assert [result.code for result in results] == ["storage_unavailable"] * 3
    await eventually(lambda: bench.broken, "on_broken")
    with pytest.raises(Problem, match="storage_unavailable"):
        await bench.writer.call(write, "later")
    assert bench.stored() == [] and len(bench.broken) == 1 and bench.events == []


async def test_p3_error_of_a_commit_has_an_unknown_outcome(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A COMMIT that fails is never called a failure of the command: outcome_unknown, and the process stops (R24)."""
    flush = bench.backend.tx.flush

    def fail() -> None:
        flush()
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise error

    monkeypatch.setattr(bench.backend.tx, "flush", fail)
    with pytest.raises(Problem, match="outcome_unknown"):
        await bench.writer.call(write, "a")
    await eventually(lambda: bench.broken, "on_broken")


async def test_p3_stop_finishes_what_is_queued(tmp_path: Path) -> None:
    """Stopping refuses newcomers and stores what was let in."""
    bench = Bench(tmp_path / "store.db")
    gate = await bench.holds()
    futures = [bench.writer.submit(((write, str(i)),)) for i in range(5)]
    stopping = asyncio.ensure_future(bench.writer.stop())
    await asyncio.sleep(0)
    with pytest.raises(Problem, match="draining"):
        bench.writer.submit(((write, "late"),))
    gate.set()
    await stopping
    assert [(await future)[0] for future in futures] == bench.stored() == ["0", "1", "2", "3", "4"]


async def test_failing_maintenance_fails_alone(bench: Bench) -> None:
    """A checkpoint that fails is an answer to its caller, no end of the store."""

    def bad() -> None:
        raise OSError("no")

    with pytest.raises(Problem, match="internal"):
        await bench.writer.outside(bad)
    await bench.writer.outside(bench.backend.checkpoint)
    assert await bench.writer.call(write, "a") == "a"


async def test_p3_maintenance_that_finds_the_disk_broken_stops(bench: Bench) -> None:
    """An I/O error of a checkpoint is one of the store: a later sync may lie about it. A full disk is not."""

    def fail(code: int) -> None:
        error = sqlite3.OperationalError("of the disk")
        error.sqlite_errorcode = code
        raise error

    with pytest.raises(Problem, match="storage_full"):
        await bench.writer.outside(lambda: fail(sqlite3.SQLITE_FULL))
    assert await bench.writer.call(write, "a") == "a"
    with pytest.raises(Problem, match="storage_unavailable"):
        await bench.writer.outside(lambda: fail(sqlite3.SQLITE_IOERR_FSYNC))
    await eventually(lambda: bench.broken, "on_broken")
    with pytest.raises(Problem, match="storage_unavailable"):
        await bench.writer.call(write, "later")
    assert bench.stored() == ["a"] and len(bench.broken) == 1
