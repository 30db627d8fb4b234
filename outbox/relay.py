"""After the local commit: tell the coordinator (R2). It commits what was prepared and submits what was written as rows.

Nothing here is needed for safety: whatever it does not say, the check-back asks. Two relays on one database only repeat each other
(submit is idempotent, order comes from numbers); the lanes split the work between them and keep no promise.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import Any, Final

from msgspec import Struct

from halfmsg.txclient import ApiError, Busy, Client, HalfmsgError, TransportError

from . import _clock, fence
from .answering import is_locked
from .effects import Steps
from .fence import Fate, Unsent
from .home import Home
from .tables import LANES, Tables

log = logging.getLogger("halfmsg.outbox")

SUBMITS_MAX: Final = 200
COMMITS_MAX: Final = 500
REMEMBERED_MAX: Final = 100_000
BYTES_MAX: Final = 4 * 1024 * 1024
ROW_BYTES: Final = 500
SLOW_LINE_BYTES_S: Final = 50_000
"""An answer that comes too late is no answer, and the row goes again: on a slower line than this a full pass would never end."""
POLL_FIRST_S: Final = 0.01
POLL_MAX_S: Final = 1.0
LANE_LEASE_MS: Final = 3_000
LANE_CLOCKS_MS: Final = 10 * LANE_LEASE_MS
"""A claim that ends later than this was made by a host whose clock is wrong: it is no claim, else its rows would wait for that clock (P10)."""
AGAIN: Final = frozenset(
    {
        "stale_mark", "no_way_to_ask", "source_frozen", "state_changed", "unauthenticated", "forbidden", "group_not_found", "not_found",
        "wrong_source", "producer_not_found",
    }
)  # fmt: skip
"""Refusals that are repeated like a time-out (R23), and those of this relay's own name, which say nothing of a row; any other 4xx sets it aside."""


class Report(Struct):
    """What one pass did."""

    committed: int = 0
    submitted: int = 0
    refused: int = 0
    waiting: int = 0


