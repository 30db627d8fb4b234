"""What an operator does with the tables in a service's database: install, verify, list, relay. Used by the command line."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from halfmsg.txclient import UsageError

from . import fence, tables
from .effects import Rows, Steps
from .home import Home
from .outbox import Outbox


class Waiting(Struct, frozen=True):
    """A row set that was not handed over. `refused`: the code with which the coordinator refuses it for ever."""

    id: str
    topic: str
    key: str | None
    sequence: int | None
    refused: str | None


def install(url: str, print_only: bool = False, prefix: str = "halfmsg_") -> list[str]:
    """Make the tables that are missing; gives the names made, or with `print_only` the DDL. A second run changes nothing."""
    home = Home(url, prefix)
    if print_only:
        return list(tables.statements(home.dialect, prefix))
    try:
        missing = home.run_sync(home.tables.missing()) if home.dialect == "postgresql" else _missing_before(home)
        if missing or not home.run_sync(home.tables.is_filled()):  # made by the DDL alone, in a migration of yours: no rows yet
            home.run_sync(home.tables.install(os.urandom(16)), transaction=True)
    finally:
        home.close_sync()
    return missing


def _missing_before(home: Home) -> list[str]:
    """On SQLite the first connection makes them, and the file too; look before it does."""
    import sqlite3

    from .adapters.sqlite import SqliteAdapter
    from .effects import run_sync

    file = Path(home.url.removeprefix("sqlite:///"))
    adapter = SqliteAdapter(sqlite3.connect(file if file.exists() else ":memory:", isolation_level=None))
    try:
        return run_sync(home.tables.missing(), adapter)
    finally:
        adapter.close()


def _existing(url: str, prefix: str) -> Home:
    """The database that is meant, and nothing made on the way: a misspelt file must not say that nothing waits there.

    Raises UsageError: bad_url, schema_missing.
    """
    home = Home(url, prefix)
    _see_tables(home)
    return home


def _see_tables(home: Home) -> None:
    """On SQLite, where the first connection would make them. On a server the first statement says what is missing."""
    if home.dialect == "sqlite":
        _see_file(home)
        if _missing_before(home):
            raise fence.schema_missing(home.tables)


def _see_file(home: Home) -> None:
    path = home.url.removeprefix("sqlite:///")
    if not os.path.isfile(path):
        raise UsageError("bad_url", f"{home.url!r}: there is no file {path}")


def verify(url: str, prefix: str = "halfmsg_") -> list[str]:
    """What is wrong with the tables, a line each; empty: nothing."""
    home = Home(url, prefix)
    try:
        if home.dialect == "sqlite":
            _see_file(home)
        missing = _missing_before(home) if home.dialect == "sqlite" else home.run_sync(home.tables.missing())
        if missing:
            return [f"table {name} is missing; run: {home.tables.install_command(url)}" for name in missing]
        home.run_sync(fence.read_meta(home.tables))
    except UsageError as error:
        return [str(error)]
    finally:
        home.close_sync()
    return []


def waiting(url: str, limit: int = 100, prefix: str = "halfmsg_") -> list[Waiting]:
    """Rows not handed over yet, and refused ones."""
    home = _existing(url, prefix)
    try:
        return home.run_sync(_waiting(home, limit))
    finally:
        home.close_sync()


def _waiting(home: Home, limit: int) -> Steps[list[Waiting]]:
    found: list[Waiting] = []
    unsent: Rows = yield home.tables.sql("unsent", *fence.FIRST, limit)
    refused: Rows = yield home.tables.sql("refused", limit)
    for id, why in [(row[0], None) for row in unsent] + [(row[0], row[1]) for row in refused]:
        for _, topic, key, sequence, _, _ in (yield from fence.read_rows(home.tables, id)):
            found.append(Waiting(fence.id_text(id), topic, None if key is None else bytes(key).decode(errors="replace"), sequence, why))
    return found


def retry(url: str, prefix: str = "halfmsg_") -> int:
    """Have the relay hand over again what the coordinator refused, once its reason is gone (a topic that was not made). Gives how many."""
    home = _existing(url, prefix)
    try:
        return home.run_sync(_retry(home), transaction=True)
    finally:
        home.close_sync()


def _retry(home: Home) -> Steps[int]:
    again: Rows = yield home.tables.sql("retry")
    return len(again)


class Resent(Struct, frozen=True):
    """`again`: how many will be handed over again. `bodiless`: committed ones whose bodies only the coordinator had (prepared first)."""

    again: int
    bodiless: list[Waiting]


def resend(url: str, since_ms: int, limit: int = 1_000, prefix: str = "halfmsg_") -> Resent:
    """Have the relay hand over again what was committed since a time of the coordinator's: it was restored from a backup of then (W8, W15).

    Ids, digests and numbers are the same, so whatever the coordinator still knows is a repeat. The time is compared with the mark, the
    newest time of the coordinator that the producer had seen; a row whose mark says no time goes too.
    """
    home = _existing(url, prefix)
    try:
        return home.run_sync(_resend(home, since_ms, limit), transaction=True)
    finally:
        home.close_sync()


def _resend(home: Home, since_ms: int, limit: int) -> Steps[Resent]:
    again: Rows = yield home.tables.sql("resend", since_ms)
    without: Rows = yield home.tables.sql("bodiless", since_ms, limit)
    found: list[Waiting] = []
    for (id,) in without:
        rows: Rows = yield home.tables.sql("numbers_of", bytes(id))
        found += [Waiting(fence.id_text(id), "", None, sequence, None) for _, sequence, _ in rows]
    return Resent(len(again), found)


def load(target: str) -> Outbox:
    """`package.module:name` of an Outbox. Raises UsageError(bad_name)."""
    module, _, name = target.partition(":")
    if not module or not name:
        raise UsageError("bad_name", f"{target!r} is not MODULE:OUTBOX; example: halfmsg outbox relay orders:outbox")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # it is somebody's program: it may raise anything while it is imported
        what = "" if isinstance(error, ImportError | AttributeError) else f"importing {module} failed: {type(error).__name__}: "
        raise UsageError("bad_name", f"cannot load {target}: {what}{error}") from error
    if not isinstance(found, Outbox):
        raise UsageError("bad_name", f"{target} is a {type(found).__name__}, not an Outbox")
    return found


def relay(target: str, report: Callable[[str], None] = print, stop: asyncio.Event | None = None) -> None:
    """Hand over, answer check-backs, until SIGTERM or SIGINT.

    Raises UsageError: bad_name; bad_url or schema_missing where the database is not that of a service: an empty one that is made on the way
    would take the producer's name, and its rows would wait for ever.
    """
    outbox = load(target)
    _see_tables(outbox._home)
    asyncio.run(_relay(outbox, report, stop))


async def _relay(outbox: Outbox, report: Callable[[str], None], stop: asyncio.Event | None) -> None:
    import signal

    ended = stop or asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with outbox:
        report(f"{outbox.name}  relaying and answering; source {outbox.source_id}")
        await ended.wait()
        current = outbox._relay
    if current is not None:
        totals = current.totals
        report(f"{outbox.name}  committed {totals.committed}  sent {totals.submitted}  refused {totals.refused}")
    await outbox.client.aclose()
