"""Backup and restore of a store file. A backup is one snapshot, taken over a read-only connection: the coordinator may be running.

A read-only connection neither writes nor checkpoints, so the writer stays the only one that does (SQLite's WAL-reset bug needs two).
While it copies, the log cannot begin anew and grows by what is written meanwhile. The copy is made under another name, checked, and
made durable before it gets its own. In it stands what it is, and a digest of all its rows; `serve` refuses such a file, since what was
given out after it would be given out again: `restore` makes a store of it (W15).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from . import doctor
from .env import Env
from .errors import StartError
from .service import restoring
from .settings import Settings
from .store.sqlite import file
from .store.sqlite.deliveries import Deliveries

_PROGRESS_OPS: Final = 200_000
_EVERY_BODY: Final = 1 << 40
_PART: Final = ".halfmsg-part-"
Progress = Callable[[str, float], None]
"""(what is being done, how much of it, 0 to 1)."""


class Backup(Struct, frozen=True):
    """What a backup holds, and at which moment of the coordinator's life it stands."""

    path: str
    bytes: int
    rows: int
    at: int
    transactions: int
    undecided: int
    digest: str
    findings: tuple[doctor.Finding, ...] = ()


class About(Struct, frozen=True):
    """What a backup says of itself."""

    at: int
    """The coordinator's time of the last commit in it, and never later than the wall clock was."""
    ahead: int = 0
    """By how many ms the coordinator's time was ahead of the wall clock, as far as that commit tells."""
    digest: str = ""
    version: str = ""
    rows: int = 0


class Restore(Struct, frozen=True):
    store: str
    rows: int
    backup_at: int | None
    """None: the file was no backup; it stands where its last commit is."""
    stands_at: int
    """What was acknowledged after this time is not in it: that of the backup, or the newest that could be read."""
    restored_at: int
    undecided: int
    taken_back: int
    aside: str | None
    findings: tuple[doctor.Finding, ...] = ()


def backup(store: Path, target: Path, *, now_ms: int, version: str, progress: Progress) -> Backup:
    """Raises StartError; then nothing is left behind. Invariants that do not hold are `findings`: the copy is as good as the store."""
    store = file.real(store)
    _check_source(store)
    _drop_stale(target.parent)
    if target.exists():
        raise StartError(f"{target} exists, and a backup overwrites nothing", "Name another file")
    if not target.parent.is_dir():
        raise StartError(f"there is no folder {target.parent}", "Make it, or name another file")
    if not os.access(target.parent, os.W_OK):
        raise StartError(f"cannot write to the folder {target.parent}", "Make it writable, or name another file")
    part = target.with_name(f".{target.name}{_PART}{os.getpid()}")
    try:
        _copy(store, part, progress)
        made = _describe(part, target, now_ms, version, progress)
        _make_durable(part, store.stat().st_mode & 0o777)
        _take_name(part, target)
    finally:
        part.unlink(missing_ok=True)
    return made


def restore(source: Path, store: Path, *, replace: bool, accept_loss: bool, now_ms: int, progress: Progress) -> Restore:
    """Make `store` of a backup (or of what can be read of a damaged store). The old one is kept aside. Raises StartError."""
    source, store = file.real(source), file.real(store)
    if accept_loss and source.is_file() and source.stat().st_size == 0:
        raise StartError(f"{source} is empty: nothing can be read of it, and opened it would lose its log too", "Restore a backup")
    with file.lock(store):
        return _restore(source, store, replace=replace, accept_loss=accept_loss, now_ms=now_ms, progress=progress)


def _restore(source: Path, store: Path, *, replace: bool, accept_loss: bool, now_ms: int, progress: Progress) -> Restore:
    same = source.exists() and store.exists() and source.samefile(store)
    if not same:
        _check_source(source, accept_loss=accept_loss, live=False)
    elif not accept_loss:
        raise StartError(f"{source} is the store itself", f"Name a backup, or say --accept-loss to go on with what can be read of {store}")
    if not replace and any(each.exists() for each in _parts_of(store)):
        raise StartError(f"{store} exists", "Name another file with --store, or say --replace: the old one is kept aside")
    part = file.half_way(store)
    _remove(part)
    try:
        about = _judge_source(source, accept_loss, progress)
        _copy(source, part, progress)
        begun, stands_at, rows, undecided = _begin_again(part, source, about, now_ms)
        findings = _judge_copy(part, accept_loss, progress)
        _make_durable(part, (source if source.exists() else store).stat().st_mode & 0o777)
    except BaseException:
        _remove(part)
        raise
    aside = _set_aside(store, now_ms) if any(each.exists() for each in _parts_of(store)) else None
    for leftover in _parts_of(part)[1:]:
        leftover.unlink(missing_ok=True)  # empty: a reader's log and its index
    part.rename(store)
    _sync_folder(store)
    kept = None if aside is None else str(aside)
    return Restore(str(store), rows, None if about is None else about.at, stands_at, now_ms, undecided, begun.taken_back, kept, findings)


