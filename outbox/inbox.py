"""The inbox (R6): take a message once, in the transaction of its effect. The kind follows from the topic; the user does not choose."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import logging
import os
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, Final, overload
from uuid import UUID

from halfmsg.txclient import Delivery, Reject, Retry, UsageError
from halfmsg.txclient._handlers import call_blocking, is_async
from halfmsg.txclient._internal import NotBegun

from . import _clock, fence, inbox_rules
from .adapters import adapter_of
from .effects import Abort, AsyncAdapter, Begin, Commit, Mark, Rows, Steps, SyncAdapter, Unmark, one, run_sync
from .errors import TransactionEnded
from .home import Home
from .inbox_rules import Claim
from .lent import Lent, LentAsync, LentSync, lent_on, run_on_async, run_on_sync
from .outbox import AwaitsExecute
from .tables import Tables

log = logging.getLogger("halfmsg.inbox")
LOCK_NOT_AVAILABLE: Final = "55P03"
KEEP_S: Final = 7 * 86_400.0
THREADS_MAX: Final = 1_000
"""As many handlers as a Consumer runs at once; each is a thread only while it runs."""


class Inbox:
    """Remembers what was done, in the database where it is done. `db`: where the consumer gets its transactions from."""

    def __init__(self, db: object, *, keep: float | timedelta = KEEP_S, tables: str = "halfmsg_") -> None:
        """Raises UsageError: bad_url, unknown_database, driver_missing, bad_name."""
        self._home = Home(db, tables)
        self._keep_s = keep.total_seconds() if isinstance(keep, timedelta) else float(keep)
        self._gates: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}
        self._gate = threading.Lock()
        self._threads: tuple[int, ThreadPoolExecutor] | None = None
        self._looks: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}
        self._look = threading.Lock()
        """One look at a time at what failed handlers left: many that fail at once must not take a second connection each."""

    @overload
    def claim(self, on: AwaitsExecute, delivery: Delivery, *, group: str | None = None) -> Coroutine[Any, Any, bool]: ...  # type: ignore[overload-overlap]
    @overload
    def claim(self, on: object, delivery: Delivery, *, group: str | None = None) -> bool: ...
    def claim(self, on: Any, delivery: Delivery, *, group: str | None = None) -> Any:
        """True: yours, do the work in this transaction. False: already done, just ack. Raises Retry(beyond_inbox) (R18)."""
        adapter = adapter_of(on)
        steps = self._claim(delivery, group or delivery.group)
        if not adapter.is_async:
            return run_on_sync(adapter, steps)
        lent = lent_on(adapter.conn)
        running = functools.partial(run_on_async, adapter, lent, steps)
        return running() if lent is None else lent.awaited(running)

    def _claim(self, delivery: Delivery, group: str) -> Steps[bool]:
        yield from fence.enter(self._home.tables, None)
        return (yield from self._claim_in(delivery, group))

    def _claim_in(self, delivery: Delivery, group: str) -> Steps[bool]:
        if delivery.sequence is not None and delivery.key is not None:
            return (yield from claim_ordered(self._home.tables, delivery, group))
        if delivery.age > self._keep_s:
            raise Retry(f"beyond_inbox: handed out first {delivery.age:.0f} s ago, and this inbox remembers {self._keep_s:.0f} s")
        return (yield from claim_unordered(self._home.tables, delivery, group, _clock.wall_ms()))

    # --- for Consumer ----------------------------------------------------------------------------------------------------------

    def check(self, handler: Any, /) -> None:
        """At decoration: a handler takes the message and a connection, of either colour."""
        try:
            inspect.signature(handler).bind(None, None)
        except TypeError as error:
            raise UsageError("wrong_colour", f"{handler!r} must take (message, connection), since this Consumer has an inbox: {error}") from error

    async def identity(self) -> str:
        """32 hex digits of this database: one inbox database a group (R29)."""
        return (await self._home.run(fence.read_meta(self._home.tables))).source.hex()

    async def run(self, delivery: Delivery, handler: Any, /) -> None:
        """Claim, handler, commit: one transaction. A duplicate returns without running; what the handler raises undoes all of it."""
        if is_async(handler):
            async with self._turn():
                await self._run_async(delivery, handler)
        else:
            context = contextvars.copy_context()
            await asyncio.get_running_loop().run_in_executor(self._pool(), context.run, self._run_sync, delivery, handler)

    def _pool(self) -> ThreadPoolExecutor:
        """Threads of our own: the loop's default pool has few, and what waits there for SQLite's gate would hold up name look-ups for all."""
        if self._threads is None or self._threads[0] != os.getpid():
            self._threads = os.getpid(), ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="halfmsg-inbox")
        return self._threads[1]

    def _turn(self) -> Any:
        """SQLite has one writer: wait in line here rather than by polling the file's lock."""
        if self._home.dialect != "sqlite":
            return contextlib.nullcontext()
        return self._gates.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(1))

    async def _run_async(self, delivery: Delivery, handler: Any) -> None:
        with _beginning():
            adapter = await self._home.take()
        whole = at_work = False
        lent = LentAsync(adapter.conn, adapter.dialect)
        lent.register()
        lent.accept()
        try:
            with _beginning():
                at_work = await adapter.run(self._open(delivery))
            if at_work:
                try:
                    await handler(delivery, adapter.conn)
                finally:
                    lent.end()
                await adapter.run(_still_open(adapter, lent))
            at_work = False  # an answer to COMMIT that is lost says nothing against the handler
            await adapter.run(one(Commit()))
            whole = True
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and (task := asyncio.current_task()) is not None and task.cancelling():
                raise  # not the handler's: this delivery is torn down
            claimed = await self._is_committed(delivery) if at_work else None
            whole = await self._undo(adapter)
            if claimed is None and whole and at_work:
                claimed = await adapter.run(is_claimed(self._home.tables, delivery))
            if (told := _told(error, claimed=bool(claimed))) is not error:
                raise told from error
            raise
        finally:
            lent.unregister()
            await self._home.give(adapter, broken=not whole, lent=True)

    async def _is_committed(self, delivery: Delivery) -> bool | None:
        """Did a handler that has failed commit the claim by itself? It may have begun anew behind that. Asked before the undo, over another
        connection: as long as the claim's own transaction is open nobody sees it, and no other delivery of this message can make it.

        None: ask after the undo. On SQLite, where a repeat waits at our gate until then, and locks may be in the way before; and where no
        connection is left. A repeat that another process does in that moment passes for a half of this one's, and is told as one.
        """
        if self._home.dialect == "sqlite":
            return None
        try:
            async with self._looks.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(1)):
                return await self._home.run(is_claimed(self._home.tables, delivery))
        except Exception:
            log.debug("inbox: what a failed handler left cannot be looked at", exc_info=True)
            return None

    async def _undo(self, adapter: AsyncAdapter) -> bool:
        """False: the connection is lost, which undoes it too; what the handler raised must not be hidden by that."""
        try:
            if adapter.dialect == "postgresql":
                await adapter.conn.rollback()
            else:
                await adapter.run(one(Abort()))
        except Exception:
            log.debug("inbox: a connection was lost under a handler", exc_info=True)
            return False
        return True

    def _run_sync(self, delivery: Delivery, handler: Any) -> None:
        with self._gate if self._home.dialect == "sqlite" else contextlib.nullcontext():
            with _beginning():
                adapter = self._home.take_sync()
            whole = at_work = False
            lent = LentSync(adapter.conn, adapter.dialect)
            lent.register()
            lent.accept()
            try:
                with _beginning():
                    at_work = run_sync(self._open(delivery), adapter)
                if at_work:
                    try:
                        call_blocking(handler, delivery, adapter.conn)
                    finally:
                        lent.end()
                    lent.run(_still_open(adapter, lent), adapter)  # behind a publish that another thread is at
                at_work = False  # an answer to COMMIT that is lost says nothing against the handler
                run_sync(one(Commit()), adapter)
                whole = True
            except (Exception, asyncio.CancelledError) as error:  # a thread is not cancelled: one that is raised here is the handler's
                claimed = self._is_committed_sync(delivery) if at_work else None
                whole = self._undo_sync(adapter)
                if claimed is None and whole and at_work:
                    claimed = run_sync(is_claimed(self._home.tables, delivery), adapter)
                if (told := _told(error, claimed=bool(claimed))) is not error:
                    raise told from error
                raise
            finally:
                lent.unregister()
                self._home.give_sync(adapter, broken=not whole, lent=True)

    def _is_committed_sync(self, delivery: Delivery) -> bool | None:
        if self._home.dialect == "sqlite":
            return None
        try:
            with self._look:
                return self._home.run_sync(is_claimed(self._home.tables, delivery))
        except Exception:
            log.debug("inbox: what a failed handler left cannot be looked at", exc_info=True)
            return None

    def _undo_sync(self, adapter: SyncAdapter) -> bool:
        try:
            if adapter.dialect == "postgresql":
                adapter.conn.rollback()
            else:
                run_sync(one(Abort()), adapter)
        except Exception:
            log.debug("inbox: a connection was lost under a handler", exc_info=True)
            return False
        return True

    def _open(self, delivery: Delivery) -> Steps[bool]:
        """Its errors cost no attempt: no handler has begun. A claim that waits for another's transaction (of a host that is gone, perhaps, which
        a server may notice after hours) gives its place back.
        """
        yield Begin()
        yield Mark()
        if self._home.dialect != "postgresql":
            return (yield from self._claim_in(delivery, delivery.group))
        yield self._home.tables.sql("claim_wait")
        mine = yield from self._claim_in(delivery, delivery.group)
        yield self._home.tables.sql("claim_waited")
        return mine

    async def aclose(self) -> None:
        threads, self._threads = self._threads, None
        if threads is not None and threads[0] == os.getpid():
            threads[1].shutdown(wait=False)
        await self._home.aclose()
        self._home.close_sync()


