"""Backup and restore of a store file, and what a restored store must never give out a second time (W15)."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from halfmsg.coordinator import backup as copies
from halfmsg.coordinator import doctor
from halfmsg.coordinator.errors import StartError
from halfmsg.coordinator.messages import Kind, Reason
from halfmsg.coordinator.service import groups
from halfmsg.coordinator.service.naming import Removal
from halfmsg.coordinator.store.sqlite import file, sums
from halfmsg.outbox.inbox_rules import Claim, judge
from tests.corruption.content import Filler
from tests.support.clock import START_MS, ManualClock
from tests.support.factories import PRODUCER, World, new_message
from tests.support.stores import dump, dump_file, open_sqlite

HOUR_MS = 3_600_000
RESTORED_MS = START_MS + HOUR_MS


def _back_up(store: Path, target: Path, *, now_ms: int = START_MS) -> copies.Backup:
    return copies.backup(store, target, now_ms=now_ms, version="test", progress=lambda what, part: None)


def _restore(source: Path, store: Path, *, replace: bool = False, accept_loss: bool = False, now_ms: int = RESTORED_MS) -> copies.Restore:
    return copies.restore(source, store, replace=replace, accept_loss=accept_loss, now_ms=now_ms, progress=lambda what, part: None)


def _reopened(path: Path) -> World:
    """After the restore, a minute later."""
    world = World.__new__(World)
    world.store, world.ids, world.groups = open_sqlite(path, clock=ManualClock(RESTORED_MS + 60_000)), 5_000, {}
    return world


def _findings(path: Path) -> list[str]:
    with closing(sqlite3.connect(file.read_only(path), uri=True)) as conn:
        return [each.name for each in doctor.run(conn, integrity=True) if not each.ok]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "halfmsg.db"


def test_p2_backup_of_a_store_at_work_is_one_moment_of_it(path: Path, tmp_path: Path) -> None:
    """Taken while it is open for writing, it holds every row that was committed, and says what it is."""
    filler = Filler(path, 1)
    filler.some(40)
    filler.gap()
    filler.hands()
    made = _back_up(path, tmp_path / "b")
    expected = dump_file(path)
    filler.some(20)
    filler.store.close()
    found = dump_file(tmp_path / "b")
    told = dict(found.pop("backup"))
    assert found == expected
    assert (told["at"], told["rows"], made.rows, made.findings) == (START_MS, made.rows, sum(map(len, expected.values())), ())
    assert not list(tmp_path.glob(".*part*"))


def test_backup_overwrites_nothing_and_leaves_nothing(path: Path, tmp_path: Path) -> None:
    """A file of that name, a missing store, a folder that is not there: one line each, and no part of a backup stays."""
    open_sqlite(path).close()
    (tmp_path / "b").write_text("mine")
    for store, target in ((path, tmp_path / "b"), (tmp_path / "none.db", tmp_path / "c"), (path, tmp_path / "none" / "c")):
        with pytest.raises(StartError):
            _back_up(store, target)
    assert (tmp_path / "b").read_text() == "mine"
    assert not list(tmp_path.glob(".*part*")) and not (tmp_path / "c").exists()


def test_backup_into_a_folder_that_is_not_there_or_read_only_names_the_folder(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not the store, which is sound."""
    open_sqlite(path).close()
    with pytest.raises(StartError, match=r"no folder .*nowhere"):
        _back_up(path, tmp_path / "nowhere/b.db")
    monkeypatch.setattr(os, "access", lambda folder, mode: False)
    with pytest.raises(StartError, match="cannot write to the folder"):
        _back_up(path, tmp_path / "b.db")


@pytest.mark.parametrize("step", ["_copy", "_describe", "_make_durable", "_take_name"])
def test_p2_backup_killed_after_each_step_is_whole_or_not_there(path: Path, tmp_path: Path, step: str) -> None:
    """kill -9: no half of a backup has its name, and the next one, of another name, clears what is left."""
    Filler(path, 3).store.close()
    pid = os.fork()
    if not pid:
        try:
            real = getattr(copies, step)
            setattr(copies, step, lambda *args: (real(*args), os.kill(os.getpid(), signal.SIGKILL)))
            _back_up(path, tmp_path / "b")
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert list(tmp_path.glob(".*part*"))
    assert (tmp_path / "b").exists() is (step == "_take_name")
    _back_up(path, tmp_path / "c")
    assert not list(tmp_path.glob(".*part*"))
    for each in tmp_path.glob("[bc]"):
        _restore(each, tmp_path / f"{each.name}.db")
        assert _findings(tmp_path / f"{each.name}.db") == []