# --- the source ---


def _check_source(path: Path, *, accept_loss: bool = False, live: bool = True) -> None:
    """Is there a store of ours, whole as far as bytes tell? A running one is judged by its coordinator's start."""
    if not path.is_file():
        raise StartError(f"there is no file {path}", f"Name the {'store' if live else 'backup'}'s file")
    if file.in_use(path):
        if not live:
            raise StartError(f"{path} is in use by a coordinator", f"Take a backup of it: halfmsg backup FILE --store {path}", 75)
        return
    log, wrong = file.look(path)
    words = file.damage(path, log, wrong)
    if words is not None and not accept_loss:
        raise StartError(words, file.instead(path))
    if live:
        file.check_version(path)


def _judge_source(path: Path, accept_loss: bool, progress: Progress) -> About | None:
    """What the backup says of itself; None for a store that is none. Raises StartError where it is not what it was."""
    with closing(_reader(path)) as conn, _told(path):
        if file.is_foreign(conn):
            raise StartError(f"{path} is a SQLite file of something else", "Name a file that `halfmsg backup` made")
        version = conn.execute("SELECT max(n) FROM migration").fetchone()[0]
        file.refuse_newer(version, path)
        has = conn.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (file.BACKUP_TABLE,)).fetchone()
        about = _about(conn, path) if has else None
        progress("checking", 0.0)
        sound = doctor.integrity_check(conn, full=True)
        same = about is None or _digest(conn, progress)[0] == about.digest
    if not accept_loss and not (sound.ok and same):
        why = "its rows are not what was written" if sound.ok else str(sound.rows[0])
        raise StartError(f"{path} is damaged: {why}", "Take an older backup, or say --accept-loss to go on with what can be read")
    return about


def _about(conn: sqlite3.Connection, path: Path) -> About:
    try:
        return msgspec.convert(dict(conn.execute("SELECT k, v FROM backup").fetchall()), About)
    except msgspec.ValidationError as error:
        raise StartError(f"{path} is damaged: what it says of itself is {error}", "Take an older backup") from error


def _judge_copy(part: Path, accept_loss: bool, progress: Progress) -> tuple[doctor.Finding, ...]:
    progress("checking", 0.5)
    with closing(_reader(part)) as conn, _told(part):
        found = tuple(each for each in doctor.run(conn, sample=_EVERY_BODY, integrity=True) if not each.ok)
    if found and not accept_loss:
        names = ", ".join(each.name for each in found)
        raise StartError(f"what is in the backup does not hold: {names}", "Look: halfmsg doctor --store BACKUP. To go on all the same: --accept-loss")
    return found


# --- copying ---


def _copy(source: Path, part: Path, progress: Progress) -> None:
    """One snapshot, row by row: what cannot be read is an error here and not a copy of damage."""
    size = max(source.stat().st_size, 1)

    def tell() -> int:
        with suppress(OSError):
            progress("copying", min(part.stat().st_size / size, 1.0))
        return 0

    with closing(_reader(source)) as conn, _told(source):
        conn.set_progress_handler(tell, _PROGRESS_OPS)
        conn.execute("VACUUM INTO ?", (str(part.absolute()),))