class Relay:
    def __init__(self, client: Client, producer: str, home: Home, source: bytes) -> None:
        self._client, self._producer, self._home, self._source = client, producer, home, source
        self._owner = os.urandom(16)
        self._owned: dict[int, int] = {}
        self._halves: dict[bytes, float] = {}
        self._after = fence.FIRST
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._pause_s = POLL_FIRST_S
        self._told: dict[str, float] = {}
        self.totals = Report()

    # --- told by the outbox, from any thread ---

    def expect(self) -> None:
        """Rows were just written somewhere: look soon, but they are there only after the local commit."""
        self._poke()

    def wake(self) -> None:
        """Rows are committed: look now."""
        self._poke()

    def remember(self, id: bytes) -> None:
        """A prepared one whose block has ended. It is forgotten once it is told, or when its first check-back has it."""
        if len(self._halves) < REMEMBERED_MAX:
            self._halves[id] = _clock.monotonic()
        self._poke()

    def _poke(self) -> None:
        """Also ends a pause of up to 1 s that had begun before there was anything to expect."""
        self._pause_s = POLL_FIRST_S
        try:
            self._loop.call_soon_threadsafe(self._wake.set)
        except RuntimeError:
            log.debug("the relay's loop is gone; the next relay takes over")

    # --- the loop ---

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                report = await self.tick()
                busy = report.committed + report.submitted > 0
            except HalfmsgError as error:
                log.debug("relay: %s", error)
                busy = False
            except Exception:
                log.exception("relay: a pass failed; it is tried again")
                busy = False
            self._pause_s = POLL_FIRST_S if busy else min(self._pause_s * 2, POLL_MAX_S)
            if not busy:
                await self._rest()

    async def _rest(self) -> None:
        try:
            async with asyncio.timeout(self._pause_s):
                await self._wake.wait()
        except TimeoutError:
            return
        finally:
            self._wake.clear()

    async def tick(self) -> Report:
        """One pass: commits of prepared ones, then rows that wait. What a cancelled one has done counts in the totals too."""
        report = Report()
        try:
            await self._commit_halves(report)
            await self._submit_rows(report)
        finally:
            for name in Report.__struct_fields__:
                setattr(self.totals, name, getattr(self.totals, name) + getattr(report, name))
        return report

    async def drain(self, timeout_s: float) -> int:
        """Hand over what is committed, at most `timeout_s`; gives how many row sets are left for the next relay."""
        deadline = _clock.monotonic() + timeout_s
        left = await self._home.run(_count(self._home.tables))
        while (left or self._halves) and _clock.monotonic() < deadline:
            report = Report()
            try:
                async with asyncio.timeout(deadline - _clock.monotonic()):  # an op has a longer one; to repeat it is harmless
                    report = await self.tick()
            except Exception as error:
                log.warning("relay: %s", str(error) or "no answer in the time left")
            left = await self._home.run(_count(self._home.tables))
            if not report.committed + report.submitted and (left or self._halves):
                await self._rest()
        return left

    async def release_lanes(self) -> None:
        if self._owned:
            await self._home.run(fence.all_of([self._home.tables.sql("free_lanes", self._owner)]))
            self._owned.clear()

    # --- prepared ones ---

    async def _commit_halves(self, report: Report) -> None:
        ids = list(self._halves)[:COMMITS_MAX]
        if not ids:
            return
        fates = await self._home.run(_fates(self._home.tables, ids))
        decided = [(id, fate) for id, fate in zip(ids, fates, strict=True) if fate.verdict is not None]
        now = _clock.monotonic()
        for id, fate in zip(ids, fates, strict=True):
            if fate.verdict is None and now - self._halves[id] > FORGET_AFTER_S:
                del self._halves[id]  # the check-back has it
        results = await asyncio.gather(*(self._tell(id, fate) for id, fate in decided), return_exceptions=True)
        for (id, _), result in zip(decided, results, strict=True):
            if isinstance(result, TransportError | Busy):
                report.waiting += 1
            else:
                self._halves.pop(id, None)
                report.committed += 1
                if isinstance(result, BaseException):
                    log.error("relay: %s is committed here, and the coordinator says %s", fence.id_text(id), result)
        _raise_cancelled(results)

    async def _tell(self, id: bytes, fate: Fate) -> None:
        op: dict[str, Any] = {"id": fence.id_text(id), "producer": self._producer, "source": self._source.hex()}
        if fate.verdict == fence.COMMITTED:
            op |= {"op": "commit", "digest": fate.digest.hex(), "numbers": list(fate.numbers)}
        else:
            op |= {"op": "rollback", "reason": "the producer's fence says rolled back"}
        await self._client.op(op)

    # --- rows ---

    async def _submit_rows(self, report: Report) -> None:
        waiting = await self._closed(await self._mine(await self._next_rows()))
        if not waiting:
            return
        size = sum(row.body_bytes + ROW_BYTES for row in waiting)
        timeout_s = self._client.timeout_s + size / SLOW_LINE_BYTES_S
        results = await asyncio.gather(*(self._hand_over(row, timeout_s) for row in waiting), return_exceptions=True)
        await self._mark(waiting, results, report)
        if all(isinstance(result, HalfmsgError) and not is_refusal(result) for result in results):
            await self.release_lanes()  # what only this relay is refused, or cannot reach, another one may hand over
        _raise_cancelled(results)

    async def _next_rows(self) -> list[Unsent]:
        """Walk on past what was just tried, and begin anew at the end: 200 that must wait (a topic without a group) hold up nobody else."""
        after, self._after = self._after, fence.FIRST
        rows = await self._home.run(fence.read_unsent(self._home.tables, SUBMITS_MAX, BYTES_MAX, after))
        if not rows and after != fence.FIRST:
            rows = await self._home.run(fence.read_unsent(self._home.tables, SUBMITS_MAX, BYTES_MAX))
        if len(rows) == SUBMITS_MAX or sum(row.body_bytes for row in rows) >= BYTES_MAX:
            self._after = (rows[-1].mark, rows[-1].id)
        return rows

    async def _closed(self, rows: list[Unsent]) -> list[Unsent]:
        """Blocks that were committed inside are closed before they are handed over; one that is still at work waits for the next pass."""
        found: list[Unsent] = []
        for row in rows:
            closed: Unsent | None = row
            if row.digest is None:
                try:
                    closed = await self._home.run(fence.close_left(self._home.tables, row), transaction=True)
                except Exception as error:
                    if not is_locked(error) and not fence.is_damage(error):
                        raise
                    closed = None if is_locked(error) else row  # damaged: `_hand_over` says so
            if closed is not None:
                found.append(closed)
        return found

    async def _hand_over(self, row: Unsent, timeout_s: float) -> None:
        """Each row by itself, so that one that cannot even be read holds up nobody else. All of a pass share one line: their time is that of all."""
        try:
            op = self._submit(row)
        except Exception as error:
            raise _Unreadable(error) from error
        await self._client.op(op, timeout=timeout_s)

    def _submit(self, row: Unsent) -> dict[str, Any]:
        return {
            "op": "submit", "id": fence.id_text(row.id), "producer": self._producer, "source": self._source.hex(), "mark": row.mark,
            "digest": (fence.digest_of(row.rows) if row.digest is None else row.digest).hex(), "messages": row.messages(),
        }  # fmt: skip

    async def _mark(self, rows: Sequence[Unsent], results: Sequence[Any], report: Report) -> None:
        effects = []
        for row, result in zip(rows, results, strict=True):
            if not isinstance(result, BaseException):
                effects.append(self._home.tables.sql("sent", row.id))
                report.submitted += 1
            elif isinstance(result, HalfmsgError) and is_refusal(result):
                effects.append(self._home.tables.sql("refuse", result.code, row.id))
                report.refused += 1
                words = "relay: %s is set aside, %s: %s; mend that, then: halfmsg outbox retry URL"
                who = "it cannot be read" if isinstance(result, _Unreadable) else "the coordinator refuses it"
                log.error(words, fence.id_text(row.id), who, result)
            else:
                report.waiting += 1
                self._say_why(result)
        if effects:
            await self._home.run(fence.all_of(effects), transaction=True)

    def _say_why(self, error: BaseException) -> None:
        """A reason every ten minutes: a topic without a group may keep rows waiting for days, and the log is where people look first."""
        words, now = str(error), _clock.monotonic()
        self._told = {each: at for each, at in self._told.items() if now - at < SAID_AGAIN_S}
        if now - self._told.get(words, -SAID_AGAIN_S) >= SAID_AGAIN_S and len(self._told) < REASONS_MAX:
            self._told[words] = now
            log.warning("relay: rows wait, and are tried again: %s", words)

    async def _mine(self, rows: list[Unsent]) -> list[Unsent]:
        """Rows of lanes that this relay owns, after claiming those that are free."""
        if not rows:
            return rows
        now = _clock.wall_ms()
        wanted = {lane_of(row.id) for row in rows}
        lacking = [lane for lane in sorted(wanted) if self._owned.get(lane, 0) < now + LANE_LEASE_MS // 3]
        if lacking:
            got = await self._home.run(_claim(self._home.tables, self._owner, lacking, now), transaction=True)
            self._owned |= dict.fromkeys(got, now + LANE_LEASE_MS)
        return [row for row in rows if self._owned.get(lane_of(row.id), 0) > now]


FORGET_AFTER_S: Final = 30.0
SAID_AGAIN_S: Final = 600.0
REASONS_MAX: Final = 100
"""Of reasons that are told; a text that changes each time must fill neither memory nor log."""


class _Unreadable(HalfmsgError):
    """A row of ours that is no message (any more)."""

    def __init__(self, error: Exception) -> None:
        super().__init__("unreadable", f"{type(error).__name__}: {error}")


def is_refusal(error: HalfmsgError) -> bool:
    """Is it said of this very content, for ever (R23)? A 5xx, a token that is not taken, a refusal of the connection are not."""
    if not isinstance(error, ApiError):
        return isinstance(error, _Unreadable)
    return 400 <= error.status < 500 and not isinstance(error, Busy) and error.code not in AGAIN


def lane_of(id: bytes) -> int:
    return id[-1] % LANES


def _raise_cancelled(results: Sequence[Any]) -> None:
    for result in results:
        if isinstance(result, asyncio.CancelledError):
            raise result
        if isinstance(result, BaseException) and not isinstance(result, HalfmsgError):
            raise result


def _fates(tables: Tables, ids: Sequence[bytes]) -> Steps[list[Fate]]:
    found = []
    for id in ids:
        found.append((yield from fence.read_fate(tables, id)))
    return found


def _claim(tables: Tables, owner: bytes, lanes: Sequence[int], now: int) -> Steps[list[int]]:
    got = []
    for lane in lanes:
        rows = yield tables.sql("claim_lane", owner, now + LANE_LEASE_MS, lane, owner, now, now + LANE_CLOCKS_MS)
        got += [row[0] for row in rows]
    return got


def _count(tables: Tables) -> Steps[int]:
    rows = yield tables.sql("unsent", *fence.FIRST, 1_000)
    return len(rows)
