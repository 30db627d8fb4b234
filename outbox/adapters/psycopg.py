"""psycopg 3, sync and async. Always our own cursor class, so that a RawCursor or a row factory of the caller's does not matter."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final, Literal, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo, PipelineStatus, TransactionStatus
from psycopg.rows import tuple_row

from halfmsg.txclient import UsageError

from ..effects import Abort, Begin, Check, Commit, Effect, Mark, Reset, Sql, Steps, Unmark, one_by_one
from ..errors import NotInTransaction, TransactionEnded
from .waiting import finished

T = TypeVar("T")
NOT_OPEN = "no transaction is open on this psycopg connection (it is in autocommit); use `with conn.transaction()`, or autocommit=False"
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
"""How long a rollback whose task was cancelled waits for the server."""

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


PIPELINES: Final = psycopg.Pipeline.is_supported()


def is_piped(conn: Any) -> bool:
    """Inside the caller's `with conn.pipeline()`: rows and status are there only after a sync, and a nested pipeline is one."""
    return PIPELINES and conn.pgconn.pipeline_status != PipelineStatus.OFF


class PsycopgAdapter:
    is_async: Literal[False] = False
    dialect: Literal["postgresql"] = "postgresql"

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self.conn = conn

    def do(self, effect: Effect) -> Any:
        if isinstance(effect, Sql):
            return self._run(effect.text, effect.args)
        if isinstance(effect, Check):
            self._sync()
            if not is_open(self.conn):
                raise NotInTransaction(NOT_OPEN)
        elif isinstance(effect, Begin):
            if self.conn.autocommit:
                self._run(begin_of(self.conn), ())
        elif isinstance(effect, Mark):
            self._run(MARK, ())
        elif isinstance(effect, Unmark):
            self._unmark()
        elif isinstance(effect, Commit):
            self._sync()
            refuse_aborted(self.conn)
            self.conn.commit()
        elif isinstance(effect, Abort):
            self._abort()
        elif isinstance(effect, Reset):
            self.conn.row_factory, self.conn.cursor_factory = tuple_row, psycopg.Cursor
            self._run("DISCARD ALL", ())
        return None

    def _run(self, text: str, args: Any) -> list[Any]:
        with psycopg.Cursor(self.conn, row_factory=tuple_row) as cursor:
            cursor.execute(_text(text), args or None, prepare=False)
            self._sync()
            return cursor.fetchall() if cursor.description else []

    def _unmark(self) -> None:
        self._sync()
        refuse_aborted(self.conn)
        if not self._run(MARKED, ()):
            raise TransactionEnded()

    def _sync(self) -> None:
        if is_piped(self.conn):
            with self.conn.pipeline():
                return

    def _abort(self) -> None:
        try:
            self._sync()
            if self.conn.info.transaction_status == TransactionStatus.INTRANS:
                self._run(ABORT, ())
        except psycopg.Error:
            return

    def close(self) -> None:
        self.conn.close()


class AsyncPsycopgAdapter:
    is_async: Literal[True] = True
    dialect: Literal["postgresql"] = "postgresql"

    def __init__(self, conn: psycopg.AsyncConnection[Any]) -> None:
        self.conn = conn

    async def run(self, steps: Steps[T]) -> T:
        return await one_by_one(steps, self._do)

    async def _do(self, effect: Effect) -> Any:
        if isinstance(effect, Sql):
            return await self._run(effect.text, effect.args)
        if isinstance(effect, Check):
            await self._sync()
            if not is_open(self.conn):
                raise NotInTransaction(NOT_OPEN)
        elif isinstance(effect, Begin):
            if self.conn.autocommit:
                await self._run(begin_of(self.conn), ())
        elif isinstance(effect, Mark):
            await self._run(MARK, ())
        elif isinstance(effect, Unmark):
            await self._unmark()
        elif isinstance(effect, Commit):
            await self._sync()
            refuse_aborted(self.conn)
            await self.conn.commit()
        elif isinstance(effect, Abort):
            await self._abort()
        elif isinstance(effect, Reset):
            self.conn.row_factory, self.conn.cursor_factory = tuple_row, psycopg.AsyncCursor
            await self._run("DISCARD ALL", ())
        return None

    async def _run(self, text: str, args: Any) -> list[Any]:
        async with psycopg.AsyncCursor(self.conn, row_factory=tuple_row) as cursor:
            await cursor.execute(_text(text), args or None, prepare=False)
            await self._sync()
            return await cursor.fetchall() if cursor.description else []

    async def _unmark(self) -> None:
        await self._sync()
        refuse_aborted(self.conn)
        if not await self._run(MARKED, ()):
            raise TransactionEnded()

    async def _sync(self) -> None:
        if is_piped(self.conn):
            async with self.conn.pipeline():
                return

    async def _abort(self) -> None:
        """To its end, even when cancelled: a body's statement may be under way, and what the caller commits next must not be this one too."""
        await self._to_its_end(self._aborted())

    async def roll_back(self) -> None:
        """What is left open on the caller's connection. Where the connection is lost it is rolled back, too."""
        with suppress(psycopg.Error):
            await self._to_its_end(self.conn.rollback())

    async def _to_its_end(self, work: Coroutine[Any, Any, None]) -> None:
        """Even when cancelled. A server that says nothing after that is hung up on, which ends its transaction, too: a process must come to stop."""
        timers: list[asyncio.TimerHandle] = []
        later = asyncio.get_running_loop().call_later
        try:
            await finished(work, lambda: timers.append(later(SILENT_S, hang_up, self.conn)))
        finally:
            for timer in timers:
                timer.cancel()

    async def _aborted(self) -> None:
        try:
            await self._sync()
            # ACTIVE: a statement of another task is under way; the abort waits in line behind it
            if self.conn.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.ACTIVE):
                await self._run(ABORT, ())
        except psycopg.Error:
            return

    async def close(self) -> None:
        await self.conn.close()


def _text(text: str) -> Any:
    return text.replace("?", "%s")


def adapter(on: Any) -> PsycopgAdapter | AsyncPsycopgAdapter:
    """Of a connection, or of what knows its own: a cursor, what `with conn.transaction() as tx` gives. Raises UsageError(unknown_database)."""
    conn = getattr(on, "connection", on)
    if isinstance(conn, psycopg.AsyncConnection):
        return AsyncPsycopgAdapter(conn)
    if isinstance(conn, psycopg.Connection):
        return PsycopgAdapter(conn)
    raise UsageError("unknown_database", f"a {type(on).__module__}.{type(on).__qualname__} is no connection; hand in the psycopg connection")
