"""What is SQLite's own: the plan of each statement, migrations, the lock, and files that are refused."""

from __future__ import annotations

import gc
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from halfmsg.coordinator.env import Env
from halfmsg.coordinator.errors import StartError
from halfmsg.coordinator.settings import Settings
from halfmsg.coordinator.store.base import StoreBroken, StoreFull
from halfmsg.coordinator.store.queries import Queries
from halfmsg.coordinator.store.sqlite import file
from halfmsg.coordinator.store.sqlite.backend import SqliteBackend, meaning
from tests.support.stores import dump_file, open_sqlite

Q = Queries("sqlite")
# A start that is refused leaves its lock file to the garbage collector: see test_refused_file_is_not_kept_locked.

EXCEPTIONS = {
    "retry_count_moving": "SCAN (subquery-2): of at most LIMIT rows; asked where a lane has 1,000 exceptions, and not past 100,000",
    "okey_drain_next": "SCAN okey USING INDEX okey_drain: the partial index holds the draining keys only",
    "source_any_tx_ever": "SCAN tx: when an operator removes a producer, and no further than the first one of it",
    "topic_any_prepared": "SCAN t USING INDEX tx_due: the partial index holds what is prepared only",
    "topic_any_parked": "SCAN t USING INDEX tx_parked: the partial index holds what is parked only",
    "source_any_tx": "COMPOUND QUERY: its two halves are one look-up each",
}
"""name: why its plan may have a SCAN. Each must be in the file, and each must still scan."""
BOUNDED_COUNT = re.compile(r"SELECT count\(\*\)( >= \?)? FROM \(SELECT 1 FROM .* LIMIT (\?|\d+)\)$")
"""Counts the rows of a subquery that has a LIMIT: that SCAN is of at most so many rows in memory."""


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    path = tmp_path_factory.mktemp("plans") / "store.db"
    conn = sqlite3.connect(path, isolation_level=None)
    file.migrate(conn, path, 0)
    yield conn
    conn.close()


def _plan(conn: sqlite3.Connection, sql: str) -> list[str]:
    return [row[3] for row in conn.execute(f"EXPLAIN QUERY PLAN {sql}", (None,) * sql.count("?")).fetchall()]


@pytest.mark.parametrize("name", sorted(Q.by_name))
def test_p9_statement_is_a_look_up_or_a_bounded_range(empty: sqlite3.Connection, name: str) -> None:
    """No statement walks a table or sorts: the cost does not grow with what is stored."""
    plan = _plan(empty, Q.by_name[name])
    wrong = [step for step in plan if step.startswith("SCAN") and step != "SCAN CONSTANT ROW"]
    if BOUNDED_COUNT.match(Q.by_name[name]):
        wrong.remove("SCAN (subquery-1)")
    wrong += [step for step in plan if "TEMP B-TREE" in step or "AUTOMATIC" in step]
    if EXCEPTIONS.get(name, "").startswith("SCAN"):
        assert len(wrong) == 1 and wrong[0].startswith(EXCEPTIONS[name].partition(":")[0]), plan
    else:
        assert not wrong, plan


def test_plan_test_sees_a_scan_and_a_sort(empty: sqlite3.Connection) -> None:
    """The check itself: a walk and a sort are reported as such by this SQLite."""
    assert _plan(empty, "SELECT n FROM tx WHERE reason = ?")[0].startswith("SCAN")
    assert any("TEMP B-TREE" in step for step in _plan(empty, "SELECT n FROM tx WHERE n > ? ORDER BY first_at"))
    assert EXCEPTIONS.keys() <= Q.by_name.keys()


def test_every_statement_is_used() -> None:
    """A statement that nobody calls is one that no test reads."""
    root = Path(__file__).parents[2] / "coordinator"
    text = "\n".join(path.read_text() for path in root.rglob("*.py"))
    unused = {name for name in Q.by_name if not re.search(rf"\bQ\.{name}\b", text)}
    assert unused <= UNUSED, unused - UNUSED


