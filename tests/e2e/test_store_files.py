"""The files of a store, as people move, link and delete them: whatever is done to them, no commit is dropped without a word (P3)."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from halfmsg.coordinator import backup
from halfmsg.coordinator.app import Coordinator
from halfmsg.coordinator.cli import doctor
from halfmsg.coordinator.errors import Problem, StartError
from halfmsg.coordinator.messages import Kind
from halfmsg.coordinator.service import topics
from halfmsg.coordinator.settings import Settings
from tests.support.serving import Served, eventually, settings, started


async def _send(coordinator: Served, count: int) -> None:
    await coordinator.call("PUT", "/v1/topics/plain", {"kind": "unordered", "allow_no_group": True})
    for number in range(count):
        assert (await coordinator.call("POST", "/v1/topics/plain/messages", {"data": number}))[0] == 201


def _killed(coordinator: Served, folder: Path) -> Path:
    """Its files as a kill would leave them."""
    folder.mkdir()
    for each in coordinator.path.parent.glob("halfmsg.db*"):
        if not each.name.endswith(".lock"):
            shutil.copy(each, folder / each.name)
    return folder / "halfmsg.db"


def _at(path: Path) -> Settings:
    return Settings(listen="127.0.0.1:0", store=str(path))


async def test_p3_second_coordinator_by_another_name_of_the_file_is_refused(tmp_path: Path) -> None:
    """A symbolic link is followed, for the lock as for the log; of a hard link nobody could."""
    first = await started(settings(tmp_path))
    try:
        link = tmp_path / "link.db"
        link.symlink_to("halfmsg.db")
        with pytest.raises(StartError, match=r"halfmsg\.db is in use by process") as caught:
            await Coordinator(_at(link)).start()
        assert caught.value.exit_code == 75
        os.link(tmp_path / "halfmsg.db", tmp_path / "hard.db")
        with pytest.raises(StartError, match=r"hard\.db has 2 names"):
            await Coordinator(_at(tmp_path / "hard.db")).start()
    finally:
        await first.stop()
    assert sorted(each.name for each in tmp_path.glob("*.db-*")) == ["halfmsg.db-sums"]


async def test_p3_damaged_log_is_seen_through_a_link(coordinator: Served, tmp_path: Path) -> None:
    await _send(coordinator, 5)
    path = _killed(coordinator, tmp_path / "killed")
    log = bytearray(path.with_name("halfmsg.db-wal").read_bytes())
    log[100] ^= 1
    path.with_name("halfmsg.db-wal").write_bytes(log)
    link = tmp_path / "link.db"
    link.symlink_to(path)
    with pytest.raises(StartError, match="acknowledged commits"):
        await Coordinator(_at(link)).start()


@pytest.mark.parametrize("removed", [False, True], ids=["emptied", "removed"])
async def test_p3_main_file_that_is_gone_beside_its_log_is_refused_by_all_who_open_it(coordinator: Served, tmp_path: Path, removed: bool) -> None:
    """SQLite drops the log of an empty file as soon as it opens it: start, doctor and restore leave it alone, and say so."""
    await _send(coordinator, 5)
    path = _killed(coordinator, tmp_path / "killed")
    log = path.with_name("halfmsg.db-wal")
    path.unlink() if removed else path.write_bytes(b"")
    before = log.read_bytes()
    with pytest.raises(StartError, match="missing or empty"):
        await Coordinator(_at(path)).start()
    if not removed:
        findings, _, _ = doctor.of_file(path, 20, 100)
        assert [each["ok"] for each in findings] == [False]
    with pytest.raises(StartError):
        backup.restore(path, path, replace=True, accept_loss=True, now_ms=1, progress=lambda *_: None)
    with pytest.raises(StartError):
        backup.backup(path, tmp_path / "backup.db", now_ms=1, version="0", progress=lambda *_: None)
    assert log.read_bytes() == before


@pytest.mark.parametrize("removed", [False, True], ids=["emptied", "removed"])
async def test_p3_main_file_that_is_gone_after_a_stop_is_no_new_store(tmp_path: Path, removed: bool) -> None:
    """Its page sums tell. They are removed by hand, to begin anew."""
    path = tmp_path / "halfmsg.db"
    await (await started(settings(tmp_path))).stop()
    path.unlink() if removed else path.write_bytes(b"")
    with pytest.raises(StartError, match=r"halfmsg\.db-sums says that there was a store"):
        await Coordinator(_at(path)).start()
    path.with_name("halfmsg.db-sums").unlink()
    await (await started(settings(tmp_path))).stop()


@pytest.mark.parametrize("name", ["halfmsg.db", "halfmsg.db-wal"])
@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
async def test_p3_store_that_is_taken_from_under_its_coordinator_stops_it(tmp_path: Path, name: str, replaced: bool) -> None:
    """What it goes on to acknowledge would be gone with its end."""
    one = await started(settings(tmp_path))
    try:
        path = tmp_path / name
        await eventually(lambda: path.exists() and one.engine._backend._standing._known.get(path), "a first look")
        path.rename(tmp_path / "elsewhere")
        if replaced:
            shutil.copy(tmp_path / "elsewhere", path)
        async with asyncio.timeout(10):
            await one.stopped.wait()
        assert f"{name} was removed or replaced" in str(one.broken)
        with pytest.raises(Problem, match="the coordinator is stopping"):
            await one.engine.call(topics.put, topics.TopicWanted("late", Kind.UNORDERED))
    finally:
        await one.stop()
