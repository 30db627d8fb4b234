"""`transaction()`: opens the block, groups its messages into one halfmsg transaction, commits, and wakes the relay.

Its fence is laid with the first message, and its digest written at its end, over the rows that survived (R16): a savepoint inside takes
its messages with it. A body that ends the transaction by itself is seen at the block's end, by the mark that is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack

from halfmsg.txclient import Message, MessageOptions, UsageError

from . import fence
from .adapters import adapter_of
from .effects import Abort, AsyncAdapter, Begin, Commit, Effect, Mark, Sql, Steps, SyncAdapter, Unmark, run_async, run_sync
from .errors import TransactionEnded
from .fence import Attempt

if TYPE_CHECKING:
    from .outbox import Outbox, Receipt

C = TypeVar("C")
T = TypeVar("T")
_OPEN: dict[int, Any] = {}
"""Connection (its identity): the block that is open on it. A second one would share its transaction, and end it."""


def open_block(conn: object) -> Any:
    return _OPEN.get(id(conn))


class _Tx(Generic[C]):
    conn: C

    def __init__(self, outbox: Outbox, conn: C) -> None:
        self.conn = conn
        self._outbox = outbox
        self._attempt = Attempt(outbox._id(None), outbox._mark(), stored=False)
        self._count = 0
        self._size = (0, 0)
        self._pending = 0
        self._source = outbox._source
        self._ended = False
        self._failed: BaseException | None = None

    def fail(self, error: BaseException) -> None:
        """What was raised inside it and may be swallowed: the block ends with it (R8)."""
        if isinstance(error, asyncio.CancelledError):  # of that publish; it must not look like a cancellation of whoever ends the block
            error = UsageError("not_awaited", "a publish of this block was cancelled; the transaction is rolled back")
        self._failed = self._failed or error

    def failing(self, steps: Steps[T]) -> Steps[T]:
        """Steps of a publish or a fence on the block's connection. Their error fails the block, and is not ended here: what the body writes
        after it must fall with the block, not commit by itself. So too where the transaction has gone with it (SQLite, a full disk).
        """
        try:
            return (yield from self._while_open(steps))
        except BaseException as error:
            self.fail(error)
            if isinstance(error, TransactionEnded) and not self._ended:  # a body that ends transactions by itself would commit this one too
                yield Abort()
            if self._outbox._home.dialect == "sqlite" and not self._ended:
                with contextlib.suppress(Exception):
                    yield Sql("BEGIN")  # no IMMEDIATE: it must not wait, and not fail, for another's lock
            raise

    def _add(self, messages: list[Message]) -> Steps[list[Receipt]]:
        from .outbox import check_size, receipts_of

        if self._failed is not None:
            raise self._failed
        if self._count + len(messages) > 1_000:
            raise UsageError("too_large", "more than 1,000 messages in one block; use another transaction")
        self._size = check_size(messages, self._size)
        first, self._count = self._count, self._count + len(messages)
        adding = fence.add(self._outbox._home.tables, self._attempt, messages, first, self._source)
        meta, drawn = yield from self.failing(adding)
        self._source = meta.source
        return receipts_of(self._attempt.id, drawn)

    def _while_open(self, steps: Steps[T]) -> Steps[T]:
        """One that outlives its block, in a task that nobody awaited, writes nothing into what comes after it on the connection."""
        sent: Any = None
        step: Callable[[Any], Effect] = steps.send
        while not self._ended:
            try:
                effect = step(sent)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            try:
                step, sent = steps.send, (yield effect)
            except BaseException as error:
                step, sent = steps.throw, error
        raise UsageError("not_awaited", "the block of this publish has ended; await it inside")

    def _check_end(self) -> None:
        if self._pending:
            raise UsageError("not_awaited", f"{self._pending} publish calls of this block were not awaited; the transaction is rolled back")
        if self._failed is not None:
            raise self._failed  # a swallowed error must not become half a commit (R8)


class SyncTx(_Tx[C]):
    """`with outbox.transaction() as tx`."""

    def __init__(self, outbox: Outbox, conn: C) -> None:
        super().__init__(outbox, conn)
        self._line = threading.Lock()

    def publish(self, topic: str, body: object, **options: Unpack[MessageOptions]) -> Receipt:
        return self.publish_many([Message(topic, body, **options)])[0]

    def publish_many(self, messages: Iterable[Message]) -> Sequence[Receipt]:
        checked = self._outbox._checked(messages)  # not in line: what gives them may publish too
        return self.run(self._add(checked), adapter_of(self.conn))  # type: ignore[arg-type]

    def run(self, steps: Steps[T], adapter: SyncAdapter) -> T:
        with self._line:
            return run_sync(steps, adapter)


class AsyncTx(_Tx[C]):
    """`async with outbox.transaction() as tx`. Publishes that are gathered go one at a time: the first of them lays the fence for all."""

    def __init__(self, outbox: Outbox, conn: C) -> None:
        super().__init__(outbox, conn)
        self._line = asyncio.Lock()

    def publish(self, topic: str, body: object, **options: Unpack[MessageOptions]) -> Any:
        checked = self._outbox._checked([Message(topic, body, **options)])
        return self.awaited(lambda: self._first(checked))

    def publish_many(self, messages: Iterable[Message]) -> Any:
        checked = self._outbox._checked(messages)
        return self.awaited(lambda: self._run(checked))

    async def _first(self, messages: list[Message]) -> Receipt:
        return (await self._run(messages))[0]

    async def _run(self, messages: list[Message]) -> Sequence[Receipt]:
        return await self.run(self._add(messages), adapter_of(self.conn))  # type: ignore[arg-type]

    async def run(self, steps: Steps[T], adapter: AsyncAdapter) -> T:
        async with self._line:
            return await run_async(steps, adapter)

    def awaited(self, publish: Callable[[], Coroutine[Any, Any, T]]) -> Coroutine[Any, Any, T]:
        """It counts from its call on: one that is not awaited to its end has not written all of its rows."""
        self._pending += 1
        return self._counted(publish)

    async def _counted(self, publish: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            return await publish()
        except asyncio.CancelledError as error:  # in line too, before a statement of it has run
            self.fail(error)
            raise
        finally:
            self._pending -= 1


class Block(Generic[C]):
    """`with` gives the sync one, `async with` the async one. Without a connection of yours it takes one of the outbox's own."""

    def __init__(self, outbox: Outbox, on: Any) -> None:
        self._outbox, self._on = outbox, on
        self._adapter: Any = None
        self._tx: Any = None
        self._in_use = False

    def _use(self) -> None:
        if self._in_use:
            raise UsageError("already_open", "this block is open already; say outbox.transaction() for each")
        self._in_use = True

    def _adapter_of(self, on: Any, *, is_async: bool) -> Any:
        adapter = adapter_of(on)
        if adapter.dialect != (ours := self._outbox._home.dialect):
            raise UsageError("other_database", f"the connection is {adapter.dialect}, the Outbox's database is {ours}")
        if adapter.is_async is not is_async:
            raise UsageError("wrong_colour", f"this connection needs `{'with' if is_async else 'async with'} outbox.transaction(conn)`")
        return adapter

    def _enter(self, tx_type: Any) -> None:
        """From here on nobody else opens one on this connection."""
        conn = self._adapter.conn
        if _is_in_transaction(self._adapter) or id(conn) in _OPEN:
            raise UsageError("already_in_transaction", "a transaction is open on this connection already; use outbox.publish(conn, …) inside it")
        self._tx = _OPEN[id(conn)] = tx_type(self._outbox, conn)

    def _leave(self) -> None:
        """Its transaction is over, and the connection not yet given to anybody else."""
        self._in_use = False
        if self._tx is not None:
            del _OPEN[id(self._adapter.conn)]
            self._tx = None

    def _wake(self) -> None:
        if self._outbox._relay is not None:
            self._outbox._relay.wake()

    # --- async ---

    async def __aenter__(self) -> AsyncTx[C]:
        own, entered = self._on is None, False
        self._use()
        try:
            self._adapter = await self._outbox._home.take() if own else self._adapter_of(self._on, is_async=True)
        except BaseException:
            self._in_use = False
            raise
        try:
            self._enter(AsyncTx)
            entered = True
            if not own:
                await self._outbox.learn_source_aside()
                self._tx._source = self._outbox._source
            await run_async(_begin(), self._adapter)
        except BaseException:
            self._leave()
            if own:
                await self._outbox._home.give(self._adapter, broken=True)
            elif entered and _is_aborted(self._adapter):
                await self._adapter.conn.rollback()
            raise
        return self._tx  # type: ignore[no-any-return]

    async def __aexit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /) -> None:
        adapter: AsyncAdapter = self._adapter
        whole = False
        try:
            await run_async(_end(self._outbox, self._tx, e), adapter)
            whole = True
        finally:
            self._leave()
            if self._on is None:
                await self._outbox._home.give(adapter, broken=not whole, lent=True)
            elif _is_aborted(adapter):
                await adapter.conn.rollback()
            self._wake()

    # --- sync ---

    def __enter__(self) -> SyncTx[C]:
        own, entered = self._on is None, False
        self._use()
        try:
            self._adapter = self._outbox._home.take_sync() if own else self._adapter_of(self._on, is_async=False)
        except BaseException:
            self._in_use = False
            raise
        try:
            self._enter(SyncTx)
            entered = True
            if not own:
                self._outbox.learn_source()
                self._tx._source = self._outbox._source
            run_sync(_begin(), self._adapter)
        except BaseException:
            self._leave()
            if own:
                self._outbox._home.give_sync(self._adapter, broken=True)
            elif entered and _is_aborted(self._adapter):
                self._adapter.conn.rollback()
            raise
        return self._tx  # type: ignore[no-any-return]

    def __exit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /) -> None:
        adapter: SyncAdapter = self._adapter
        whole = False
        try:
            run_sync(_end(self._outbox, self._tx, e), adapter)
            whole = True
        finally:
            self._leave()
            if self._on is None:
                self._outbox._home.give_sync(adapter, broken=not whole, lent=True)
            elif _is_aborted(adapter):
                adapter.conn.rollback()
            self._wake()


