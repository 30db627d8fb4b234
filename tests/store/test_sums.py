"""Page sums are those of the main file after every checkpoint, whatever a crash leaves between the two."""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from halfmsg.coordinator.errors import StartError
from halfmsg.coordinator.store import failpoints
from halfmsg.coordinator.store.sqlite import file, sums, wal
from tests.corruption.content import Filler, copy
from tests.support.stores import Store, open_sqlite


def _wrong(path: Path) -> list[int] | None:
    return sums.wrong_pages(path, wal.inspect(path).pages)


@pytest.mark.parametrize("seed", range(3))
def test_p8_sums_are_right_after_any_checkpoints(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Automatic ones every few pages, explicit ones, restarts, and a copy as `kill -9` leaves it at each step."""
    monkeypatch.setattr(file, "WAL_PAGES", 20)
    path, dice = tmp_path / "halfmsg.db", random.Random(seed)
    filler = Filler(path, seed)
    for step in range(12):
        filler.some(dice.randint(1, 20))
        if dice.random() < 0.3:
            filler.store.backend.checkpoint()  # type: ignore[attr-defined]
        copy(path, tmp_path / f"killed{step}.db")
    filler.store.close()
    assert _wrong(path) == []
    for step in range(12):
        killed = tmp_path / f"killed{step}.db"
        assert _wrong(killed) in ([], None), step
        open_sqlite(killed).close()
        assert _wrong(killed) == []


def test_p8_power_cut_behind_a_reader_leaves_no_sums_of_what_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With NORMAL a checkpoint that a reader stops has synced nothing of the log. Sums of its frames that outlive them call a sound store damaged."""
    path, cut = tmp_path / "halfmsg.db", tmp_path / "cut.db"
    filler = Filler(path, 1, synchronous="NORMAL")
    filler.some(10)
    filler.store.backend.checkpoint()  # type: ignore[attr-defined]
    log = path.with_name(path.name + "-wal")
    durable = log.read_bytes()

    def fdatasync(fd: int) -> None:
        nonlocal durable
        if os.readlink(f"/proc/self/fd/{fd}") == str(log):
            durable = log.read_bytes()

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with closing(sqlite3.connect(file.read_only(path), uri=True, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM audit").fetchone()
        filler.some(30)
        filler.store.backend.relieve()  # type: ignore[attr-defined]
        copy(path, cut)
    filler.store.close()
    cut.with_name(cut.name + "-wal").write_bytes(durable)
    cut.with_name(cut.name + "-shm").unlink()
    assert _wrong(cut) == []


class Crash(Exception):
    pass


def _crash(name: str) -> None:
    raise Crash(name)


def test_p8_crash_between_checkpoint_and_sums_is_no_damage(tmp_path: Path) -> None:
    """The pages still stand in the log, which has checksums of its own."""
    path = tmp_path / "halfmsg.db"
    filler = Filler(path, 1)
    filler.some(10)
    filler.store.backend.checkpoint()  # type: ignore[attr-defined]
    filler.some(30)
    failpoints.arm("checkpointed", act=_crash)
    with pytest.raises(Crash):
        filler.store.backend.checkpoint()  # type: ignore[attr-defined]
    copy(path, tmp_path / "killed.db")
    filler.store.close()
    assert sums.wrong_pages(tmp_path / "killed.db", frozenset()) != []
    assert _wrong(tmp_path / "killed.db") == []
    open_sqlite(tmp_path / "killed.db").close()
    assert _wrong(tmp_path / "killed.db") == []


def test_p8_each_flipped_page_is_named(tmp_path: Path) -> None:
    """The start is refused with the page's number, and the file is not touched."""
    path = tmp_path / "halfmsg.db"
    Filler(path, 2).store.close()
    data = bytearray(path.read_bytes())
    for page in range(len(data) // 4_096):
        spoiled = bytearray(data)
        spoiled[page * 4_096 + 17 * page + 5] ^= 4
        path.write_bytes(spoiled)
        assert _wrong(path) == [page + 1]
    with pytest.raises(StartError, match=rf"page {len(data) // 4_096}\b.*halfmsg restore"):
        open_sqlite(path)
    assert path.read_bytes() == spoiled


def test_p8_file_without_sums_is_looked_at_by_sqlite_and_then_has_them(tmp_path: Path) -> None:
    """An older store, or one whose sums are damaged: checked once, then kept."""
    path = tmp_path / "halfmsg.db"
    Filler(path, 3).store.close()
    for spoil in (lambda: sums.sums_path(path).unlink(), lambda: sums.sums_path(path).write_bytes(b"?")):
        spoil()
        assert _wrong(path) is None
        open_sqlite(path).close()
        assert _wrong(path) == []
    data = bytearray(path.read_bytes())
    data[8_192:12_288] = b"\x5a" * 4_096
    path.write_bytes(data)
    sums.sums_path(path).unlink()
    with pytest.raises(StartError, match="damaged"):
        open_sqlite(path)


def _make_holes(store: Store) -> None:
    conn: sqlite3.Connection = store.backend._conn  # type: ignore[attr-defined]
    conn.execute("BEGIN IMMEDIATE")
    conn.execute("CREATE TABLE big (a)")
    conn.execute("INSERT INTO big VALUES (zeroblob(200000))")
    conn.execute("DELETE FROM big")
    conn.execute("CREATE TABLE last (a)")
    conn.execute("COMMIT")


def test_p8_page_that_was_freed_unwritten_is_zeros(tmp_path: Path) -> None:
    """A transaction that takes and frees pages leaves holes that no log ever had; also where a crash came before the sums."""
    path, killed = tmp_path / "halfmsg.db", tmp_path / "killed.db"
    Filler(path, 1).store.close()
    store = open_sqlite(path)
    _make_holes(store)
    failpoints.arm("checkpointed", act=_crash)
    with pytest.raises(Crash):
        store.backend.checkpoint()  # type: ignore[attr-defined]
    copy(path, killed)
    store.close()
    assert _wrong(path) == []
    found = sums.load(killed)
    assert found is not None
    assert killed.stat().st_size > (len(found[1]) + 40) * 4_096, "the file has not grown by more pages than the log has"
    assert _wrong(killed) == []
    open_sqlite(killed).close()
    assert _wrong(killed) == []


def test_p8_cut_off_page_is_named(tmp_path: Path) -> None:
    path = tmp_path / "halfmsg.db"
    Filler(path, 1).store.close()
    size = path.stat().st_size
    os.truncate(path, size - 4_096)
    assert _wrong(path) == [size // 4_096]


@pytest.mark.parametrize("call", range(1, 5))
def test_p8_crash_while_new_sums_are_written_leaves_none(tmp_path: Path, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head comes last, and after a sync: what a crash leaves of computed sums is no reason to call a sound file damaged."""
    path = tmp_path / "halfmsg.db"
    filler = Filler(path, 5)
    filler.some(400)
    filler.store.close()
    sums.sums_path(path).unlink()
    done = 0

    def cut(real: Callable[..., Any]) -> Callable[..., Any]:
        def one(*args: Any) -> Any:
            nonlocal done
            done += 1
            if done == call:
                raise Crash
            return real(*args)

        return one

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(os, "pwrite", cut(os.pwrite))
        patch.setattr(os, "fdatasync", cut(os.fdatasync))
        open_sqlite(path, synchronous="FULL")
    assert _wrong(path) in (None, [])
    open_sqlite(path).close()
    assert _wrong(path) == []


def test_p9_full_disk_costs_the_sums_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are no data: given up with a warning, made anew by the next start."""
    path = tmp_path / "halfmsg.db"
    filler = Filler(path, 4)
    filler.some(5)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        filler.store.backend.checkpoint()  # type: ignore[attr-defined]
    filler.some(5)
    filler.store.close()
    assert not sums.sums_path(path).exists()
    open_sqlite(path).close()
    assert _wrong(path) == []


def test_p8_sums_that_cannot_be_removed_are_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left as they are they would call a sound file damaged."""
    path = tmp_path / "halfmsg.db"
    filler = Filler(path, 1)
    filler.some(5)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        patch.setattr(os, "pwrite", refuse)
        filler.store.backend.checkpoint()  # type: ignore[attr-defined]
    filler.store.close()
    assert _wrong(path) is None
    open_sqlite(path).close()
    assert _wrong(path) == []


@pytest.mark.parametrize("open_transaction", [True, False], ids=["open transaction", "checkpoint fails"])
def test_p8_sums_go_before_a_checkpoint_that_takes_none(tmp_path: Path, open_transaction: bool) -> None:
    """SQLite moves the log itself when the last connection closes. (Found by the 45th fsync failing: the next start called the file damaged.)"""
    path = tmp_path / "halfmsg.db"
    Filler(path, 1).store.close()
    filler = Filler(path, 2)
    filler.some(20)
    if open_transaction:
        filler.store.backend.begin()
    else:
        failpoints.arm("checkpointed", act=_disk_fails)
    filler.store.close()
    assert not wal.wal_path(path).exists(), "SQLite made no checkpoint of its own: this proves nothing"
    assert _wrong(path) is None
    open_sqlite(path).close()
    assert _wrong(path) == []


def _disk_fails(name: str) -> None:
    raise sqlite3.OperationalError(f"{name}: disk I/O error")


def test_p8_short_read_of_the_log_costs_no_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read may give a part. (Found by the 153rd read giving half: the pages of the rest kept their old sums.)"""
    path = tmp_path / "halfmsg.db"
    filler = Filler(path, 6)
    filler.some(40)
    pread = os.pread
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", lambda fd, size, at: pread(fd, max(1, size // 2), at))
        filler.store.backend.checkpoint()  # type: ignore[attr-defined]
    filler.store.close()
    assert _wrong(path) == []


def test_p8_start_that_fails_over_lost_sums_leaves_whole_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last checkpoint takes the sums of the log's pages alone; with no sums of the others the file would be called damaged."""
    path, killed = tmp_path / "halfmsg.db", tmp_path / "killed.db"
    filler = Filler(path, 7)
    conn: sqlite3.Connection = filler.store.backend._conn  # type: ignore[attr-defined]
    conn.execute("CREATE TABLE big (a)")
    conn.execute("INSERT INTO big VALUES (randomblob(20000000))")
    filler.store.backend.checkpoint()  # type: ignore[attr-defined]
    filler.some(3)
    copy(path, killed)
    filler.store.close()
    sums.sums_path(killed).unlink()

    def fails(*_: object) -> None:
        raise StartError("no second schema", "none")

    with monkeypatch.context() as patch, pytest.raises(StartError):
        patch.setattr(file, "migrate", fails)
        open_sqlite(killed)
    assert _wrong(killed) == []
    open_sqlite(killed).close()
    assert _wrong(killed) == []


def test_p9_sums_are_not_kept_in_memory(tmp_path: Path) -> None:
    """Four bytes a page for as long as the store grows would be a leak. (Found by the soak.)"""
    path = tmp_path / "halfmsg.db"
    path.write_bytes(bytes(60_000 * 512))
    sums.PageSums(path, (512, sums.of_file(path, 512)), kept=False, sync=False).save()
    tracemalloc.start()
    try:
        kept = sums.PageSums(path, sums.load(path), kept=True, sync=False)
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    kept.close()
    assert most > 4 * 60_000 > 10 * held


def _killed(folder: Path) -> Path:
    """As `kill -9` leaves it: pages of more than a block of sums in the file, frames in the log; and no sums, as after SQLite met damage."""
    path, killed = folder / "halfmsg.db", folder / "killed.db"
    filler = Filler(path, 7)
    filler.some(200)
    conn: sqlite3.Connection = filler.store.backend._conn  # type: ignore[attr-defined]
    conn.execute("CREATE TABLE big (a)")
    conn.execute("INSERT INTO big VALUES (randomblob(5000000))")
    filler.store.backend.checkpoint()  # type: ignore[attr-defined]
    filler.some(3)
    copy(path, killed)
    filler.store.close()
    assert wal.inspect(killed).committed
    sums.sums_path(killed).unlink()
    return killed


def _spoil(path: Path) -> None:
    """The last page of a tree that the log does not have: not one that a start reads by itself."""
    data, log = bytearray(path.read_bytes()), wal.inspect(path).pages
    at = max(page for page in range(1, len(data) // 4_096 + 1) if page not in log and data[(page - 1) * 4_096] in (2, 5, 10, 13)) - 1
    data[at * 4_096 : (at + 1) * 4_096] = b"\x5a" * 4_096
    path.write_bytes(data)


def test_p8_damage_that_was_refused_once_is_refused_again(tmp_path: Path) -> None:
    """A supervisor starts it anew: the sums of the first attempt would call the damage right."""
    killed = _killed(tmp_path)
    _spoil(killed)
    for _ in range(3):
        with pytest.raises(StartError, match="damaged"):
            open_sqlite(killed)


def test_p8_look_that_was_cut_short_leaves_no_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = _killed(tmp_path)
    _spoil(killed)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(file, "check_pages", interrupted)
        open_sqlite(killed)
    with pytest.raises(StartError, match="damaged"):
        open_sqlite(killed)


def test_p8_first_page_in_the_log_alone_makes_no_wrong_sums(tmp_path: Path) -> None:
    """The main file's head cannot be read, and the log has it: SQLite opens it, and the other pages have no sums to be judged by."""
    path, killed = tmp_path / "halfmsg.db", tmp_path / "killed.db"
    filler = Filler(path, 7)
    filler.some(200)
    filler.store.backend.checkpoint()  # type: ignore[attr-defined]
    filler.store.backend._conn.execute("CREATE TABLE other (a)")  # type: ignore[attr-defined]
    copy(path, killed)
    filler.store.close()
    assert 1 in wal.inspect(killed).pages
    sums.sums_path(killed).unlink()
    with killed.open("r+b") as head:
        head.write(bytes(512))
    open_sqlite(killed).close()
    assert _wrong(killed) is None
    open_sqlite(killed).close()
    assert _wrong(killed) == []


def test_p8_sums_that_are_given_up_are_emptied_before_their_name_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut may bring a name back that was removed, and what the file had with it."""
    path = tmp_path / "halfmsg.db"
    filler = Filler(path, 7)
    filler.some(20)
    filler.store.backend.checkpoint()  # type: ignore[attr-defined]
    sizes = []
    unlink = Path.unlink
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda self, **more: (sizes.append(self.stat().st_size), unlink(self, **more)))
        filler.store.backend._sums.give_up()  # type: ignore[attr-defined]
    filler.store.close()
    assert sizes == [0]