class _Ended(Exception):
    """The handler has ended its transaction by itself, and returned. `anew`: it has begun another, which is undone."""

    def __init__(self, *, anew: bool) -> None:
        super().__init__("handler_ended_transaction")
        self.anew = anew


def _is_open(adapter: Any) -> bool:
    conn = adapter.conn
    return bool(conn.in_transaction if adapter.dialect == "sqlite" else conn.info.transaction_status.name in ("INTRANS", "INERROR"))


def _still_open(adapter: Any, lent: Lent) -> Steps[None]:
    """The handler must have left the transaction open, else its effect and the claim were not one commit; with no publish that failed or runs."""
    lent.check_end()
    anew = _is_open(adapter)  # before the look: on a connection that begins by itself, it begins one
    try:
        yield Unmark()
    except TransactionEnded as error:
        raise _Ended(anew=anew) from error


def _told(error: BaseException, *, claimed: bool) -> BaseException:
    """What a failed delivery is, where its claim is `claimed`: committed by the handler itself."""
    if isinstance(error, _Ended):
        if claimed and not error.anew:  # all of it is committed: its repeat is a duplicate
            return UsageError("handler_ended_transaction", "the handler committed by itself; leave that to the Consumer")
        did = "committed by itself; what it did after that is undone" if claimed else "rolled back by itself; what it did after that may be done"
        # Delivered again the one would be acked unseen (P2), the other done once more (P6).
        return Reject(f"handler_ended_transaction: it {did}")
    if claimed:
        # The claim went with the handler's own commit: delivered again it would be a repeat, acked, and the rest of its effect gone unseen (P2).
        return Reject(f"handler_ended_transaction: it committed by itself and then failed; what came after its commit is undone: {error!r}")
    return error


