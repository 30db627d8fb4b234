"""A schema step killed at each statement; a newer file; and a file of the first schema, kept, that must open for ever."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import sqlite3
import traceback
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from halfmsg.coordinator import doctor
from halfmsg.coordinator.errors import StartError
from halfmsg.coordinator.store.sqlite import file
from tests.data import make_first
from tests.store import start_with
from tests.support.clock import ManualClock
from tests.support.factories import World
from tests.support.stores import changed_by_hand, dump_file, open_sqlite


def _start(path: Path, fail_at: str = "") -> int:
    """The real store opened by a process of its own that knows a second schema, perhaps killed on the way. Gives how it ended."""
    pid = os.fork()
    if not pid:
        try:
            start_with.main(path, fail_at)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kept file of the first schema."""
    path = tmp_path_factory.mktemp("first") / "halfmsg.db"
    with gzip.open(make_first.FILE) as packed:
        path.write_bytes(packed.read())
    return path


def _copy(first: Path, folder: Path) -> Path:
    path = folder / "halfmsg.db"
    shutil.copyfile(first, path)
    return path


def _is_sound(path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn:
        assert [each for each in doctor.run(conn, integrity=True, sample=10_000) if not each.ok] == []


def _columns(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as conn:
        return [row[1] for row in conn.execute("PRAGMA table_info (conflict)")]


@pytest.mark.parametrize("new", [True, False], ids=["empty file", "kept file"])
def test_p3_step_killed_at_each_statement_is_whole_or_not_there(first: Path, tmp_path: Path, new: bool) -> None:
    """kill -9 after the n-th statement, for every n: the next start finds the old schema with every row, and brings the new one."""
    statements = sum(len(file._statements(text)) + 1 for _, _, text in start_with.known() if new or "made_up" in text)
    ended = []
    for at in range(1, statements + 2):
        folder = tmp_path / str(at)
        folder.mkdir()
        path = folder / "halfmsg.db" if new else _copy(first, folder)
        before = {} if new else dump_file(path)
        ended.append(_start(path, f"migrating@{at}"))
        if ended[-1] == -signal.SIGKILL and not new:
            assert dump_file(path) == before, at
            _start(path, f"migrating@{at}")  # and killed there once more
        assert _start(path) == 0
        assert "made_up" in _columns(path)
        _is_sound(path)
        after = dump_file(path)
        assert [row[0] for row in after["migration"]] == [1, 2]
        if not new:
            counts = {name: len(rows) for name, rows in before.items()}
            assert {name: len(rows) for name, rows in after.items()} == counts | {"migration": 2, "new": 1}
    assert -signal.SIGKILL in ended and ended[-1] == 0
    assert ended.count(-signal.SIGKILL) == statements


def test_p3_kill_after_the_step_leaves_it_done(first: Path, tmp_path: Path) -> None:
    """Its COMMIT has returned, nobody was told."""
    path = _copy(first, tmp_path)
    assert _start(path, "migrated@1") == -signal.SIGKILL
    assert "made_up" in _columns(path) and _start(path) == 0


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
def test_newer_schema_is_refused_and_no_byte_changes(first: Path, tmp_path: Path, killed: bool) -> None:
    """This version meets a file of the next one, stopped or killed with a log: file and log are as they were, to the byte."""
    path = _copy(first, tmp_path)
    assert _start(path, "migrated@1" if killed else "") == (-signal.SIGKILL if killed else 0)
    kept = [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-sums")]
    before = [each.read_bytes() if each.exists() else b"" for each in kept]
    assert bool(before[1]) is killed
    with pytest.raises(StartError, match="newer than this halfmsg"):
        open_sqlite(path)
    assert [each.read_bytes() if each.exists() else b"" for each in kept] == before


def test_strangers_file_is_refused_and_no_byte_changes(tmp_path: Path) -> None:
    """Not even its journal mode."""
    path = tmp_path / "theirs.db"
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE orders (id)")
        conn.commit()
    before = path.read_bytes()
    with pytest.raises(StartError, match="something else"):
        open_sqlite(path)
    assert path.read_bytes() == before


# --- the kept file ---


def test_kept_file_of_the_first_schema_has_a_row_in_every_table(first: Path) -> None:
    """What is not in it would not be tried. It stays small enough to be kept."""
    assert [name for name, rows in dump_file(first).items() if not rows] == []
    assert make_first.FILE.stat().st_size < 100_000


def test_p2_p3_kept_file_opens_with_nothing_lost(first: Path, tmp_path: Path) -> None:
    """Every row of every table, whatever schema this version has; and doctor finds nothing."""
    path = _copy(first, tmp_path)
    before = dump_file(path, without=("migration",))
    open_sqlite(path).close()
    after = dump_file(path, without=("migration",))
    for name, rows in before.items():
        assert len(after[name]) >= len(rows), name
        assert {row[: len(rows[0])] for row in after[name]} >= set(rows), name
    _is_sound(path)


def test_p2_p8_kept_files_messages_are_all_delivered(first: Path, tmp_path: Path) -> None:
    """Each of them, byte for byte, to each group that it was due to; decisions and what is held stand as they stood."""
    path = _copy(first, tmp_path)
    expected = json.loads(make_first.EXPECTED.read_text())
    world = World.__new__(World)
    world.store, world.ids, world.groups = open_sqlite(path, clock=ManualClock(expected["now"] + 86_400_000)), 9_000, {}
    got: dict[str, dict[str, Any]] = {}
    for group in expected["due"]:
        for _ in range(80):
            world.expire()
            for each in world.fetch(group, member="later"):
                got.setdefault(group, {})[each.row.tx_id.hex()] = make_first.shape(each.topic, each.row.key, each.row.seq, each.row.body)
                world.ack(each, group=group)
            world.later(3_600)
    assert got == expected["due"]
    assert {id: world.find(bytes.fromhex(id)).state.word for id in expected["states"]} == expected["states"]
    world.store.close()
    changed_by_hand(path)
