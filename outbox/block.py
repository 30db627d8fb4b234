"""`transaction()`: opens the block, groups its messages into one halfmsg transaction, commits, and wakes the relay.

Its fence is laid with the first message, and its digest written at its end, over the rows that survived (R16): a savepoint inside takes
its messages with it. A body that ends the transaction by itself is seen at the block's end, by the mark that is gone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack

from halfmsg.txclient import Message, MessageOptions, UsageError

from . import fence
from .adapters import adapter_of
from .adapters.waiting import aside
from .effects import Abort, AsyncAdapter, Begin, Commit, Mark, Steps, SyncAdapter, Unmark, ending, one, raising, run_sync
from .fence import Attempt
from .lent import Lent, LentAsync, LentSync

if TYPE_CHECKING:
    from .outbox import Outbox, Receipt

C = TypeVar("C")


class _Tx(Lent, Generic[C]):
    """Of either colour: it stands before `LentSync` or `LentAsync`, whose beginning it calls."""

    conn: C

    def __init__(self, outbox: Outbox, conn: C) -> None:
        super().__init__(conn, outbox._home.dialect)
        self._outbox = outbox
        self._attempt = Attempt(outbox._id(None), outbox._mark(), stored=False)
        self._count = 0
        self._size = (0, 0)
        self._source = outbox._source

    def _add(self, messages: list[Message]) -> Steps[list[Receipt]]:
        from .outbox import check_size, receipts_of

        if self._failed is not None:
            yield from self.failing(raising(self._failed))
        if self._count + len(messages) > 1_000:
            raise UsageError("too_large", "more than 1,000 messages in one block; use another transaction")
        self._size = check_size(messages, self._size)
        first, self._count = self._count, self._count + len(messages)
        adding = fence.add(self._outbox._home.tables, self._attempt, messages, first, self._source)
        meta, drawn = yield from self.failing(adding)
        self._source = meta.source
        return receipts_of(self._attempt.id, drawn)


class SyncTx(_Tx[C], LentSync):
    """`with outbox.transaction() as tx`."""

    def publish(self, topic: str, body: object, **options: Unpack[MessageOptions]) -> Receipt:
        return self.publish_many([Message(topic, body, **options)])[0]

    def publish_many(self, messages: Iterable[Message]) -> Sequence[Receipt]:
        checked = self._outbox._checked(messages)  # not in line: what gives them may publish too
        return self.run(self._add(checked), adapter_of(self.conn))  # type: ignore[arg-type]


class AsyncTx(_Tx[C], LentAsync):
    """`async with outbox.transaction() as tx`."""

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
        tx = tx_type(self._outbox, self._adapter.conn)
        if _is_in_transaction(self._adapter) or not tx.register():
            raise _already_in_transaction()
        if _is_in_transaction(self._adapter):  # begun by another thread between the two
            tx.unregister()
            raise _already_in_transaction()
        tx.accept()
        self._tx = tx

    def _leave(self) -> None:
        self._in_use = False
        if self._tx is not None:
            self._tx.unregister()
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
                if self._outbox._source is None:
                    await aside(self._outbox.learn_source)
                self._tx._source = self._outbox._source
            await self._adapter.run_or_abort(ending(_begin()))
        except BaseException:
            try:
                if entered and not own:  # cancelled, and the database has begun: the caller's connection must not keep the lock
                    with contextlib.suppress(Exception):
                        await self._roll_back_left()
            finally:
                self._leave()
                if own:
                    await self._outbox._home.give(self._adapter, broken=True)
            raise
        return self._tx  # type: ignore[no-any-return]

    async def __aexit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /) -> None:
        adapter: AsyncAdapter = self._adapter
        whole = False
        self._tx.end()
        try:
            await adapter.run(_end(self._outbox, self._tx, e))
            whole = True
        except Exception:
            if e is None:  # else the body's own error is what people look for
                raise
        finally:
            try:
                if self._on is not None:
                    await self._roll_back_left()
            finally:  # cancelled meanwhile: nobody else would ever come to this connection
                self._leave()
                self._wake()
                if self._on is None:
                    await self._outbox._home.give(adapter, broken=not whole, lent=True)

    async def _roll_back_left(self) -> None:
        if _is_left(self._adapter):
            await self._adapter.roll_back()

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
            try:
                if entered and not own:
                    with contextlib.suppress(Exception):
                        run_sync(one(Abort()), self._adapter)
                        self._roll_back_left_sync()
            finally:
                self._leave()
                if own:
                    self._outbox._home.give_sync(self._adapter, broken=True)
            raise
        return self._tx  # type: ignore[no-any-return]

    def __exit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /) -> None:
        adapter: SyncAdapter = self._adapter
        whole = False
        self._tx.end()
        try:
            self._tx.run(_end(self._outbox, self._tx, e), adapter)  # behind one that another thread is at
            whole = True
        except Exception:
            if e is None:
                raise
        finally:
            try:
                if self._on is not None:
                    self._roll_back_left_sync()  # before another thread may begin on it
            finally:
                self._leave()
                self._wake()
                if self._on is None:
                    self._outbox._home.give_sync(adapter, broken=not whole, lent=True)

    def _roll_back_left_sync(self) -> None:
        if _is_left(self._adapter):
            with contextlib.suppress(Exception):  # a connection that is lost is rolled back, too
                self._adapter.conn.rollback()


def _already_in_transaction() -> UsageError:
    return UsageError("already_in_transaction", "a transaction is open on this connection already; use outbox.publish(conn, …) inside it")


def _begin() -> Steps[None]:
    yield Begin()
    yield Mark()


def _is_left(adapter: Any) -> bool:
    """PostgreSQL: the block is over, and the caller's connection waits for a ROLLBACK: the server has ended it, or nobody could."""
    return bool(adapter.dialect == "postgresql" and not adapter.conn.closed and adapter.conn.info.transaction_status.name != "IDLE")


def _is_in_transaction(adapter: Any) -> bool:
    if adapter.dialect == "sqlite":
        return bool(adapter.conn.in_transaction)
    return adapter.conn.info.transaction_status.name not in ("IDLE", "UNKNOWN")  # UNKNOWN: the connection is lost, which BEGIN says best


def _end(outbox: Outbox, tx: Any, error: BaseException | None) -> Steps[None]:
    """Commit with the fence over what is left, or roll back. Never a network error: after your commit nothing may look like a failure."""
    if error is not None:
        yield Abort()
        return
    try:
        tx.check_end()
        yield Unmark()
        if tx._count:
            yield from fence.close(outbox._home.tables, tx._attempt, tx._source)
        yield Commit()
    except BaseException:
        yield Abort()
        raise
