"""Where the library gets its own connections: a URL of the service's database.

Two words for two things (API §3): `db` is this, `on` is the connection on which the user's transaction is open.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from halfmsg.txclient import UsageError

from . import fence
from .effects import Abort, Adapter, AsyncAdapter, Begin, Commit, Dialect, Reset, Rows, Sql, Steps, SyncAdapter, ending, one, run_sync
from .places import Places
from .tables import Tables

log = logging.getLogger("halfmsg.outbox")
T = TypeVar("T")
BUSY_TIMEOUT_S = 15.0
IDLE_MAX = 16
LOOK_S = 2
LOOKS_MAX = 100
"""At a new SQLite file that several processes make at once."""
ANSWER_MAX_S = 20.0
"""How long steps of ours wait for PostgreSQL, as long as TCP waits (`adapters.psycopg.LIMITS`): a proxy between may be alive and say nothing."""
IMPATIENT_MAX_S = 6.0
GIVE_MAX_S = 5.0
CANCEL_S = 2.0
"""For the server to end a statement that was given up; then the socket is shut, since the driver would wait for that answer too."""
EXTRA = "pip install 'halfmsg[postgres]'"


class Home:
    """Opens connections to one database, keeps idle ones for their loop (or thread), makes missing tables on SQLite alone."""

    def __init__(self, db: object, prefix: str) -> None:
        if not isinstance(db, str):
            raise UsageError("unknown_database", f"a {type(db).__name__} is not known here yet; give a URL: sqlite:///FILE or postgresql://…")
        self.dialect: Dialect = _dialect(db)
        self.url = _absolute(db) if self.dialect == "sqlite" else db
        self.tables = Tables(self.dialect, prefix)
        self._path = self.url.removeprefix("sqlite:///") if self.dialect == "sqlite" else ""
        self._idle: dict[asyncio.AbstractEventLoop, deque[AsyncAdapter]] = {}
        self._idle_sync: deque[SyncAdapter] = deque()
        self._places = Places()
        self._installed = False
        self._lock = threading.Lock()
        self._pid = os.getpid()
        if self.dialect == "postgresql":
            _import_psycopg()

    # --- async ---

    async def take(self) -> AsyncAdapter:
        """A connection with no transaction open, for user code. Give it back with `give`. Raises HalfmsgError(no_connection)."""
        self._after_fork()
        place = await self._places.take()
        try:
            adapter = await self._take()
        except BaseException:
            place.release()
            raise
        self._places.bind(adapter, place)
        return adapter

    async def _take(self) -> AsyncAdapter:
        """For the library's own use, which never waits in line behind user code: a check-back answers whatever a service is doing."""
        self._after_fork()
        await self._close_left()
        idle = self._idle.setdefault(asyncio.get_running_loop(), deque())
        while idle:
            adapter = idle.pop()
            if not is_ended(adapter):
                return adapter
            await adapter.close()
        return await self._connect()

    @asynccontextmanager
    async def _taken(self, limit_s: float, *, once: bool = False) -> AsyncIterator[AsyncAdapter]:
        """For work of the library's own. Raises TimeoutError once PostgreSQL has said nothing for `limit_s`; SQLite has its busy timeout."""
        adapter = await self._take()
        whole = False
        try:
            async with in_time(adapter, limit_s):
                yield adapter
            whole = True
        except TimeoutError:
            await self._close_idle()  # those that lay beside it have gone the same way, and each would cost as long
            raise
        finally:
            await self.give(adapter, broken=once or not whole)

    @asynccontextmanager
    async def impatient(self, limit_s: float | None = None) -> AsyncIterator[AsyncAdapter]:
        """A connection that on SQLite waits 50 ms for a lock, and is closed afterwards, as it stays so. Raises TimeoutError, as `run` does."""
        async with self._taken(IMPATIENT_MAX_S if limit_s is None else limit_s, once=self.dialect == "sqlite") as adapter:
            if adapter.dialect == "sqlite":
                await adapter.run(one(self.tables.sql("lock_wait")))
            yield adapter

    async def give(self, adapter: AsyncAdapter, *, broken: bool = False, lent: bool = False) -> None:
        """Back to the idle ones. One on which something was cut off is closed: its state is not known (R1).

        `lent`: user code had it; a search path it has set would turn the next verdict or claim to other tables (P5, P6).
        """
        try:
            try:
                broken = broken or await self._is_dirty(adapter)
                broken = broken or (lent and not await self._is_reset(adapter))
            except BaseException:
                await adapter.close()
                raise
            idle = self._idle.get(asyncio.get_running_loop())
            if broken or idle is None or len(idle) >= IDLE_MAX:  # None: closed meanwhile, under a check-back that was being answered
                await adapter.close()
            else:
                idle.append(adapter)
        finally:
            self._places.free(adapter)

    async def run(self, steps: Steps[T], *, transaction: bool = False, limit_s: float | None = None) -> T:
        """Steps on a connection of our own; with `transaction` in one of their own, else each statement by itself.

        Raises TimeoutError where PostgreSQL falls silent (`limit_s`, else ANSWER_MAX_S); the connection is closed, the next is a new one.
        """
        async with self._taken(ANSWER_MAX_S if limit_s is None else limit_s) as adapter:
            return await adapter.run(own_transaction(steps) if transaction else steps)

    async def _close_left(self) -> None:
        """What loops that have ended left idle: a check-back that is answered without a loop of the service's has one of its own (P9)."""
        with self._lock:
            left = [self._idle.pop(loop) for loop in list(self._idle) if loop.is_closed()]
        for adapter in [adapter for idle in left for adapter in idle]:
            await adapter.close()

    async def _is_dirty(self, adapter: AsyncAdapter) -> bool:
        if adapter.dialect == "sqlite":
            return bool(adapter.conn.in_transaction)
        conn = adapter.conn
        if not conn.closed and conn.info.transaction_status.name != "IDLE":
            async with in_time(adapter, GIVE_MAX_S):
                await conn.rollback()
        return bool(conn.closed)

    async def _is_reset(self, adapter: AsyncAdapter) -> bool:
        """False: the connection is lost, which must not look like a failure of what was committed on it."""
        try:
            async with in_time(adapter, GIVE_MAX_S):
                await adapter.run(one(Reset()))
        except Exception:
            log.debug("a connection was lost after its use", exc_info=True)
            return False
        return True

    async def _connect(self) -> AsyncAdapter:
        if self.dialect == "sqlite":
            import aiosqlite

            from .adapters.aiosqlite import AiosqliteAdapter, opened

            opening = aiosqlite.connect(self._path, isolation_level=None, timeout=BUSY_TIMEOUT_S)
            opening._thread.daemon = True  # an idle connection must not keep a process from its end
            adapter = AiosqliteAdapter(await opened(opening))
            try:
                await adapter.run(one(Sql("PRAGMA synchronous = FULL")))
                if not self._installed:
                    await self._install(adapter)
            except BaseException:
                await adapter.close()
                raise
            return adapter
        psycopg = _import_psycopg()
        from .adapters.psycopg import AsyncPsycopgAdapter, settings

        conn = await psycopg.AsyncConnection.connect(self.url, autocommit=True, prepare_threshold=None, **settings(self.url))
        return AsyncPsycopgAdapter(conn)

    async def _install(self, adapter: AsyncAdapter) -> None:
        await adapter.run(_prepare_file(self.tables))
        self._installed = True

    async def aclose(self) -> None:
        """Close the idle connections of this loop, and of those that have ended."""
        await self._close_left()
        try:
            await self._close_idle()
        finally:
            self._idle.pop(asyncio.get_running_loop(), None)

    async def _close_idle(self) -> None:
        idle = self._idle.get(asyncio.get_running_loop(), deque())
        try:
            while idle:
                await idle.pop().close()
        finally:  # cancelled at one of them: the others all the same
            while idle:
                await idle.pop().close()

    # --- sync ---

    def take_sync(self) -> SyncAdapter:
        """As `take`."""
        self._after_fork()
        place = self._places.take_sync()
        try:
            adapter = self._take_sync()
        except BaseException:
            place.release()
            raise
        self._places.bind(adapter, place)
        return adapter

    def _take_sync(self) -> SyncAdapter:
        self._after_fork()
        while (adapter := self._idle_one()) is not None:
            if not is_ended(adapter):
                return adapter
            adapter.close()
        return self._connect_sync()

    def _idle_one(self) -> SyncAdapter | None:
        with self._lock:
            return self._idle_sync.pop() if self._idle_sync else None

    def give_sync(self, adapter: SyncAdapter, *, broken: bool = False, lent: bool = False) -> None:
        try:
            conn: Any = adapter.conn
            if adapter.dialect == "sqlite":
                broken = broken or conn.in_transaction
            elif not conn.closed and conn.info.transaction_status.name != "IDLE":
                conn.rollback()
            broken = broken or (lent and not self._is_reset_sync(adapter))
            with self._lock:
                if not broken and len(self._idle_sync) < IDLE_MAX:
                    self._idle_sync.append(adapter)
                    return
            adapter.close()
        finally:
            self._places.free(adapter)

    def _is_reset_sync(self, adapter: SyncAdapter) -> bool:
        try:
            run_sync(one(Reset()), adapter)
        except Exception:
            log.debug("a connection was lost after its use", exc_info=True)
            return False
        return True

    def run_sync(self, steps: Steps[T], *, transaction: bool = False) -> T:
        adapter = self._take_sync()
        whole = False
        try:
            result = run_sync(own_transaction(steps) if transaction else steps, adapter)
            whole = True
            return result
        finally:
            self.give_sync(adapter, broken=not whole)

    def _connect_sync(self) -> SyncAdapter:
        if self.dialect == "sqlite":
            import sqlite3

            from .adapters.sqlite import SqliteAdapter

            conn = sqlite3.connect(self._path, isolation_level=None, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
            adapter = SqliteAdapter(conn)
            try:
                conn.execute("PRAGMA synchronous = FULL")
                if not self._installed:
                    run_sync(_prepare_file(self.tables), adapter)
                    self._installed = True
            except BaseException:
                conn.close()
                raise
            return adapter
        psycopg = _import_psycopg()
        from .adapters.psycopg import PsycopgAdapter, settings

        return PsycopgAdapter(psycopg.Connection.connect(self.url, autocommit=True, prepare_threshold=None, **settings(self.url)))

    def look_source(self) -> bytes:
        """The id of the database behind the URL, on a connection for this alone: it makes and changes nothing, and waits `LOOK_S` at most to
        connect, and as long for a lock or an answer: the lock may be that of the caller's own transaction.

        Raises UsageError(schema_missing), or what the driver does.
        """
        adapter: SyncAdapter
        if self.dialect == "sqlite":
            import sqlite3

            from .adapters.sqlite import SqliteAdapter

            adapter = SqliteAdapter(sqlite3.connect(f"{Path(self._path).as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=0))
        else:
            psycopg = _import_psycopg()
            from .adapters.psycopg import PsycopgAdapter, settings

            limits = settings(self.url) | {"connect_timeout": LOOK_S}
            adapter = PsycopgAdapter(psycopg.Connection.connect(self.url, autocommit=True, prepare_threshold=None, **limits))
        try:
            with in_time_sync(adapter, LOOK_S):
                return run_sync(_looking(self.tables), adapter).source
        finally:
            adapter.close()

    def close_sync(self) -> None:
        with self._lock:
            while self._idle_sync:
                self._idle_sync.pop().close()

    def _after_fork(self) -> None:
        """A connection must not cross a fork: the child forgets its parent's and opens its own."""
        if self._pid != os.getpid():
            _PARENTS.append((self._idle, self._idle_sync, self._places))  # kept, not closed: the file or socket is the parent's
            self._idle, self._idle_sync, self._lock, self._places = {}, deque(), threading.Lock(), Places()
            self._pid = os.getpid()  # last: another thread that sees it takes from what is ours


_PARENTS: list[object] = []


def is_ended(adapter: Adapter) -> bool:
    """A server that restarts ends its sessions, and an idle one hears of it only when it is used. Looked at without a round trip."""
    if adapter.dialect == "sqlite":
        return False
    from .adapters.psycopg import is_ended

    return is_ended(adapter.conn)


@asynccontextmanager
async def in_time(adapter: AsyncAdapter, limit_s: float) -> AsyncIterator[None]:
    """Raises TimeoutError once PostgreSQL has said nothing for so long; the connection is then of no more use. SQLite has its busy timeout."""
    if adapter.dialect == "sqlite":
        yield
        return
    from .adapters.psycopg import hang_up

    last = asyncio.get_running_loop().call_later(limit_s + CANCEL_S, hang_up, adapter.conn)
    limit = asyncio.timeout(limit_s)
    try:
        async with limit:
            yield
    except Exception as error:
        if not limit.expired():
            raise
        raise TimeoutError(f"the database has said nothing for {limit_s:g} s; the connection is closed") from error
    finally:
        last.cancel()


@contextmanager
def in_time_sync(adapter: SyncAdapter, limit_s: float) -> Iterator[None]:
    """The driver's error once PostgreSQL has said nothing for so long, and the time to end a statement; SQLite waits for nobody here."""
    if adapter.dialect == "sqlite":
        yield
        return
    from .adapters.psycopg import hang_up

    last = threading.Timer(limit_s + CANCEL_S, hang_up, (adapter.conn,))
    last.daemon = True
    last.start()
    try:
        yield
    finally:
        last.cancel()
        last.join()  # one that has begun: its socket must not be another's by then


def _looking(tables: Tables) -> Steps[fence.Meta]:
    return (yield from (fence.read_meta(tables) if tables.dialect == "sqlite" else own_transaction(_in_time(tables))))


def _in_time(tables: Tables) -> Steps[fence.Meta]:
    yield Sql(f"SET LOCAL statement_timeout = {1_000 * LOOK_S}")  # LOCAL: behind a pooler the session is others' too
    return (yield from fence.read_meta(tables))


def own_transaction(steps: Steps[T]) -> Steps[T]:
    yield Begin()
    result = yield from ending(steps)
    yield Commit()
    return result


def _prepare_file(tables: Tables) -> Steps[None]:
    """Our tables in a SQLite file. A file that is new gets WAL, so that relay and service do not wait for each other's reads."""
    for last in (*[False] * (LOOKS_MAX - 1), True):
        missing: list[str] = yield from tables.missing()
        if not missing:
            return
        found: Rows = yield Sql("SELECT count(*) FROM sqlite_master")
        ours: Rows = yield Sql("SELECT count(*) FROM sqlite_master WHERE name IN ('migration', 'okey', 'flight', 'place')")
        if ours[0][0] == 4:
            raise UsageError("other_database", "this file is a coordinator's store; an outbox or inbox lives in the database of your own service")
        if found[0][0]:
            break
        try:
            yield Sql("PRAGMA journal_mode = WAL")
            break
        except Exception as error:  # another process is making the file at this moment, and this pragma alone waits for no lock
            if last or "locked" not in str(error):
                raise
        yield Begin()  # waits in line for the other
        yield Abort()
    yield Begin()
    try:
        yield from tables.install(os.urandom(16))
    except BaseException:
        yield Abort()
        raise
    yield Commit()


def _dialect(url: str) -> Dialect:
    if url.startswith("sqlite:///"):
        path = url.removeprefix("sqlite:///")
        if not path or path == ":memory:":
            raise UsageError("bad_url", f"{url!r} names no file; relay and service must see the same database: sqlite:///orders.db")
        if not (Path(path).parent or Path()).is_dir():
            raise UsageError("bad_url", f"{url!r}: there is no folder {Path(path).parent}")
        if "?" in path:
            raise UsageError("bad_url", f"{url!r}: options are not taken here; only the path of the file: sqlite:///{path.partition('?')[0]}")
        return "sqlite"
    if url.startswith(("postgresql://", "postgres://")):
        return "postgresql"
    scheme = urlsplit(url).scheme or url[:20]
    raise UsageError("unknown_database", f"{scheme!r} is not known here; there are sqlite:///FILE and postgresql://…")


def _absolute(url: str) -> str:
    """One database for the life of the process, wherever it goes: a relative path means the folder in which its Outbox was made."""
    return f"sqlite:///{os.path.abspath(url.removeprefix('sqlite:///'))}"


def _import_psycopg() -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise UsageError("driver_missing", f"psycopg is not installed; run: {EXTRA}") from error
    return psycopg