UNUSED = {"flight_any_of_lane", "retry_of_grp"}


def test_migrating_twice_gives_the_same_schema(tmp_path: Path) -> None:
    """Opened a second time nothing is applied again; a second file gets the very same schema."""
    schemas = []
    for name in ("a.db", "b.db"):
        for _ in range(2):
            open_sqlite(tmp_path / name).close()
            conn = sqlite3.connect(tmp_path / name)
            schemas.append(conn.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name").fetchall())
            assert conn.execute("SELECT count(*) FROM migration").fetchone() == (len(file.migrations()),)
            conn.close()
    assert schemas[0] == schemas[1] == schemas[2] == schemas[3]


def test_migrations_are_numbered_without_a_hole() -> None:
    """0001, 0002, … so that the highest number tells what is in a file."""
    assert [number for number, _, _ in file.migrations()] == list(range(1, len(file.migrations()) + 1))


def test_p3_broken_migration_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that fails half-way is undone whole, and tried anew at the next start."""
    path = tmp_path / "store.db"
    open_sqlite(path).close()
    before = dump_file(path)
    known = file.migrations()
    monkeypatch.setattr(
        file, "migrations", lambda: [*known, (known[-1][0] + 1, "9999_bad.sql", "CREATE TABLE new (a);\nINSERT INTO nowhere VALUES (1);\n")]
    )
    with pytest.raises(sqlite3.OperationalError):
        open_sqlite(path)
    gc.collect()
    assert dump_file(path) == before


def _refused(path: Path) -> StartError:
    try:
        open_sqlite(path)
    except StartError as error:
        found = error
    else:
        raise AssertionError("it opened")
    found.__traceback__ = found.__cause__ = found.__context__ = None  # what the failed start left open ends here
    gc.collect()
    assert "\n" not in str(found) and str(path if path.parent.exists() else path.parent) in str(found)
    return found


def test_newer_schema_is_refused_and_not_touched(tmp_path: Path) -> None:
    """A file of a newer halfmsg: one line with what to install, and no byte changed."""
    path = tmp_path / "store.db"
    open_sqlite(path).close()
    conn = sqlite3.connect(path)
    with conn:
        conn.execute("INSERT INTO migration VALUES (99, '0099_future.sql', 0)")
    conn.close()
    before = dump_file(path)
    error = _refused(path)
    assert "newer" in str(error) and error.exit_code == 1
    assert dump_file(path) == before


def test_file_of_something_else_is_refused_and_not_touched(tmp_path: Path) -> None:
    """A SQLite file with other tables, and a file that is no SQLite file."""
    path = tmp_path / "theirs.db"
    conn = sqlite3.connect(path)
    with conn:
        conn.execute("CREATE TABLE orders (id)")
    conn.close()
    assert "something else" in str(_refused(path))
    assert dump_file(path) == {"orders": []}
    text = tmp_path / "text.db"
    text.write_bytes(b"not a database " * 100)
    _refused(text)
    assert text.read_bytes() == b"not a database " * 100


def test_second_coordinator_on_the_file_is_refused(tmp_path: Path) -> None:
    """One process owns the file: exit code 75, the holder named; after it ends the file opens."""
    first = open_sqlite(tmp_path / "store.db")
    error = _refused(tmp_path / "store.db")
    assert (error.exit_code, f"process {os.getpid()}" in str(error)) == (75, True)
    first.close()
    open_sqlite(tmp_path / "store.db").close()


def test_refused_file_is_not_kept_locked(tmp_path: Path) -> None:
    """A start that was refused leaves nothing behind: the lock is free though its error is still looked at."""
    path = tmp_path / "store.db"
    conn = sqlite3.connect(path)
    with conn:
        conn.execute("CREATE TABLE orders (id)")
    conn.close()
    kept: list[StartError] = []
    for _ in range(2):
        try:
            open_sqlite(path)
        except StartError as error:
            kept.append(error)
    codes = [error.exit_code for error in kept]
    for error in kept:
        error.__traceback__ = error.__context__ = None
    kept.clear()
    gc.collect()
    assert codes == [1, 1]


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    """The folder is named, and what to do."""
    error = _refused(tmp_path / "none" / "store.db")
    assert error.exit_code == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="for root every folder is writable")
def test_read_only_folder_is_refused(tmp_path: Path) -> None:
    """A store that cannot be written is refused at the start, not at the first message."""
    folder = tmp_path / "readonly"
    folder.mkdir()
    folder.chmod(0o500)
    try:
        _refused(folder / "store.db")
    finally:
        folder.chmod(0o700)


def test_p3_settings_of_the_connection_are_read_back(tmp_path: Path) -> None:
    """WAL and FULL are what SQLite says, not what we asked for."""
    backend = SqliteBackend(tmp_path / "store.db", env=Env(Settings()), synchronous="FULL", now_ms=0)
    pragma = lambda name: backend._conn.execute(f"PRAGMA {name}").fetchone()[0]  # noqa: E731
    assert (pragma("journal_mode"), pragma("synchronous"), pragma("mmap_size"), pragma("foreign_keys")) == ("wal", 2, 0, 0)
    backend.close()


def test_p3_full_is_what_a_coordinator_runs_at_by_default(tmp_path: Path) -> None:
    """Nobody has to ask for durability: the settings say FULL, and NORMAL needs a word that it loses."""
    backend = SqliteBackend(tmp_path / "store.db", env=Env(Settings()), synchronous=Settings().storage.synchronous, now_ms=0)
    assert backend._conn.execute("PRAGMA synchronous").fetchone() == (2,)
    backend.close()


def test_p9_wal_does_not_grow_with_what_is_written(tmp_path: Path) -> None:
    """The writer checkpoints as it goes: after many times the limit of pages the WAL is about as long as that limit."""
    store = open_sqlite(tmp_path / "store.db")
    wal = tmp_path / "store.db-wal"
    limit = file.WAL_PAGES * 4_096 or 16_000_000
    sql = "INSERT INTO audit (at, actor, act, target, reason) VALUES (0, '', '', ?, '')"
    for _ in range(3 * limit // 1_000_000):
        store.do(lambda tx: tx.run(sql, "x" * 1_000_000))
    assert wal.stat().st_size < 1.5 * limit
    store.close()


def _error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("x")
    error.sqlite_errorcode = code
    error.sqlite_errorname = "SQLITE_X"
    return error


@pytest.mark.parametrize(
    ("code", "expected"),
    [(sqlite3.SQLITE_FULL, StoreFull), (sqlite3.SQLITE_IOERR_FSYNC, StoreBroken), (sqlite3.SQLITE_CORRUPT_VTAB, StoreBroken),
     (sqlite3.SQLITE_READONLY, StoreBroken), (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.OperationalError)],
)  # fmt: skip
def test_p3_error_codes_have_one_meaning(code: int, expected: type[Exception]) -> None:
    """Full goes on, damage and I/O errors stop, the rest is a defect; extended codes mean what their base means."""
    assert type(meaning(_error(code))) is expected


def test_p9_checkpoint_waits_for_no_reader(tmp_path: Path) -> None:
    """A reader that stays must not hold up the one writer thread, and with it every command, for SQLite's five seconds."""
    store = open_sqlite(tmp_path / "store.db")
    store.do(lambda tx: tx.add_source("a"))
    reader = sqlite3.connect(file.read_only(store.backend.path), uri=True, isolation_level=None)
    try:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM source").fetchone()
        store.do(lambda tx: tx.add_source("b"))
        began = time.monotonic()
        store.backend.checkpoint()
        assert time.monotonic() - began < 2.5
        assert store.backend._conn.execute("PRAGMA busy_timeout").fetchone() == (5_000,)
    finally:
        reader.close()
    store.backend.checkpoint()
    assert store.backend.path.with_name("store.db-wal").stat().st_size == 0
    store.close()