def test_p8_backup_of_a_damaged_store_is_refused(path: Path, tmp_path: Path) -> None:
    """It would be found when it is needed."""
    Filler(path, 2).store.close()
    _spoil(path, 5_000)
    with pytest.raises(StartError, match="page 2"):
        _back_up(path, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_backup_of_a_store_that_breaks_an_invariant_is_made_and_says_so(path: Path, tmp_path: Path) -> None:
    """The copy is as good as the store; a restore of it must be asked for by name."""
    filler = Filler(path, 3)
    filler.some(20)
    filler.store.do(lambda tx: tx.run("DELETE FROM place"))
    made = _back_up(path, tmp_path / "b")
    filler.store.close()
    assert "group_has_a_place_in_each_lane" in [each.name for each in made.findings]
    with pytest.raises(StartError, match="does not hold"):
        _restore(tmp_path / "b", tmp_path / "new.db")
    assert not (tmp_path / "new.db").exists() and not file.half_way(tmp_path / "new.db").exists()
    assert _restore(tmp_path / "b", tmp_path / "new.db", accept_loss=True).findings


def _spoil(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 2
    path.write_bytes(data)


def test_p8_damaged_backup_is_refused_whichever_row_it_is(path: Path, tmp_path: Path) -> None:
    """The digest over all rows sees what SQLite and the digests of messages do not. Free bytes may differ: then every row is as it was."""
    filler = Filler(path, 4)
    filler.some(60)
    filler.store.close()
    _back_up(path, tmp_path / "b")
    rows = {name: each for name, each in dump_file(tmp_path / "b").items() if name != "backup"}
    whole, dice, refused = (tmp_path / "b").read_bytes(), random.Random(4), 0
    for _ in range(40):
        (tmp_path / "b").write_bytes(whole)
        _spoil(tmp_path / "b", dice.randrange(len(whole)))
        try:
            _restore(tmp_path / "b", tmp_path / "new.db", replace=True)
        except StartError:
            refused += 1
            continue
        with closing(sqlite3.connect(tmp_path / "b")) as conn:
            assert {name: each for name, each in dump(conn).items() if name != "backup"} == rows
    assert refused >= 5  # most of a small file is the free end of some fifty pages


@pytest.mark.parametrize("value", [b"whsec_c3Nz", b"127.0.0.1:1/check", b'"lease_ms":30000', b"tx.park"])
def test_p8_backup_is_refused_for_a_value_that_only_its_digest_sees(path: Path, tmp_path: Path, value: bytes) -> None:
    """A secret, an address, a policy, an audited act: no index, no invariant and no message's digest has them."""
    filler = Filler(path, 4)
    filler.some(60)
    filler.store.close()
    _back_up(path, tmp_path / "b")
    _spoil(tmp_path / "b", (tmp_path / "b").read_bytes().index(value) + len(value) - 1)
    with closing(sqlite3.connect(tmp_path / "b")) as conn:
        assert [each for each in doctor.run(conn, sample=10_000, integrity=True) if not each.ok] == [], "this is seen without the digest"
    with pytest.raises(StartError, match="rows are not what was written"):
        _restore(tmp_path / "b", tmp_path / "new.db")
    assert not (tmp_path / "new.db").exists()


def test_restore_refuses_what_is_there_and_keeps_it_aside_when_told(path: Path, tmp_path: Path) -> None:
    """The old one opens under its new name, with all that was in its log."""
    filler = Filler(path, 5)
    _back_up(path, tmp_path / "b")
    filler.some(5)
    with pytest.raises(StartError, match="in use") as refusal:
        _restore(tmp_path / "b", path, replace=True)
    assert refusal.value.exit_code == 75
    filler.store.close()
    with pytest.raises(StartError, match="exists"):
        _restore(tmp_path / "b", path)
    before = dump_file(path)
    done = _restore(tmp_path / "b", path, replace=True)
    assert done.aside is not None and dump_file(Path(done.aside)) == before
    assert _findings(path) == []


def test_restore_that_was_cut_short_stops_the_start(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between two renames no store is there: an empty new one must not take its place unseen. Done again, it is whole."""
    Filler(path, 6).store.close()
    _back_up(path, tmp_path / "b")
    with monkeypatch.context() as patch:
        patch.setattr(copies, "_sync_folder", lambda _: None)
        patch.setattr(Path, "rename", _killed_at(lambda source: source.name.endswith(".restoring")))
        with pytest.raises(KeyboardInterrupt):
            _restore(tmp_path / "b", path, replace=True)
    assert not path.exists()
    with pytest.raises(StartError, match="cut short"):
        open_sqlite(path)
    _restore(tmp_path / "b", path)
    file.half_way(path).write_bytes(b"cut short before anything was moved")
    open_sqlite(path).close()


def _killed_at(where: Callable[[Path], bool]) -> Callable[[Path, Path], Path]:
    rename = Path.rename

    def renamed(self: Path, target: Path) -> Path:
        if where(self):
            raise KeyboardInterrupt
        return rename(self, target)

    return renamed


def test_backup_is_no_store(path: Path, tmp_path: Path) -> None:
    """Copied over the store by hand it would give out the same leases and numbers again: the start is refused with the right command."""
    Filler(path, 7).store.close()
    _back_up(path, tmp_path / "b")
    with pytest.raises(StartError, match="halfmsg restore"):
        open_sqlite(tmp_path / "b")
    with pytest.raises(StartError, match="halfmsg restore"):
        copies.backup(tmp_path / "b", tmp_path / "c", now_ms=0, version="", progress=lambda what, part: None)


def test_r30_no_lease_of_before_a_restore_is_taken_for_a_new_one(path: Path, tmp_path: Path) -> None:
    """Tokens of before the backup, of between, and of an earlier restore of the same backup: all are lost, none is given out again."""
    world = World(open_sqlite(path))
    world.topic()
    world.group()
    world.send_many(60)
    old = world.fetch(count=10)
    _back_up(path, tmp_path / "b")
    old += [each for _ in range(4) for each in world.fetch(count=5)]
    world.store.close()
    tokens = {each.token for each in old}
    for turn in range(2):
        _restore(tmp_path / "b", path, replace=True, now_ms=RESTORED_MS + turn)
        world = _reopened(path)
        new = [each for _ in range(60) for each in world.fetch(count=1)]
        assert len(new) == 60 and not tokens & {each.token for each in new}
        assert {each.error is not None and each.error[0] for each in world.ack(*sorted(tokens))} == {"lease_lost"}
        tokens |= {each.token for each in new}
        world.store.close()
    assert _findings(path) == []


def test_p6_what_was_in_a_hand_at_the_backup_is_handed_out_uncharged(path: Path, tmp_path: Path) -> None:
    """Its consumer may be done with it: its inbox says so. No attempt is charged, and the order of each key stands."""
    world = World(open_sqlite(path))
    world.topic("seq", Kind.SEQUENCE, lanes=2)
    world.group("g", "seq", max_attempts=1)
    for number in range(1, 6):
        world.sequence(number, "k")
        world.sequence(number, "l")
    assert len(world.fetch(member="m", count=7)) == 7
    _back_up(path, tmp_path / "b")
    world.store.close()
    assert _restore(tmp_path / "b", path, replace=True).taken_back == 7
    world = _reopened(path)
    given: dict[bytes | None, list[int | None]] = {}
    for _ in range(30):
        for each in world.fetch(member="n"):
            given.setdefault(each.row.key, []).append(each.row.seq)
            assert each.attempt == 1
            world.ack(each)
    world.store.close()
    assert given == {b"k": [1, 2, 3, 4, 5], b"l": [1, 2, 3, 4, 5]}
    assert _findings(path) == []


def test_p2_numbers_drawn_after_the_backup_are_not_drawn_again(path: Path, tmp_path: Path) -> None:
    """On an `arrival` topic the coordinator draws them: an inbox that has seen 3 to 5 would take three new messages for repeats."""
    world = World(open_sqlite(path))
    world.topic("arr", Kind.ARRIVAL, lanes=2)
    world.group("g", "arr")
    world.send("arr", key="k")
    world.send("arr", key="k")
    _back_up(path, tmp_path / "b")
    seen = [world.send("arr", key=key).messages[0].sequence or 0 for key in ("k", "k", "k", "new")]
    world.store.close()
    _restore(tmp_path / "b", path, replace=True)
    world = _reopened(path)
    drawn = [world.send("arr", key=key).messages[0].sequence or 0 for key in ("k", "k", "new")]
    world.store.close()
    assert seen == [3, 4, 5, 1] and min(drawn) > max(seen) and max(drawn) < 2**53
    assert drawn[1] == drawn[0] + 1
    assert _findings(path) == []


def test_p2_dead_letter_of_after_the_backup_is_run_and_not_taken_for_a_repeat(path: Path, tmp_path: Path) -> None:
    """An inbox has 3 as last and 2 as passed over; the row that listed 2 as dead is lost with the disk. Only a redriven 2 runs there."""
    world = World(open_sqlite(path))
    world.topic("seq", Kind.SEQUENCE, lanes=1)
    world.group("g", "seq")
    for number in (1, 2, 3):
        world.sequence(number, "k")
    _back_up(path, tmp_path / "b")
    world.store.close()
    _restore(tmp_path / "b", path, replace=True)
    world = _reopened(path)
    for number, mark in ((4, START_MS + 1), (5, RESTORED_MS + 2)):  # 4 came again: its mark is of before the restore
        world.submit(new_message("seq", b"%d" % number, key="k", sequence=number), mark=mark)
    world.bind(b"d" * 16)
    hand = world.fetch(member="m")
    world.store.close()
    claims = {each.row.seq: judge(last=3, number=each.row.seq or 0, redriven=each.redriven, in_missed=each.row.seq == 2) for each in hand}
    assert claims == {1: Claim.DUPLICATE, 2: Claim.RUN_MISSED, 3: Claim.DUPLICATE, 4: Claim.RUN, 5: Claim.RUN}
    assert [each.redriven for each in hand] == [True, True, True, True, False]


@pytest.mark.parametrize("way", ["a producer without marks", "a coordinator a day ahead of the wall clock", "said again by hand", "bound afterwards"])
def test_p2_dead_letter_of_after_the_backup_is_run_where_marks_do_not_tell(path: Path, tmp_path: Path, way: str) -> None:
    """What is submitted again after the restore has no mark but that of its arrival, or one of a time that ran ahead: it may be a dead letter."""
    ahead_ms = 24 * HOUR_MS if "ahead" in way else 0
    bound = b"d" * 16 if "ahead" in way or "by hand" in way else None
    world = World(open_sqlite(path))
    world.topic("seq", Kind.SEQUENCE, lanes=1)
    world.group("g", "seq")
    if bound is not None:
        world.bind(bound)
    _back_up(path, tmp_path / "b", now_ms=START_MS - ahead_ms)
    world.store.close()
    _restore(tmp_path / "b", path, replace=True, now_ms=RESTORED_MS - ahead_ms)
    world = _reopened(path)
    mark = START_MS + HOUR_MS // 2 if ahead_ms else None
    for number in (1, 2):
        world.submit(new_message("seq", b"%d" % number, key="k", sequence=number), mark=mark, source=bound)
    if "afterwards" in way:
        world.bind(b"d" * 16)
    assert [each.redriven for each in world.fetch(member="m")] == [True, True]
    world.store.close()


@pytest.mark.parametrize("kind", [Kind.SEQUENCE, Kind.ARRIVAL], ids=lambda kind: str(kind.word))
def test_r13_what_comes_long_after_a_restore_is_not_redriven(path: Path, tmp_path: Path, kind: Kind) -> None:
    """Else a zombie would run its dead letter behind what followed it. Numbers of `arrival` topics are beyond all of before at once."""
    world = World(open_sqlite(path))
    world.topic("t", kind, lanes=1)
    world.group("g", "t")
    _back_up(path, tmp_path / "b")
    world.store.close()
    _restore(tmp_path / "b", path, replace=True)
    world = _reopened(path)
    found = []
    for number in (1, 2):
        sequence, producer = (number, PRODUCER) if kind is Kind.SEQUENCE else (None, None)
        world.submit(new_message("t", b"%d" % number, key="k", sequence=sequence), producer=producer)
        [each] = world.fetch(member="m")
        found.append(each.redriven)
        world.ack(each)
        world.later(8 * 86_400)
    world.store.close()
    assert found == [kind is Kind.SEQUENCE, False]


def test_p2_generation_given_out_after_the_backup_is_not_given_out_again(path: Path, tmp_path: Path) -> None:
    """Its inbox has numbers of it, and would take what the next group of that name is to run for done."""
    world = World(open_sqlite(path))
    world.topic("seq", Kind.SEQUENCE, lanes=1)
    world.group("g", "seq", tag="vip")
    _back_up(path, tmp_path / "b")
    given = []
    for _ in range(3):
        world.store.run(groups.remove, Removal("g", "another filter"))
        given.append(world.group("g", "seq", tag="big").generation)
        world.store.close()
        _restore(tmp_path / "b", path, replace=True, now_ms=RESTORED_MS + len(given) * 60_000)
        world = _reopened(path)
    world.store.close()
    assert len({1, *given}) == 4


def test_p2_backup_stands_at_the_coordinators_time_and_not_at_a_wall_clock_that_is_ahead(path: Path, tmp_path: Path) -> None:
    """`outbox resend --since` begins there: of a later time it would pass over what came between (P10)."""
    world = World(open_sqlite(path))
    world.topic()
    world.send()
    made = _back_up(path, tmp_path / "b", now_ms=START_MS + 24 * HOUR_MS)
    behind = _back_up(path, tmp_path / "c", now_ms=START_MS - HOUR_MS)
    world.store.close()
    assert (made.at, behind.at) == (START_MS, START_MS - HOUR_MS)
    done = _restore(tmp_path / "b", path, replace=True)
    assert (done.backup_at, done.stands_at) == (START_MS, START_MS)


def test_restore_of_a_store_whose_hand_names_a_row_that_is_gone_ends(path: Path, tmp_path: Path) -> None:
    """What damage leaves: a run of an ordered lane over an offset that the log does not have. The others are handed out again, and it is listed."""
    world = World(open_sqlite(path))
    world.topic("seq", Kind.SEQUENCE, lanes=1)
    world.group("g", "seq")
    for number in (1, 2, 3):
        world.sequence(number)
    assert len(world.fetch(member="m")) == 3
    world.store.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("DELETE FROM log WHERE off = 1")
    sums.sums_path(path).unlink()
    done = _restore(path, path, replace=True, accept_loss=True)
    assert done.taken_back == 2
    world = _reopened(path)
    given = []
    for _ in range(2):
        [each] = world.fetch(member="n")
        given.append(each.row.seq)
        world.ack(each)
    assert given == [1, 3]
    assert world.store.tx.all("SELECT grp, off, reason FROM dead") == [(None, 1, Reason.CORRUPT.value)]
    world.store.close()


def test_backup_whose_own_words_are_damaged_is_told_in_a_line(path: Path, tmp_path: Path) -> None:
    """They are in no digest."""
    open_sqlite(path).close()
    _back_up(path, tmp_path / "b")
    with closing(sqlite3.connect(tmp_path / "b", isolation_level=None)) as conn:
        conn.execute("UPDATE backup SET v = 'x' WHERE k = 'at'")
    for accept_loss in (False, True):
        with pytest.raises(StartError, match="is damaged: what it says of itself"):
            _restore(tmp_path / "b", path, replace=True, accept_loss=accept_loss)


def test_a_damaged_log_is_gone_on_without_only_by_name(path: Path, tmp_path: Path) -> None:
    """`restore STORE --store STORE --replace --accept-loss`: what can be read becomes a store that gives nothing out twice; the old is kept."""
    filler = Filler(path, 8)
    filler.some(30)
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"killed.db{suffix}").write_bytes(Path(f"{path}{suffix}").read_bytes())
    filler.store.close()
    killed = tmp_path / "killed.db"
    _spoil(tmp_path / "killed.db-wal", (tmp_path / "killed.db-wal").stat().st_size - 30)
    for wrong in ({}, {"replace": True}):
        with pytest.raises(StartError):
            _restore(killed, killed, **wrong)
    with pytest.raises(StartError, match="damaged"):
        _restore(killed, tmp_path / "other.db")
    done = _restore(killed, killed, replace=True, accept_loss=True)
    assert done.backup_at is None and done.aside is not None and Path(done.aside + "-wal").exists()
    assert done.stands_at == START_MS, "what is lost is of after the newest that can be read, not of after the restore"
    open_sqlite(killed).close()
    assert _findings(killed) == []


def test_doctor_tells_of_a_restore(path: Path, tmp_path: Path) -> None:
    """Since when, from when, what came again, and how many keys wait."""
    world = World(open_sqlite(path))
    world.topic("seq", Kind.SEQUENCE)
    world.group("g", "seq")
    world.sequence(1, "k")
    _back_up(path, tmp_path / "b")
    world.store.close()
    with closing(sqlite3.connect(path)) as conn:
        assert doctor.restored(conn) is None
    _restore(tmp_path / "b", path, replace=True)
    world = _reopened(path)
    world.submit(new_message("seq", b"3", key="k", sequence=3), id=b"r" * 16, mark=START_MS + 5)
    world.store.close()
    with closing(sqlite3.connect(path)) as conn:
        told = doctor.restored(conn)
    expected = {"at": RESTORED_MS, "backup_at": START_MS, "again": 1, "again_ids": ["72" * 16], "waiting_keys": 1}
    assert told == expected
