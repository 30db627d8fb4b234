"""psycopg 3, sync and async. Always our own cursor class, so that a RawCursor or a row factory of the caller's does not matter."""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, Literal, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo, PipelineStatus, TransactionStatus
from psycopg.rows import tuple_row

from halfmsg.txclient import UsageError

from ..effects import Abort, Aside, Begin, Check, Commit, Effect, Mark, Reset, Rows, Sql, Steps, Unmark, one_by_one
from ..errors import NotInTransaction, TransactionEnded
from .waiting import aside, finished

log = logging.getLogger("halfmsg.outbox")
T = TypeVar("T")
NOT_OPEN = "no transaction is open on this psycopg connection (it is in autocommit); use `with conn.transaction()`, or autocommit=False"
OVER = "the transaction that was open at this call has ended before it could begin; await it inside its transaction"
ABORT = "DO $$ BEGIN RAISE EXCEPTION 'halfmsg ended this transaction' USING ERRCODE = 'HM001'; END $$"
"""Makes the server abort the transaction: inside `conn.transaction()` psycopg forbids an explicit rollback, and a COMMIT cannot undo this."""


LIMITS: Final = {
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,  # ms
}
"""Of connections that the library opens. By default TCP waits a quarter of an hour for a host that is gone, and keeps an idle one for ever."""

SILENT_S: Final = 5.0
"""How long what ends a transaction waits for the server, and a task that is cancelled for what is under way on its connection."""
_ABORTING: Final[set[asyncio.Future[None]]] = set()
"""The loop itself keeps no task."""

SWALLOWED = "an error in this transaction was swallowed, so the server would answer this COMMIT with a rollback; nothing of it is committed"


MARK: Final = "SET LOCAL halfmsg.block = 'open'"
"""Gone with its transaction, whoever ends that. No savepoint: in one the server refuses SET TRANSACTION, and a snapshot that is shared."""
MARKED: Final = "SELECT 1 WHERE current_setting('halfmsg.block', true) = 'open'"


def refuse_aborted(conn: Any) -> None:
    """The server answers COMMIT of an aborted transaction with ROLLBACK, and psycopg calls that a success: here it must be an error."""
    if conn.info.transaction_status == TransactionStatus.INERROR:
        raise psycopg.errors.InFailedSqlTransaction(SWALLOWED)


def is_open(conn: Any) -> bool:
    """To be asked after a sync: before it a pipeline's status is ACTIVE, whatever was sent."""
    return conn.info.transaction_status != TransactionStatus.IDLE or not conn.autocommit


def begin_of(conn: Any) -> str:
    """The level and the modes that the caller chose for his connection; ours has none, and READ COMMITTED is said (R11)."""
    words = [f"BEGIN ISOLATION LEVEL {(conn.isolation_level or psycopg.IsolationLevel.READ_COMMITTED).name.replace('_', ' ')}"]
    if conn.read_only is not None:
        words.append("READ ONLY" if conn.read_only else "READ WRITE")
    if conn.deferrable is not None:
        words.append("DEFERRABLE" if conn.deferrable else "NOT DEFERRABLE")
    return ", ".join(words)


def settings(url: str) -> dict[str, Any]:
    """What a connection of ours has besides the URL, which goes first, as does the environment (PGCONNECT_TIMEOUT)."""
    said = conninfo_to_dict(url)
    unset = {option.keyword.decode() for option in Conninfo.get_defaults() if option.val is None}
    limits = {name: value for name, value in LIMITS.items() if name in unset and name not in said}
    return limits | {"client_encoding": "utf8"}  # with SQL_ASCII, which a database may have, psycopg gives bytes for text