def _begin() -> Steps[None]:
    try:
        yield Begin()
        yield Mark()
    except BaseException:
        yield Abort()  # cancelled, and the database has begun: the caller's connection must not keep the lock
        raise


def _is_aborted(adapter: Any) -> bool:
    """PostgreSQL: the server has ended it, and the caller's connection waits for the ROLLBACK."""
    return bool(adapter.dialect == "postgresql" and not adapter.conn.closed and adapter.conn.info.transaction_status.name == "INERROR")


def _is_in_transaction(adapter: Any) -> bool:
    if adapter.dialect == "sqlite":
        return bool(adapter.conn.in_transaction)
    return adapter.conn.info.transaction_status.name not in ("IDLE", "UNKNOWN")  # UNKNOWN: the connection is lost, which BEGIN says best


def _end(outbox: Outbox, tx: Any, error: BaseException | None) -> Steps[None]:
    """Commit with the fence over what is left, or roll back. Never a network error: after your commit nothing may look like a failure."""
    tx._ended = True
    if error is not None:
        yield Abort()
        return
    try:
        tx._check_end()
        yield Unmark()
        if tx._count:
            yield from fence.close(outbox._home.tables, tx._attempt, tx._source)
        yield Commit()
    except BaseException:
        yield Abort()
        raise
