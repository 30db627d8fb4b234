"""One bit, or the end of a file, is wrong in a stopped store: nothing wrong is delivered or decided, and nothing is missing unsaid."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from halfmsg.coordinator.doctor import check_bodies
from halfmsg.coordinator.store.sqlite import wal
from tests.corruption import flips
from tests.corruption.content import copy, fill
from tests.corruption.judge import judge
from tests.e2e.test_start_errors import is_one_line, serve
from tests.support.factories import new_message
from tests.support.stores import changed_by_hand, open_sqlite

SEEDS = (11, 12)
CONTROL_SEED = 5


@pytest.mark.parametrize("seed", SEEDS)
def test_p8_no_flip_is_delivered_decided_or_lost_unsaid(seed: int) -> None:
    """50 flips and cuts each, in file, log, header and index, judged by a record of what was stored."""
    counts, wrong = flips.run(50, seed)
    print(f"seed {seed}", dict(counts))
    assert wrong == []
    assert sum(count for (_, what), count in counts.items() if what == "refused") >= 10


def test_p8_sound_stores_are_judged_fine(tmp_path: Path) -> None:
    """The judge itself: undamaged, stopped or killed, everything is there; and one missing message is seen."""
    for kind in ("stopped", "killed"):
        home = tmp_path / kind
        home.mkdir()
        record = fill(home, 5, killed=kind == "killed")
        copy(home / "halfmsg.db", tmp_path / "again.db")
        assert (judge(tmp_path / "again.db", record).what, judge(home / "halfmsg.db", record).wrong) == ("fine", [])
        conn = sqlite3.connect(tmp_path / "again.db")
        assert check_bodies(conn).ok
        conn.close()
        for each in tmp_path.glob("again.db*"):
            each.unlink()


def test_p8_the_judge_sees_what_the_sums_would_have_stopped(tmp_path: Path) -> None:
    """A decision and a place that were changed without a sum to tell are caught by the record."""
    record = fill(tmp_path, 6)
    path = tmp_path / "halfmsg.db"
    conn = sqlite3.connect(path)
    with conn:
        conn.execute("UPDATE place SET next_off = next_off + 2 WHERE next_off > 0")
        conn.execute("UPDATE tx SET state = 1, decided_at = 1, decided_by = 1, next_check = NULL WHERE state = 3")
    conn.close()
    path.with_name("halfmsg.db-sums").unlink()
    wrong = judge(path, record).wrong
    assert any(each.startswith("silent") for each in wrong) and any(each.startswith("decision") for each in wrong)


def test_p8_what_was_handed_out_wrong_is_judged_though_the_work_fails_later(tmp_path: Path) -> None:
    """A body that was changed with its digest, and a decision; then the last group is not found: failed, and wrong all the same."""
    record = fill(tmp_path, 6)
    path = tmp_path / "halfmsg.db"
    changed_by_hand(path)
    id = min(record.due["g-seq"])
    other = new_message("seq", b"other", key=record.sent[id].key)
    conn = sqlite3.connect(path)
    with conn:
        (number,) = conn.execute("SELECT n FROM tx WHERE id = ?", (id,)).fetchone()
        conn.execute("UPDATE message SET body = ?, digest = ? WHERE m = ?", (other.body, other.digest, number * 1024))
        conn.execute("UPDATE tx SET state = 1, decided_at = 1, decided_by = 1, next_check = NULL WHERE state = 3")
        conn.execute("UPDATE grp SET name = 'g-other' WHERE name = 'g-arr'")
    conn.close()
    verdict = judge(path, record)
    assert verdict.what == "failed" and "g-arr" in verdict.detail
    assert any(each.startswith(f"other content: {id.hex()}") for each in verdict.wrong)
    assert any(each.startswith("decision") for each in verdict.wrong)


def test_p8_without_sums_the_judge_sees_what_the_sums_stop(tmp_path: Path) -> None:
    """The same 20 flips twice: with sums none gets as far as a delivery; without, some are put aside at one and one is seen by doctor alone."""
    with_sums, none = flips.run(20, CONTROL_SEED)
    without, seen = flips.run(20, CONTROL_SEED, sums=False)
    print(dict(with_sums), dict(without), seen)
    assert none == [] and {what for _, what in with_sums} == {"refused", "fine"}
    assert seen != [] and {what for _, what in without} >= {"refused", "fine", "quarantined", "WRONG"}


@pytest.mark.parametrize("place", ["main", "wal", "cut main", "cut wal"])
def test_p8_a_real_coordinator_refuses_a_damaged_store(tmp_path: Path, place: str) -> None:
    """Exit code 1 and one line with the file, the place in it and the next command; the files are as they were."""
    fill(tmp_path, 7, killed=True)
    path = tmp_path / "halfmsg.db"
    dice = random.Random(place)
    for _ in range(20):  # what the log has anew, or frames of its earlier life, may be damaged unseen
        home = tmp_path / "copy"
        home.mkdir(exist_ok=True)
        copy(path, home / path.name)
        flips.damage(home / path.name, place, dice)
        before = {each.name: each.read_bytes() for each in home.glob("halfmsg.db*") if not each.name.endswith((".lock", "-shm"))}
        if _refused(home / path.name):
            break
    else:
        raise AssertionError("no damage was refused")
    done = serve(home, "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    is_one_line(done, "halfmsg.db", "halfmsg restore", "--accept-loss")
    assert {name: (home / name).read_bytes() for name in before} == before


def _refused(path: Path) -> bool:
    from halfmsg.coordinator.store.sqlite import file

    log, wrong = file.look(path)
    return file.damage(path, log, wrong) is not None


def test_p3_end_of_the_log_that_nothing_explains_is_written_down(tmp_path: Path) -> None:
    """Without the index a damaged last commit looks like what a power cut tears: it opens, and the audit says so for ever."""
    fill(tmp_path, 13, killed=True)
    path = tmp_path / "halfmsg.db"
    path.with_name("halfmsg.db-shm").unlink()
    log = path.with_name("halfmsg.db-wal")
    last = wal.inspect(path).committed * (wal.FRAME + 4_096) + wal.HEADER - 20
    with log.open("r+b") as file:
        file.seek(last)
        file.write(b"torn")
    assert wal.inspect(path).torn > 0
    open_sqlite(path, synchronous="FULL").close()
    conn = sqlite3.connect(path)
    assert "torn by a power cut, or the last commit" in conn.execute("SELECT reason FROM audit WHERE act = 'store.open'").fetchone()[0]
    conn.close()


def test_p8_a_process_that_stopped_over_damage_is_refused_at_the_next_start(tmp_path: Path) -> None:
    """No loop of crashes: damage that SQLite met ends the page sums, so the next start looks at the whole file."""
    store = open_sqlite(tmp_path / "halfmsg.db")
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_CORRUPT, "SQLITE_CORRUPT"
    store.backend.meaning(error)
    store.close()
    assert not (tmp_path / "halfmsg.db-sums").exists()
