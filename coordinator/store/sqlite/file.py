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
from .. import failpoints
from . import sums, wal

_MIGRATION = re.compile(r"^(\d{4})_\w+\.sql$")
_SAFE_SQLITE = (3, 51, 3)
WAL_PAGES = 4_000
JOURNAL_BYTES_MAX = 64 * 1024 * 1024
BACKUP_TABLE = "backup"
"""Only a file that `halfmsg backup` wrote has it."""
_OF_THE_DISK = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_READONLY}


def migrations() -> list[tuple[int, str, str]]:
    """(number, name, text) of each numbered file, in order."""
    folder = files(__package__.rpartition(".")[0]) / "sql" / "sqlite"
    found = [(int(m[1]), f.name, f.read_text()) for f in folder.iterdir() if (m := _MIGRATION.match(f.name))]
    return sorted(found)


def real(path: Path) -> Path:
    """The file behind a symbolic link: its lock, log and sums stand beside it, where SQLite looks for them, and not beside the link."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


class Standing:
    """The store's files as they were when they were opened. One that is removed or replaced under a coordinator takes every commit with it."""

    def __init__(self, path: Path) -> None:
        self._paths = (path, wal.wal_path(path))
        self._known: dict[Path, tuple[int, int]] = {}

    def gone(self) -> Path | None:
        """The first one that is not there any more, or another file. What is met for the first time is remembered."""
        for path in self._paths:
            try:
                found = os.stat(path)
                now = found.st_dev, found.st_ino
            except FileNotFoundError:
                now = None
            if path in self._known and now != self._known[path]:
                return path
            if now is not None:
                self._known[path] = now
        return None


def lock(path: Path) -> IO[str]:
    """Take the file's lock for the life of this process. Raises StartError when another coordinator has it."""
    if path.is_file() and (names := path.stat().st_nlink) > 1:
        raise StartError(f"{path} has {names} names (hard links), and a lock under one of them says nothing to the others", "Keep one, or copy it")
    if path.exists() and not path.is_file():
        raise StartError(
            f"{path} is {'a folder' if path.is_dir() else 'no file'}",
            f"Name a file: --store {path / 'halfmsg.db' if path.is_dir() else 'halfmsg.db'}",
        )
    lock_path = path.with_name(path.name + ".lock")
    try:
        handle = lock_path.open("a+")
    except OSError as error:
        if not path.parent.is_dir():
            raise StartError(f"there is no folder {path.parent}", "Make it, or name another file with --store") from error
        raise StartError(f"cannot write {lock_path}: {error.strerror}", f"Make {path.parent} writable, or name another file with --store") from error
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


_LOOK_AT_THE_DISK = "Look at the disk and at the limit of open files, then do it again"
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
        conn.execute("PRAGMA wal_autocheckpoint = 0")  # backend.py does it at WAL_PAGES, and takes the pages' sums
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
    if "not a database" in text and not _has_magic(path):
        return f"It is no halfmsg store, or its beginning is gone: name another file with --store, or restore a backup: {_RESTORE.format(path)}"
    if "not a database" in text or "malformed" in text or "corrupt" in text:
        return f"It is no halfmsg store or is damaged. {instead(path)}"
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
        return FULL
    return f"Check that {path.parent or '.'} exists and is writable, or name another file with --store"


