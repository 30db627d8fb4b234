"""Opening the file: lock, settings that are read back, migrations. Errors are one line with the cause and the next command."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import sqlite3
from importlib.resources import files
from pathlib import Path
from typing import IO

from ...errors import StartError

_MIGRATION = re.compile(r"^(\d{4})_\w+\.sql$")
_SAFE_SQLITE = (3, 51, 3)
WAL_PAGES = 4_000
JOURNAL_BYTES_MAX = 64 * 1024 * 1024


def migrations() -> list[tuple[int, str, str]]:
    """(number, name, text) of each numbered file, in order."""
    folder = files(__package__.rpartition(".")[0]) / "sql" / "sqlite"
    found = [(int(m[1]), f.name, f.read_text()) for f in folder.iterdir() if (m := _MIGRATION.match(f.name))]
    return sorted(found)


def lock(path: Path) -> IO[str]:
    """Take the file's lock for the life of this process. Raises StartError when another coordinator has it."""
    lock_path = path.with_name(path.name + ".lock")
    try:
        handle = lock_path.open("a+")
    except OSError as error:
        raise StartError(
            f"cannot write {lock_path}: {error.strerror}", f"Make {path.parent or '.'} writable, or name another file with --store"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.seek(0)
        holder = handle.read().strip() or "another process"
        handle.close()
        raise StartError(f"{path} is in use by {holder}", "Stop that coordinator, or name another file with --store", 75) from error
    try:
        handle.truncate(0)
        handle.write(f"process {os.getpid()}")
        handle.flush()
    except OSError as error:
        with contextlib.suppress(OSError):
            handle.close()
        raise StartError(f"cannot write {lock_path}: {error.strerror}", _room(error)) from error
    return handle


FULL = "The disk is full: make room and start again; what is stored is safe"


def _room(error: OSError) -> str:
    return FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Look at the disk, or name another file with --store"


def connect(path: Path, synchronous: str) -> sqlite3.Connection:
    """The one connection that writes and checkpoints. `synchronous` FULL keeps P3; it is read back, since builds differ."""
    try:
        conn = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=512)
    except sqlite3.Error as error:
        raise refusal(path, error) from error
    try:
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute(f"PRAGMA synchronous = {synchronous}")
        conn.execute("PRAGMA temp_store = MEMORY")
        conn.execute("PRAGMA mmap_size = 0")
        conn.execute("PRAGMA secure_delete = OFF")
        conn.execute("PRAGMA cache_size = -65536")
        conn.execute("PRAGMA foreign_keys = OFF")
        conn.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
        conn.execute(f"PRAGMA journal_size_limit = {JOURNAL_BYTES_MAX}")
        _check_settings(conn, path, synchronous)
    except BaseException as error:
        conn.close()
        if isinstance(error, sqlite3.Error):
            raise refusal(path, error) from error
        raise
    return conn


def refusal(path: Path, error: sqlite3.Error) -> StartError:
    """An error of opening, recovering or migrating, as the one line that a person gets."""
    name = getattr(error, "sqlite_errorname", "")
    return StartError(f"cannot open {path}: {error}{f' ({name})' if name else ''}", _remedy(path, error))


def _check_settings(conn: sqlite3.Connection, path: Path, synchronous: str) -> None:
    levels = {"OFF": 0, "NORMAL": 1, "FULL": 2, "EXTRA": 3}
    mode = conn.execute("PRAGMA journal_mode").fetchone()[0]
    level = conn.execute("PRAGMA synchronous").fetchone()[0]
    if mode != "wal" or level != levels[synchronous]:
        raise StartError(
            f"{path} took journal_mode={mode}, synchronous={level} instead of wal, {levels[synchronous]}",
            "Is it on a network disk? Put it on a local one",
        )


def _remedy(path: Path, error: sqlite3.Error) -> str:
    text = str(error)
    if "not a database" in text or "malformed" in text:
        return "It is no halfmsg store or is damaged; keep a copy and start with another --store"
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
        return FULL
    return f"Check that {path.parent or '.'} exists and is writable, or name another file with --store"


def migrate(conn: sqlite3.Connection, path: Path, now_ms: int) -> None:
    """Bring the file to the newest schema, one transaction a step. A file newer than the code is refused and not touched."""
    known = migrations()
    have = _version(conn, path)
    if have > known[-1][0]:
        raise StartError(
            f"{path} has schema {have}, newer than this halfmsg knows ({known[-1][0]})",
            "Install the newer halfmsg: pip install --upgrade halfmsg",
        )
    for number, name, text in known:
        if number > have:
            _apply(conn, number, name, text, now_ms)


def _version(conn: sqlite3.Connection, path: Path) -> int:
    tables = {row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()}
    if not tables:
        return 0
    if "migration" not in tables:
        raise StartError(f"{path} is a SQLite file of something else", "Name another file with --store")
    return int(conn.execute("SELECT max(n) FROM migration").fetchone()[0] or 0)


def _apply(conn: sqlite3.Connection, number: int, name: str, text: str, now_ms: int) -> None:
    conn.execute("BEGIN IMMEDIATE")
    try:
        for statement in _statements(text):
            conn.execute(statement)
        conn.execute("INSERT INTO migration (n, name, at) VALUES (?, ?, ?)", (number, name, now_ms))
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise


def _statements(text: str) -> list[str]:
    found, current = [], ""
    for line in text.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            found.append(current)
            current = ""
    return [s for s in found if s.strip()]


def version_note() -> str | None:
    """Words for the banner where the library has the WAL-reset bug: harmless here, since one connection writes and checkpoints."""
    if sqlite3.sqlite_version_info >= _SAFE_SQLITE:
        return None
    return f"SQLite {sqlite3.sqlite_version} < 3.51.3: its WAL-reset bug cannot occur with the one writing connection used here"


def read_only(path: Path) -> str:
    """The URI that readers open."""
    return f"{path.resolve().as_uri()}?mode=ro"
