"""A transaction of ours in which user code works: a block's, a handler's. What is published on its connection goes in one line, and an error
of it leaves the transaction to its end: what goes beside it must fall with all the rest, not commit by itself (R8).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from halfmsg.txclient import UsageError

from .effects import Abort, AsyncAdapter, Dialect, Effect, Sql, Steps, SyncAdapter, ending, run_sync
from .errors import TransactionEnded

T = TypeVar("T")
_LENT: Final[dict[int, Any]] = {}
"""Connection (its identity): what is open on it. A second one would share its transaction, and end it."""


def lent_on(conn: object) -> Any:
    """The LentSync or LentAsync of a connection; None: the transaction on it, if there is one, is the user's own."""
    lent = _LENT.get(id(conn))
    return lent if lent is not None and lent.accepted else None


class Lent:
    def __init__(self, conn: Any, dialect: Dialect) -> None:
        self.conn = conn
        self._dialect = dialect
        self._pending = 0
        self._ended = False
        self._failed: BaseException | None = None
        self.accepted = False

    def accept(self) -> None:
        """From now on what is published on its connection is its own. One that is registered and not accepted only keeps others out."""
        self.accepted = True

    def register(self) -> bool:
        """False: another one is there, which stays. In one step, as threads may share a connection."""
        return _LENT.setdefault(id(self.conn), self) is self

    def unregister(self) -> None:
        """Its transaction is over, and the connection not yet given to anybody else."""
        self._ended = True
        if _LENT.get(id(self.conn)) is self:
            del _LENT[id(self.conn)]

    def end(self) -> None:
        """User code has had its time: what it publishes from now on, in a task that nobody awaited, is refused."""
        self._ended = True

    def fail(self, error: BaseException) -> None:
        """What was raised inside it and may be swallowed: the transaction ends with it (R8)."""
        if isinstance(error, asyncio.CancelledError):  # of that publish; it must not look like a cancellation of whoever ends the transaction
            error = UsageError("not_awaited", "a publish in this transaction was cancelled; the transaction is rolled back")
        self._failed = self._failed or error

    def failing(self, steps: Steps[T]) -> Steps[T]:
        """Steps of a publish, a fence or a claim on its connection, whose error fails it. On PostgreSQL the server holds to that, whatever the
        body does then. On SQLite nothing is ended here; where the transaction has gone with the error (a full disk) another is begun, which
        falls at the end.
        """
        try:
            return (yield from self._while_open(steps))
        except BaseException as error:
            self.fail(error)
            if not self._ended and (self._dialect == "postgresql" or isinstance(error, TransactionEnded)):
                yield Abort()  # a body that ends transactions by itself would commit this one too
            if not self._ended and self._dialect == "sqlite":
                with contextlib.suppress(Exception):
                    yield Sql("BEGIN")  # no IMMEDIATE: it must not wait, and not fail, for another's lock
            raise

    def _while_open(self, steps: Steps[T]) -> Steps[T]:
        """One that outlives its transaction writes nothing into what comes after it on the connection."""
        sent: Any = None
        step: Callable[[Any], Effect] = steps.send
        while True:
            self.check_open()
            try:
                effect = step(sent)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            try:
                step, sent = steps.send, (yield effect)
            except BaseException as error:
                step, sent = steps.throw, error

    def check_open(self) -> None:
        """What comes too late also fails what is ending at this moment: it may have been asked already how many are under way."""
        if self._ended:
            error = UsageError("not_awaited", "the block or handler of this publish has ended; await it inside")
            self.fail(error)
            raise error

    def check_end(self) -> None:
        """Raises what must not be committed: a publish that is not done, an error that was swallowed (R8)."""
        if self._pending:
            raise UsageError("not_awaited", f"{self._pending} publish calls were not awaited in their transaction; it is rolled back")
        if self._failed is not None:
            raise self._failed


class LentSync(Lent):
    def __init__(self, conn: Any, dialect: Dialect) -> None:
        super().__init__(conn, dialect)
        self._line = threading.Lock()

    def run(self, steps: Steps[T], adapter: SyncAdapter) -> T:
        with self._line:
            return run_sync(steps, adapter)


class LentAsync(Lent):
    """Publishes that are gathered go one at a time, as the adapters run them: the first of a block lays the fence for all."""

    async def run(self, steps: Steps[T], adapter: AsyncAdapter) -> T:
        self.check_open()  # also here: the connection may be closed by now
        try:
            return await (adapter.run(steps) if self._dialect == "sqlite" else adapter.run_or_abort(steps))
        except asyncio.CancelledError as error:  # in line, perhaps: no step of it has run, and none has heard of this
            self.fail(error)
            raise

    def awaited(self, publish: Callable[[], Coroutine[Any, Any, T]]) -> Coroutine[Any, Any, T]:
        """It counts from its call on: one that is not awaited to its end has not written all of its rows."""
        self._pending += 1
        return self._counted(publish)

    async def _counted(self, publish: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            return await publish()
        finally:
            self._pending -= 1


def run_on_sync(adapter: SyncAdapter, steps: Steps[T]) -> T:
    """Steps on a connection of user code's: in what is lent on it, else in its own transaction, which an error ends (R8)."""
    lent = lent_on(adapter.conn)
    return run_sync(ending(steps), adapter) if lent is None else lent.run(lent.failing(steps), adapter)


async def run_on_async(adapter: AsyncAdapter, lent: LentAsync | None, steps: Steps[T]) -> T:
    """As `run_on_sync`. `lent`: as it was at the call, since it may have ended by now."""
    return await (adapter.run_or_abort(ending(steps)) if lent is None else lent.run(lent.failing(steps), adapter))