def _describe(part: Path, target: Path, now_ms: int, version: str, progress: Progress) -> Backup:
    """Check the copy, and write into it what it is."""
    with closing(sqlite3.connect(part, isolation_level=None)) as conn, _told(part):
        conn.execute("PRAGMA journal_mode = DELETE")
        sound = doctor.integrity_check(conn, full=True)
        if not sound.ok:
            raise StartError(f"the copy is not sound: {sound.rows}", "Look at the disk, then try again")
        findings = tuple(each for each in doctor.run(conn, sample=_EVERY_BODY) if not each.ok)
        digest, rows = _digest(conn, progress)
        last, undecided = conn.execute("SELECT (SELECT v FROM counter WHERE name = 'n'), (SELECT count(*) FROM tx WHERE state IN (0, 3))").fetchone()
        newest = conn.execute("SELECT v FROM counter WHERE name = 'now'").fetchone()[0] or now_ms
        about = About(min(newest, now_ms), max(newest - now_ms, 0), digest, version, rows)
        conn.execute("BEGIN IMMEDIATE")
        conn.execute(f"CREATE TABLE {file.BACKUP_TABLE} (k TEXT PRIMARY KEY, v) WITHOUT ROWID")
        conn.executemany(f"INSERT INTO {file.BACKUP_TABLE} VALUES (?, ?)", list(msgspec.structs.asdict(about).items()))
        conn.execute("COMMIT")
    return Backup(str(target), part.stat().st_size, rows, about.at, last, undecided, digest, findings)


def _digest(conn: sqlite3.Connection, progress: Progress) -> tuple[str, int]:
    """(blake2b over every row of every table in order of its key, how many rows)."""
    conn.text_factory = lambda raw: raw.decode(errors="surrogateescape")
    hashed, rows = blake2b(digest_size=16), 0
    names = [row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()]
    for at, name in enumerate(names):
        progress("checking", at / len(names))
        if name == file.BACKUP_TABLE:
            continue
        hashed.update(name.encode())
        for row in conn.execute(f'SELECT * FROM "{name}" NOT INDEXED'):
            hashed.update(repr(row).encode(errors="surrogateescape"))
            rows += 1
    conn.text_factory = str
    return hashed.hexdigest(), rows


def _begin_again(part: Path, source: Path, about: About | None, now_ms: int) -> tuple[restoring.Begun, int, int, int]:
    """(what was begun, as of which time it stands, rows, undecided ones)."""
    with closing(file.connect(part, "FULL")) as conn, _told(part):
        conn.execute(f"DROP TABLE IF EXISTS {file.BACKUP_TABLE}")
        file.migrate(conn, part, now_ms)
        tx = Deliveries(conn, Env(Settings()))
        conn.execute("BEGIN IMMEDIATE")
        newest = tx.counter("now")
        tx.now = now = max(now_ms, newest)  # never back (R19)
        stands_at = newest if about is None else about.at
        ahead = max(newest - now_ms, 0) if about is None else about.ahead
        begun = restoring.begin_again(tx, now, restoring.BeginAgain(stands_at, source.name, max(now, now_ms + ahead)))
        tx.flush()
        conn.execute("COMMIT")
        tables = [row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()]
        rows = sum(conn.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in tables)
        undecided = conn.execute("SELECT count(*) FROM tx WHERE state IN (0, 3)").fetchone()[0]
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return begun, stands_at, rows, undecided


# --- files ---


def _reader(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(file.read_only(path), uri=True, isolation_level=None)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What SQLite says of a file, as one line."""
    try:
        yield
    except sqlite3.Error as error:
        raise StartError(f"{path}: {error}", f"Is there room on the disk, and is it a halfmsg store? Look: halfmsg doctor --store {path}") from error


def _parts_of(path: Path) -> list[Path]:
    return [path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm", "-sums"))]


def _remove(path: Path) -> None:
    for each in (*_parts_of(path), path.with_name(path.name + "-journal")):
        each.unlink(missing_ok=True)


def _set_aside(store: Path, now_ms: int) -> Path:
    """Under a name that opens as the store it was. A crash from here on leaves the half-way file, which stops every start."""
    aside = store.with_name(f"{store.name}.replaced-{now_ms}")
    for old, new in zip(_parts_of(store), _parts_of(aside), strict=True):
        if old.exists():
            old.rename(new)
    return aside


def _make_durable(path: Path, mode: int) -> None:
    path.chmod(mode)
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _take_name(part: Path, target: Path) -> None:
    try:
        os.link(part, target)  # never over another file, as a rename would
    except FileExistsError as error:
        raise StartError(f"{target} was made meanwhile, and a backup overwrites nothing", "Name another file") from error
    _sync_folder(target)


def _sync_folder(path: Path) -> None:
    fd = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _drop_stale(folder: Path) -> None:
    """Parts of backups whose process was killed, whatever their names: those of last night's had another one."""
    for each in folder.glob(f".*{_PART}*"):
        pid = each.name.rpartition("-")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            _remove(each)