@contextlib.contextmanager
def _beginning() -> Iterator[None]:
    """No handler has seen the message, so no attempt was made. Raises NotBegun where the database is away or locked; Retry, without cost,
    where another's transaction holds this one message; what the inbox itself says stands.
    """
    try:
        yield
    except (Retry, Reject, UsageError):
        raise
    except Exception as error:
        words = f"{type(error).__name__}: {error}"
        if getattr(error, "sqlstate", None) == LOCK_NOT_AVAILABLE:
            raise Retry(f"another transaction has this message: {words}", counts=False) from error
        raise NotBegun("inbox_away", words) from error


def claim_unordered(tables: Tables, delivery: Delivery, group: str, now_ms: int) -> Steps[bool]:
    """One row (group, generation, message). The count of the insert tells, never an error."""
    rows: Rows = yield tables.sql("inbox_put", group, delivery.generation, _message_key(delivery.id), now_ms)
    return bool(rows)


def _message_key(id: str) -> bytes:
    uuid, _, index = id.rpartition("-")
    return UUID(uuid).bytes + int(index).to_bytes(2, "big")


def is_claimed(tables: Tables, delivery: Delivery) -> Steps[bool]:
    """Has its claim been committed? Asked outside the transaction that makes it."""
    if delivery.key is None or delivery.sequence is None:
        rows: Rows = yield tables.sql("inbox_has", delivery.group, delivery.generation, _message_key(delivery.id))
        return bool(rows)
    at = _key_of(delivery, delivery.group)
    passed: Rows = yield tables.sql("key_has", *at, delivery.sequence)  # without a lock: the claim's transaction may hold the row
    missed: Rows = yield tables.sql("missed_has", *at, delivery.sequence)
    return bool(passed) and not missed


def _key_of(delivery: Delivery, group: str) -> tuple[object, ...]:
    return group, delivery.generation, delivery.source or "", delivery.topic, (delivery.key or "").encode()


def claim_ordered(tables: Tables, delivery: Delivery, group: str) -> Steps[bool]:
    """The key's row is locked first: it is the fence against a consumer whose lease has ended (R13). Then R6."""
    if delivery.key is None or delivery.sequence is None:
        raise UsageError("bad_request", "a delivery of an ordered topic has a key and a number")
    at = _key_of(delivery, group)
    yield tables.sql("key_put", *at)
    rows: Rows = yield tables.sql("key_last", *at)
    last, number = int(rows[0][0]), delivery.sequence
    in_missed = False
    if number <= last and delivery.redriven:
        taken: Rows = yield tables.sql("missed_take", *at, number)
        in_missed = bool(taken)
    claim = inbox_rules.judge(last=last, number=number, redriven=delivery.redriven, in_missed=in_missed)
    if claim is Claim.RUN:
        for missed in inbox_rules.newly_missed(last=last, number=number, named=delivery.missed or ()):
            yield tables.sql("missed_put", *at, missed)
        yield tables.sql("key_set", number, *at)
    return claim is not Claim.DUPLICATE
