"""What is read of a log's bytes before SQLite opens it: a torn end is no damage, an acknowledged commit that cannot be read is."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from halfmsg.coordinator.errors import StartError
from halfmsg.coordinator.store.sqlite import wal
from tests.corruption.content import fill
from tests.support.stores import open_sqlite

PAGE = 4_096
STEP = wal.FRAME + PAGE


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A file whose log holds five commits, as `kill -9` leaves it."""
    live = tmp_path / "live.db"
    conn = sqlite3.connect(live, isolation_level=None)
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("PRAGMA wal_autocheckpoint = 0")
    conn.execute("CREATE TABLE t (a)")
    conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for number in range(5):
        conn.execute("INSERT INTO t VALUES (?)", (str(number) * 3_000,))
    path = tmp_path / "killed.db"
    for suffix in ("", "-wal", "-shm"):
        shutil.copyfile(f"{live}{suffix}", f"{path}{suffix}")
    conn.close()
    return path


def _spoil(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def _frames(path: Path) -> int:
    return (path.stat().st_size - wal.HEADER) // STEP


def _forget_index(path: Path) -> None:
    path.with_name(path.name + "-shm").unlink()


def test_p3_whole_log_is_whole(killed: Path) -> None:
    """Our checksums are SQLite's: every frame of five commits is valid."""
    found = wal.inspect(killed)
    assert (found.damage, found.torn) == (None, 0)
    assert found.committed == _frames(wal.wal_path(killed)) and found.pages


@pytest.mark.parametrize("index", [True, False], ids=["with index", "without"])
@pytest.mark.parametrize("where", ["page", "header of the frame", "salt of the frame"])
def test_p3_flip_in_an_early_frame_is_damage(killed: Path, where: str, index: bool) -> None:
    """SQLite would cut the log there and say nothing."""
    if not index:
        _forget_index(killed)
    _spoil(wal.wal_path(killed), wal.HEADER + STEP + {"page": 100, "header of the frame": 2, "salt of the frame": 9}[where])
    found = wal.inspect(killed)
    assert found.damage is not None and "frame 2" in found.damage and str(wal.wal_path(killed)) in found.damage


def test_p3_flip_in_the_last_commit_is_damage_where_the_index_knows(killed: Path) -> None:
    """With the index it is an acknowledged commit; without, it looks like what a power cut tears: open, and said."""
    log = wal.wal_path(killed)
    _spoil(log, log.stat().st_size - 10)
    assert wal.inspect(killed).damage is not None
    _forget_index(killed)
    found = wal.inspect(killed)
    assert found.damage is None and found.torn > 0


def test_p3_cut_log_is_damage_where_the_index_knows(killed: Path) -> None:
    """A log that ends too early at a commit is whole by itself; the index knows that there was more."""
    log = wal.wal_path(killed)
    os.truncate(log, wal.HEADER + 2 * STEP)
    assert "acknowledged" in str(wal.inspect(killed).damage)


def test_p3_missing_or_empty_log_is_damage(killed: Path) -> None:
    """Somebody deleted the file that must never be deleted."""
    os.truncate(wal.wal_path(killed), 0)
    assert "missing or empty" in str(wal.inspect(killed).damage)
    wal.wal_path(killed).unlink()
    assert "missing or empty" in str(wal.inspect(killed).damage)


def test_p3_damaged_header_of_the_log_is_damage(killed: Path) -> None:
    """SQLite would drop the whole log."""
    _forget_index(killed)
    _spoil(wal.wal_path(killed), 20)
    assert "header" in str(wal.inspect(killed).damage)


def test_p3_unfinished_transaction_at_the_end_is_no_damage(killed: Path) -> None:
    """What was never acknowledged may be torn: half a frame, or a frame of this life that is not whole."""
    log = wal.wal_path(killed)
    whole = log.read_bytes()
    log.write_bytes(whole + whole[wal.HEADER : wal.HEADER + wal.FRAME] + b"\0" * PAGE)
    assert wal.inspect(killed).damage is None
    log.write_bytes(whole + whole[wal.HEADER : wal.HEADER + 100])
    assert wal.inspect(killed).damage is None


def test_p3_index_of_an_earlier_life_says_nothing(killed: Path, tmp_path: Path) -> None:
    """After a power cut the index on disk may be older than the log."""
    old = killed.with_name("killed.db-shm").read_bytes()
    conn = sqlite3.connect(killed, isolation_level=None)
    conn.execute("PRAGMA wal_checkpoint(RESTART)")
    conn.execute("INSERT INTO t VALUES (1)")
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{killed}{suffix}", f"{tmp_path / 'later.db'}{suffix}")
    conn.close()
    (tmp_path / "later.db-shm").write_bytes(old)
    found = wal.inspect(tmp_path / "later.db")
    assert found.damage is None and found.committed > 0


def test_p3_flipped_index_says_nothing(killed: Path) -> None:
    """It is no data: SQLite makes it anew."""
    _spoil(killed.with_name("killed.db-shm"), 17)
    assert wal.read_shm(killed) is None and wal.inspect(killed).damage is None


def test_no_log_is_no_damage(tmp_path: Path) -> None:
    """Stopped in good order, or not made yet."""
    assert wal.inspect(tmp_path / "none.db") == wal.Wal()


def test_frames_behind_the_end_are_no_damage_where_commits_were_not_synced(tmp_path: Path) -> None:
    """`synchronous=NORMAL` has agreed to lose the last commits with the power: the next start goes on, and writes down that it did."""
    fill(tmp_path, 5, killed=True)
    store = tmp_path / "halfmsg.db"
    _forget_index(store)
    _spoil(wal.wal_path(store), wal.HEADER + 20 * STEP + wal.FRAME + 100)
    assert "damaged at frame 21" in str(wal.inspect(store).damage)
    found = wal.inspect(store, synced=False)
    assert found.damage is None and found.torn > 1
    with pytest.raises(StartError, match="damaged at frame 21"):
        open_sqlite(store, synchronous="FULL")
    opened = open_sqlite(store, synchronous="NORMAL")
    assert "synchronous=NORMAL had not made durable" in opened.tx.one("SELECT reason FROM audit WHERE act = 'store.open'")[0]
    opened.close()


def test_p3_commit_mark_of_another_life_is_none(tmp_path: Path) -> None:
    """The 42nd frame's mark ends with a sector, its salts begin the next: of a transaction that a power cut tears, the second may arrive alone.

    (Found by one of 50,000 power cuts: it looked like a lost commit, and the start was refused.)
    """
    live, log = tmp_path / "live.db", tmp_path / "live.db-wal"
    conn = sqlite3.connect(live, isolation_level=None)
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("PRAGMA wal_autocheckpoint = 0")
    conn.execute("CREATE TABLE t (a)")
    for number in range(60):
        conn.execute("INSERT INTO t VALUES (?)", (number,))
    earlier = log.read_bytes()
    conn.execute("PRAGMA wal_checkpoint(RESTART)")
    conn.execute("INSERT INTO t VALUES ('first')")
    conn.execute("INSERT INTO t VALUES (zeroblob(300000))")
    torn = tmp_path / "torn.db"
    shutil.copyfile(live, torn)
    later = bytearray(log.read_bytes())
    conn.close()
    mark = slice(wal.HEADER + 41 * STEP, wal.HEADER + 41 * STEP + 8)
    assert any(earlier[mark][4:]) and not any(later[mark][4:])
    later[mark] = earlier[mark]
    later[wal.HEADER + STEP + 100] ^= 1  # of the large one's first frame not all has arrived
    wal.wal_path(torn).write_bytes(later)
    found = wal.inspect(torn)
    assert (found.damage, found.committed) == (None, 1) and found.torn > 70