def is_ended(conn: Any) -> bool:
    """Between its uses a server has nothing to say but its farewell."""
    if conn.closed:
        return True
    if not hasattr(select, "poll"):
        return bool(select.select([conn.fileno()], [], [], 0)[0])
    poll = select.poll()
    poll.register(conn.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def hang_up(conn: Any) -> None:
    """Shut the socket under whoever waits for it: that needs no network, and the driver sees the end of the connection at once."""
    with suppress(psycopg.Error, OSError), socket.fromfd(conn.fileno(), socket.AF_INET, socket.SOCK_STREAM) as line:
        line.shutdown(socket.SHUT_RDWR)


def seems_open(conn: Any) -> bool:
    """At the call: is a transaction open? What of another thread or task is under way is in one; what a pipeline holds is not known."""
    status = conn.info.transaction_status
    return status in (TransactionStatus.INTRANS, TransactionStatus.INERROR) or (status == TransactionStatus.ACTIVE and not is_piped(conn))


PIPELINES: Final = psycopg.Pipeline.is_supported()


def is_piped(conn: Any) -> bool:
    """Inside the caller's `with conn.pipeline()`: rows and status are there only after a sync, and a nested pipeline is one."""
    return PIPELINES and conn.pgconn.pipeline_status != PipelineStatus.OFF


def performed(conn: Any, effect: Effect, *, was_open: bool) -> PQGen[Any]:
    """An effect by psycopg's own generators, which do not ask for the connection's lock: whoever drives this has it."""
    if isinstance(effect, Sql):
        return (yield from _run(conn, effect.text, effect.args))
    if isinstance(effect, Check):
        yield from _sync(conn)
        if not is_open(conn):
            raise NotInTransaction(NOT_OPEN)
        if was_open and conn.info.transaction_status == TransactionStatus.IDLE:  # without autocommit another would be begun here
            raise NotInTransaction(OVER)
    elif isinstance(effect, Begin):
        if conn.autocommit:
            yield from _run(conn, begin_of(conn))
    elif isinstance(effect, Mark):
        yield from _run(conn, MARK)
    elif isinstance(effect, Unmark):
        yield from _sync(conn)
        refuse_aborted(conn)
        if not (yield from _run(conn, MARKED)):
            raise TransactionEnded()
    elif isinstance(effect, Commit):
        yield from _sync(conn)
        refuse_aborted(conn)
        yield from conn._commit_gen()
    elif isinstance(effect, Abort):
        yield from _sync(conn)
        if conn.info.transaction_status == TransactionStatus.INTRANS:
            yield from _run(conn, ABORT)
    elif isinstance(effect, Reset):
        conn.row_factory = tuple_row
        conn.cursor_factory = psycopg.AsyncCursor if isinstance(conn, psycopg.AsyncConnection) else psycopg.Cursor
        yield from _run(conn, "DISCARD ALL")
    return None


def _run(conn: Any, text: str, args: Sequence[Any] = ()) -> PQGen[Rows]:
    cursor = psycopg.Cursor(conn, row_factory=tuple_row)  # also on an async connection: nothing of it is awaited here
    yield from cursor._execute_gen(text.replace("?", "%s"), args or None, prepare=False)
    yield from _sync(conn)
    return cursor.fetchall() if cursor.description else []


def _sync(conn: Any) -> PQGen[None]:
    """What a pipeline still holds, to its end."""
    if is_piped(conn):
        yield from conn._pipeline._exit_gen()


class PsycopgAdapter:
    is_async: Literal[False] = False
    dialect: Literal["postgresql"] = "postgresql"

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self.conn = conn
        self._was_open = seems_open(conn)

    @property
    def alone(self) -> threading.Lock:
        """psycopg's own lock: no statement, savepoint or end of the transaction of another thread comes between the steps."""
        return self.conn.lock

    def do(self, effect: Effect) -> Any:
        if isinstance(effect, Aside):
            return effect.call()
        try:
            return self.conn.wait(performed(self.conn, effect, was_open=self._was_open))
        except psycopg.Error:
            if isinstance(effect, Abort):  # a connection that is lost is rolled back, too
                return None
            raise

    def close(self) -> None:
        self.conn.close()


class AsyncPsycopgAdapter:
    is_async: Literal[True] = True
    dialect: Literal["postgresql"] = "postgresql"

    def __init__(self, conn: psycopg.AsyncConnection[Any]) -> None:
        self.conn = conn
        self._was_open = seems_open(conn)

    async def run(self, steps: Steps[T]) -> T:
        """Under psycopg's own lock: no statement, savepoint or end of the transaction of another task comes between the steps."""
        async with self.conn.lock:
            return await one_by_one(steps, self._do)

    async def run_or_abort(self, steps: Steps[T]) -> T:
        """The steps hear of a cancellation themselves. In line for the connection, before the first of them, Abort takes their place: before
        whatever is said after them, and never in a later transaction. Where its turn does not come within `SILENT_S` (a stream whose body
        waits for this very call) it is not waited for any longer.
        """
        turn = asyncio.ensure_future(self.conn.lock.acquire())
        try:
            await asyncio.shield(turn)
        except asyncio.CancelledError:
            aborting = asyncio.ensure_future(self._abort_in(turn))
            _ABORTING.add(aborting)
            aborting.add_done_callback(_ABORTING.discard)
            if self.conn.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.ACTIVE):
                await finished(asyncio.wait({aborting}, timeout=SILENT_S))
            raise
        try:
            return await one_by_one(steps, self._do)
        finally:
            self.conn.lock.release()

    async def _abort_in(self, turn: asyncio.Future[Any]) -> None:
        await turn
        try:
            await self._do(Abort())
        finally:
            self.conn.lock.release()

    async def _do(self, effect: Effect) -> Any:
        if isinstance(effect, Aside):
            return await aside(effect.call)
        work = self.conn.wait(performed(self.conn, effect, was_open=self._was_open))
        if not isinstance(effect, Abort):
            return await work
        last = asyncio.get_running_loop().call_later(SILENT_S, hang_up, self.conn)
        try:
            await finished(work)
        except psycopg.Error:
            log.debug("a connection was lost; what was open on it is rolled back", exc_info=True)
        finally:
            last.cancel()

    async def roll_back(self) -> None:
        """What is left open on the caller's connection, to its end even when cancelled. Where the connection is lost it is rolled back, too; a
        server that says nothing after a cancellation is hung up on, which ends its transaction as well: a process must come to stop.
        """
        timers: list[asyncio.TimerHandle] = []
        later = asyncio.get_running_loop().call_later
        try:
            with suppress(psycopg.Error):
                await finished(self.conn.rollback(), lambda: timers.append(later(SILENT_S, hang_up, self.conn)))
        finally:
            for timer in timers:
                timer.cancel()

    async def close(self) -> None:
        await self.conn.close()


def adapter(on: Any) -> PsycopgAdapter | AsyncPsycopgAdapter:
    """Of a connection, or of what knows its own: a cursor, what `with conn.transaction() as tx` gives. Raises UsageError(unknown_database)."""
    conn = getattr(on, "connection", on)
    if isinstance(conn, psycopg.AsyncConnection):
        return AsyncPsycopgAdapter(conn)
    if isinstance(conn, psycopg.Connection):
        return PsycopgAdapter(conn)
    raise UsageError("unknown_database", f"a {type(on).__module__}.{type(on).__qualname__} is no connection; hand in the psycopg connection")
