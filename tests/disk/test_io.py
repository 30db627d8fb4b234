"""The n-th fsync and the n-th write of a small life fail; `make io-test` does it with every kind of call. What it can find is shown too."""

from __future__ import annotations

import errno
import itertools
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from halfmsg.coordinator.env import Env
from halfmsg.coordinator.errors import Problem, StartError
from halfmsg.coordinator.reader import Reader
from halfmsg.coordinator.settings import Settings
from halfmsg.coordinator.store.sqlite import file, sums, wal
from tests.disk import life
from tests.disk.life import Tally
from tests.disk.processes import Zygote
from tests.disk.shim import Fault
from tests.support.stores import open_sqlite

SEED = 7
WRITES_APART = 5
"""The suite takes each fifth write (which ones differs from run to run) and every fsync."""


def some_writes(start: int) -> Iterator[tuple[int, list[Fault]]]:
    for turn, n in enumerate(itertools.count(start, WRITES_APART)):
        errors = life.KINDS["write"]
        yield n, [Fault("write", n, errors[(start + turn) % len(errors)])]


@pytest.mark.slow
@pytest.mark.timeout(170)
def test_p3_failing_fsync_gives_no_wrong_answer(zygote: Zygote, folder: Path) -> None:
    """P3: the n-th fsync fails, for every n of a life. What was acknowledged is there, what was refused is not, the file is sound, and the
    process has gone on or stopped by itself with a line."""
    tally = Tally()
    life.series(zygote, folder, life.in_turn("sync"), SEED, tally, "sync")
    assert tally.wrong == []
    assert tally.calls["sync"] > 20 and tally.stopped > 10
    assert tally.refused["outcome_unknown"] > 5


@pytest.mark.slow
@pytest.mark.timeout(170)
def test_p3_failing_write_gives_no_wrong_answer(zygote: Zygote, folder: Path) -> None:
    """The same with a write: an error, no space, or half of it done."""
    tally = Tally()
    life.series(zygote, folder, some_writes(os.getpid() % WRITES_APART + 1), SEED, tally, "write")
    assert tally.wrong == []
    assert tally.calls["write"] > 100 and tally.went_on > 10


@pytest.mark.slow
def test_failing_fsync_finds_a_commit_that_is_not_checked(zygote: Zygote, folder: Path) -> None:
    """The control: a coordinator that is deaf to errors of COMMIT is caught."""
    tally = Tally()
    plan = iter([(n, [Fault("sync", n, errno.EIO)]) for n in (9, 12, 15)] + [(10_000, [Fault("sync", 10_000, errno.EIO)])] * 3)
    life.series(zygote, folder, plan, SEED, tally, "sync", plant="deaf_to_sync")
    assert any("is gone" in each for each in tally.wrong), tally.wrong


# --- what was found this way, and mended ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Fault("sync", 2, errno.EIO, on=True),
        Fault("write", 8, errno.ENOSPC, on=True),
        Fault("open", 1, errno.EIO),
        Fault("open", 2, errno.EMFILE),
        Fault("read", 1, errno.EIO),
    ],
    ids=str,
)
def test_start_that_fails_on_the_disk_is_one_line(zygote: Zygote, folder: Path, fault: Fault) -> None:
    """Creating, migrating and the first write each can fail: exit code 1 and one line, no traceback, and the file can be opened afterwards."""
    end = life.run(zygote, folder / "life", fault, SEED)
    assert (end.started, end.code, end.wrong) == (False, 1, [])
    assert len(end.said.strip().splitlines()) == 1, end.said


@pytest.mark.parametrize(("module", "name"), [(wal, "inspect"), (sums, "of_file")], ids=["log", "file"])
def test_start_that_cannot_read_its_files_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> None:
    """A start looks at log and file before SQLite does: an error of the disk there is a line, and no damage."""
    path = tmp_path / "store.db"
    open_sqlite(path).close()

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with monkeypatch.context() as patch, pytest.raises(StartError, match=r"cannot read .*store\.db: Input/output error.*Look at the disk"):
        patch.setattr(module, name, fails)
        open_sqlite(path)
    open_sqlite(path).close()


def test_file_that_cannot_be_opened_is_let_go(tmp_path: Path) -> None:
    """A failed start keeps no lock on a damaged file: who looks at it, or puts a copy in its place, need not end the process first."""
    path = tmp_path / "store.db"
    path.write_bytes(b"no database, but long enough to be read as one. " * 200)
    for _ in range(2):
        with pytest.raises(StartError, match="not a database"):
            file.connect(path, "FULL")
    path.write_bytes(b"")
    conn = file.connect(path, "FULL")
    conn.execute("CREATE TABLE t (x)")
    conn.close()


async def test_read_that_fails_is_refused_and_the_next_one_is_answered(tmp_path: Path) -> None:
    """An I/O error of the reader is `storage_unavailable`, no defect, whether or not SQLite has ended the snapshot."""
    open_sqlite(tmp_path / "store.db").close()
    reader = Reader(tmp_path / "store.db", Env(Settings()))
    await reader.open()

    def fails(tx: object, *, ended: bool) -> None:
        if ended:
            tx.conn.execute("ROLLBACK")  # type: ignore[attr-defined]
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_IOERR_READ, "SQLITE_IOERR_READ"
        raise error

    for ended in (False, True):
        with pytest.raises(Problem, match="storage_unavailable: the store cannot be read: SQLITE_IOERR_READ"):
            await reader.run(lambda tx, ended=ended: fails(tx, ended=ended))
        assert await reader.run(lambda tx: tx.one("SELECT 7")[0]) == 7
    with pytest.raises(Problem, match="storage_unavailable: the store cannot be read: JSON is malformed"):
        await reader.run(lambda tx: msgspec.json.decode(b'{"a": \0'))
    await reader.close()