def _has_magic(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


_RESTORE = "halfmsg restore BACKUP --store {} --replace"


def instead(path: Path) -> str:
    """The next command where a store cannot be trusted."""
    return (
        f"Keep a copy, then restore a backup: {_RESTORE.format(path)}; "
        f"or go on with what can be read: halfmsg restore {path} --store {path} --replace --accept-loss"
    )


def next_after(path: Path, words: str) -> str:
    """The next command where a start failed on what it read or wrote first."""
    if any(name in words for name in ("SQLITE_IOERR", "SQLITE_CANTOPEN")):
        return _LOOK_AT_THE_DISK
    return f"Look: halfmsg doctor --store {path}. {instead(path)}"


def half_way(path: Path) -> Path:
    """What `halfmsg restore` builds before it takes the place of the store."""
    return path.with_name(path.name + ".restoring")


def in_use(path: Path) -> bool:
    """Has a coordinator the file? Nothing is made, and nothing kept."""
    try:
        handle = path.with_name(path.name + ".lock").open("rb")
    except OSError:
        return False
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def look(path: Path, synchronous: str = "FULL") -> tuple[wal.Wal, list[int] | None]:
    """(the log, pages that are not as they were written) of a store that nobody uses. No SQLite is opened: that would change the log's index.

    Raises StartError where the disk does not give them to read.
    """
    try:
        log = wal.inspect(path, synced=synchronous == "FULL")
        return log, sums.wrong_pages(path, log.pages)
    except OSError as error:
        raise StartError(f"cannot read {error.filename or path}: {error.strerror}", _LOOK_AT_THE_DISK) from error


def remove(path: Path) -> None:
    """Raises StartError."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StartError(f"cannot remove {path}: {error.strerror}", _LOOK_AT_THE_DISK) from error


def damage(path: Path, log: wal.Wal, wrong: list[int] | None) -> str | None:
    """One sentence that says what and where; None where nothing is known to be wrong."""
    if log.damage is not None:
        return log.damage
    if (not path.exists() or path.stat().st_size == 0) and sums.are_kept(path):
        return f"{path} is missing or empty, and {sums.sums_path(path)} says that there was a store (to begin with an empty one, remove that too)"
    if not wrong:
        return None
    shown = ", ".join(map(str, wrong[:5])) + (", …" if len(wrong) > 5 else "")
    changed = f"damage, or another program changed the file; if that was meant, remove {sums.sums_path(path)}"
    return f"{path} has {len(wrong)} pages that are not what the coordinator wrote ({changed}): page {shown}"


def check_pages(conn: sqlite3.Connection, path: Path) -> None:
    """For a file without page sums: SQLite's own look. Raises StartError."""
    try:
        [(found,), *_] = conn.execute("PRAGMA quick_check(1)").fetchall()
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found != "ok":
        raise StartError(f"{path} is damaged: {' '.join(str(found).split())}", instead(path))


def check_version(path: Path) -> None:
    """Refuse what is not ours, or newer, before anything is written to it. Raises StartError.

    A journal beside it was left by a crash in the first moments of the file, before there was a log: SQLite has to take it back, also to read.
    """
    if not path.exists() or path.stat().st_size == 0:
        return
    mode = "rw" if path.with_name(path.name + "-journal").exists() else "ro"
    try:
        conn = sqlite3.connect(_uri(path, mode), uri=True, isolation_level=None)
    except sqlite3.Error as error:
        raise StartError(f"cannot open {path}: {error}", _remedy(path, error)) from error
    try:
        refuse_newer(_version(conn, path), path)
    finally:
        conn.close()


def refuse_newer(have: int, path: Path) -> None:
    newest = migrations()[-1][0]
    if have > newest:
        raise StartError(
            f"{path} has schema {have}, newer than this halfmsg knows ({newest})", "Install the newer halfmsg: pip install --upgrade halfmsg"
        )


def migrate(conn: sqlite3.Connection, path: Path, now_ms: int) -> None:
    """Bring the file to the newest schema, one transaction a step. A file newer than the code is refused and not touched."""
    known = migrations()
    have = _version(conn, path)
    refuse_newer(have, path)
    for number, name, text in known:
        if number > have:
            try:
                _apply(conn, number, name, text, now_ms)
            except sqlite3.DatabaseError as error:
                if error.sqlite_errorcode & 0xFF not in _OF_THE_DISK:
                    raise
                raise StartError(f"cannot bring {path} to schema {number}: {error}; it is as it was", _remedy(path, error)) from error


def is_foreign(conn: sqlite3.Connection) -> bool:
    """Has it tables, and not ours? What would mend a store must not be said of somebody else's file."""
    tables = _tables(conn)
    return bool(tables) and "migration" not in tables


def _tables(conn: sqlite3.Connection) -> set[str]:
    return {row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()}


def _version(conn: sqlite3.Connection, path: Path) -> int:
    try:
        tables = _tables(conn)
        if not tables:
            return 0
        if "migration" not in tables:
            raise StartError(f"{path} is a SQLite file of something else", "Name another file with --store")
        if BACKUP_TABLE in tables:
            raise StartError(
                f"{path} is a backup: numbers and leases given out after it would be given out again",
                f"Make a store of it: halfmsg restore {path} --store NEW",
            )
        return int(conn.execute("SELECT max(n) FROM migration").fetchone()[0] or 0)
    except sqlite3.DatabaseError as error:
        raise StartError(f"cannot read {path}: {error}", _remedy(path, error)) from error


def _apply(conn: sqlite3.Connection, number: int, name: str, text: str, now_ms: int) -> None:
    conn.execute("BEGIN IMMEDIATE")
    try:
        for statement in _statements(text):
            conn.execute(statement)
            failpoints.hit("migrating")
        conn.execute("INSERT INTO migration (n, name, at) VALUES (?, ?, ?)", (number, name, now_ms))
        failpoints.hit("migrating")
        conn.execute("COMMIT")
        failpoints.hit("migrated")
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
    return _uri(path, "ro")


def _uri(path: Path, mode: str) -> str:
    return f"{path.resolve().as_uri()}?mode={mode}"
