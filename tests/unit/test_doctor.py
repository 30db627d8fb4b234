"""Each invariant is silent over a sound store and speaks when its row is broken on purpose."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from halfmsg.coordinator import doctor
from halfmsg.coordinator.digests import message_digest, transaction_digest
from halfmsg.coordinator.env import Env
from halfmsg.coordinator.errors import Problem
from halfmsg.coordinator.messages import Content, Decision, Fetch, Kind, NewMessage, Settle, SettleMany
from halfmsg.coordinator.service import fetching, groups, producers, settling, topics, transactions
from halfmsg.coordinator.settings import Settings
from halfmsg.coordinator.store.sqlite import file
from halfmsg.coordinator.store.sqlite.backend import SqliteBackend

EXTRA = msgspec.msgpack.encode(("application/json", None, None))


def _message(conn: sqlite3.Connection, n: int, topic: int, okey: int | None) -> None:
    name, key = {1: "orders", 2: "mail"}[topic], {1: b"k", 2: b"h", None: None}[okey]
    digest = message_digest(topic=name, key=key, tag=None, content_type="application/json", body=b"{}", attributes=None)
    conn.execute("INSERT INTO message VALUES (?, ?, ?, NULL, ?, ?, x'7b7d')", (n * 1024, topic, okey, EXTRA, digest))


@pytest.fixture
def sound(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A sequence topic with a released key and a held one, an unordered topic with a run, a retry and a dead letter in one lane."""
    conn = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    file.migrate(conn, tmp_path / "store.db", 0)
    conn.executescript(
        """
        INSERT INTO source (id, ns, name, incarnation) VALUES (1, 1, 'orders', 1);
        INSERT INTO topic VALUES (1, 1, 'orders', 1, 2, '{}'), (2, 1, 'mail', 0, 1, '{}');
        INSERT INTO lane VALUES (1, 0, 2), (1, 1, 0), (2, 0, 3);
        INSERT INTO okey VALUES (1, 1, 1, 1, x'6b', 3, 0, 0), (2, 1, 1, 1, x'68', 1, 0, 0);
        INSERT INTO tx VALUES
            (1, 1, x'01', 1, 1, x'00', 1, 0, 1, 2, 1, 0, NULL, NULL), (2, 1, x'02', 1, 1, x'00', 1, 0, 1, 2, 2, 0, NULL, NULL),
            (3, 1, x'03', 0, 1, x'00', 1, 0, 1, 2, 1, 0, NULL, NULL), (4, 1, x'04', 0, 1, x'00', 1, 0, 1, 2, 1, 0, NULL, NULL),
            (5, 1, x'05', 0, 1, x'00', 1, 0, 1, 2, 1, 0, NULL, NULL), (6, 1, x'06', 1, 1, x'00', 1, 0, 1, 2, 1, 0, NULL, NULL),
            (7, 1, x'07', 1, 0, x'00', 1, 0, 1, NULL, NULL, 0, 9, NULL), (8, 1, x'08', 1, 2, x'00', 1, 0, 1, 2, 1, 0, NULL, NULL),
            (9, 1, x'09', 1, 3, x'00', 1, 0, 1, NULL, NULL, 0, 9, 'why');
        INSERT INTO log VALUES (1, 0, 0, 1024, 1, 5, 1), (1, 0, 1, 2048, 2, 5, 1);
        INSERT INTO log VALUES (2, 0, 0, 3072, NULL, 5, NULL), (2, 0, 1, 4096, NULL, 5, NULL), (2, 0, 2, 5120, NULL, 5, NULL);
        INSERT INTO held VALUES (2, 2, 6144, NULL);
        INSERT INTO open_key VALUES (2, 7);
        INSERT INTO grp VALUES (1, 1, 'g', 1, 1, '{}', 0, NULL), (2, 1, 'm', 2, 1, '{}', 0, NULL);
        INSERT INTO place VALUES (1, 0, 2, 'a', 7, 9), (1, 1, 0, NULL, 0, 0), (2, 0, 3, NULL, 0, 0);
        INSERT INTO flight VALUES (1, 0, 0, 0, 7, 'a', 9, x'00', 0, 0, 0, NULL, 0), (2, 0, 0, 2, 8, 'b', 9, x'03', 0, 0, 0, NULL, 0);
        INSERT INTO retry VALUES (1, 0, 1, NULL, 1, 0, 0, NULL, 0), (2, 0, 1, 5, NULL, 1, 0, 'no', 0);
        INSERT INTO dead VALUES (1, 2, 2, 0, 0, NULL, NULL, 3072, 1, 16, 0, 5, NULL, 0);
        UPDATE counter SET v = 9;
        """
    )
    for n, topic, okey in ((1, 1, 1), (2, 1, 1), (3, 2, None), (4, 2, None), (5, 2, None), (6, 1, 2), (7, 1, 2), (9, 2, None)):
        _message(conn, n, topic, okey)
    yield conn
    conn.close()


BROKEN = {
    "log_is_committed": ("UPDATE tx SET state = 0 WHERE n = 1", "DELETE FROM tx WHERE n = 1"),
    "held_and_dead_are_committed": ("UPDATE tx SET state = 0 WHERE n = 6", "UPDATE tx SET state = 2 WHERE n = 3"),
    "committed_is_somewhere": ("DELETE FROM held", "DELETE FROM log WHERE m = 4096"),
    "bodies_are_all_there": ("DELETE FROM message WHERE m = 7168", "UPDATE tx SET msgs = 2 WHERE n = 3"),
    "rolled_back_has_no_bodies": ("INSERT INTO message VALUES (8193, 2, NULL, NULL, x'00', x'00', x'00')",),
    "message_has_its_transaction": ("DELETE FROM tx WHERE n = 9",),
    "undecided_is_asked_about": ("UPDATE tx SET next_check = NULL WHERE n = 7", "UPDATE tx SET next_check = NULL WHERE n = 9"),
    "decided_is_not_asked_about": ("UPDATE tx SET next_check = 1 WHERE n = 1",),
    "decision_is_whole": ("UPDATE tx SET decided_by = NULL WHERE n = 1", "UPDATE tx SET decided_at = 1 WHERE n = 7", "UPDATE tx SET state = 4"),
    "undecided_has_a_producer": ("UPDATE tx SET source = 0 WHERE n = 7",),
    "open_key_is_undecided": ("INSERT INTO open_key VALUES (1, 1)", "INSERT INTO open_key VALUES (1, 99)"),
    "undecided_key_is_open": ("DELETE FROM open_key",),
    "held_waits_for_a_gap": ("UPDATE okey SET next_seq = 2 WHERE id = 2",),
    "held_is_above_next": ("UPDATE okey SET next_seq = 3 WHERE id = 2", "DELETE FROM okey WHERE id = 2"),
    "held_has_its_body": ("DELETE FROM message WHERE m = 6144",),
    "log_has_its_body": ("DELETE FROM message WHERE m = 1024",),
    "log_is_below_lane_end": ("UPDATE lane SET next_off = 1 WHERE topic = 1 AND lane = 0", "DELETE FROM lane WHERE topic = 2"),
    "log_has_no_hole": ("DELETE FROM log WHERE topic = 2 AND off = 1", "UPDATE lane SET next_off = 4 WHERE topic = 2"),
    "log_fits_its_kind": ("UPDATE log SET seq = NULL WHERE m = 1024", "UPDATE log SET okey = 1 WHERE m = 3072"),
    "number_is_released_once": ("UPDATE log SET seq = 1 WHERE m = 2048",),
    "key_is_released_in_order": ("UPDATE log SET seq = 3 - seq WHERE topic = 1",),
    "key_has_no_unnamed_hole": ("UPDATE log SET seq = 4 WHERE m = 2048",),
    "key_stays_in_one_lane": ("UPDATE log SET lane = 1 WHERE m = 2048",),
    "released_number_is_below_next": ("UPDATE okey SET next_seq = 2 WHERE id = 1",),
    "group_has_a_place_in_each_lane": ("DELETE FROM place WHERE grp = 1 AND lane = 1",),
    "place_is_within_lane": ("UPDATE place SET next_off = 4 WHERE grp = 2", "DELETE FROM lane WHERE topic = 2"),
    "flight_is_behind_its_place": ("UPDATE place SET next_off = 2 WHERE grp = 2", "DELETE FROM place WHERE grp = 2"),
    "flight_is_well_formed": ("UPDATE flight SET done = x'0000' WHERE grp = 1", "UPDATE flight SET hi = 300 WHERE grp = 2"),
    "retry_is_behind_its_place": ("UPDATE place SET next_off = 1 WHERE grp = 1 AND lane = 0", "DELETE FROM log WHERE m = 4096"),
    "message_is_in_one_run": ("INSERT INTO flight VALUES (2, 0, 2, 2, 9, 'c', 9, x'00', 0, 0, 0, NULL, 0)",),
    "message_is_in_hand_or_waits": ("INSERT INTO retry VALUES (2, 0, 2, 5, NULL, 1, 0, NULL, 0)",),
    "dead_is_settled": ("UPDATE dead SET off = 1", "UPDATE dead SET off = 2"),
    "key_has_one_head": (
        "UPDATE retry SET due = 5 WHERE grp = 1",
        "DELETE FROM flight; INSERT INTO retry VALUES (1, 0, 0, 1, 1, 1, 0, NULL, 0); UPDATE retry SET due = 5 WHERE grp = 1",
    ),
    "waiting_key_is_woken": ("DELETE FROM flight WHERE grp = 1", "UPDATE flight SET done = x'01' WHERE grp = 1"),
    "ordered_lane_is_in_one_hand": ("UPDATE place SET owner = 'b' WHERE grp = 1", "UPDATE place SET owner = NULL WHERE grp = 1"),
    "dead_has_its_body": ("UPDATE dead SET m = 5121",),
    "names_exist": ("INSERT INTO place VALUES (77, 0, 0, NULL, 0, 0)", "DELETE FROM topic WHERE id = 2", "DELETE FROM okey WHERE id = 1"),
    "counters_are_ahead": (
        "UPDATE counter SET v = 8 WHERE name = 'n'", "UPDATE counter SET v = 7 WHERE name = 'token'", "DELETE FROM counter",
        "UPDATE counter SET v = 9 WHERE name = 'now'; UPDATE tx SET first_at = 10 WHERE n = 1",
    ),
}  # fmt: skip


def test_a_sound_store_has_no_findings(sound: sqlite3.Connection) -> None:
    """An invariant that cries over a sound store would be switched off."""
    assert [(found.name, found.rows) for found in doctor.run(sound, integrity=True) if not found.ok] == []


def test_every_invariant_is_broken_on_purpose_here() -> None:
    """A check that was never seen to fire proves nothing."""
    assert set(BROKEN) == {invariant.name for invariant in doctor.INVARIANTS}


@pytest.mark.parametrize(("name", "sql"), [(name, sql) for name, ways in BROKEN.items() for sql in ways])
def test_an_invariant_fires_when_its_rows_are_broken(sound: sqlite3.Connection, name: str, sql: str) -> None:
    """The broken row is in the finding, and its sentence says what it means."""
    sound.executescript(sql)
    invariant = next(each for each in doctor.INVARIANTS if each.name == name)
    found = doctor.check(sound, invariant)
    assert found.ok is False
    assert found.rows and found.meaning == invariant.meaning


def test_what_an_operator_skipped_is_no_hole(sound: sqlite3.Connection) -> None:
    """R14: a skip is a record, so the key may go on over it."""
    sound.executescript(
        "UPDATE log SET seq = 4 WHERE m = 2048; UPDATE okey SET next_seq = 5 WHERE id = 1; INSERT INTO skipped VALUES (1, 2, 3, 'o', 'w', 1)"
    )
    assert [found.name for found in doctor.run(sound) if not found.ok] == []


def test_a_stuck_head_may_wait_for_ever(sound: sqlite3.Connection) -> None:
    """A damaged body stops its key on purpose; what waits behind it is not lost."""
    sound.executescript("DELETE FROM flight WHERE grp = 1; INSERT INTO retry VALUES (1, 0, 0, NULL, 1, 0, 0, 'stuck: the stored body is damaged', 0)")
    assert [found.name for found in doctor.run(sound) if not found.ok] == []


@pytest.mark.parametrize(
    "change", ["body = x'ff00'", "digest = x'ff00'", "extra = x'ff00'", "tag = 'x'", "tag = CAST(x'ff' AS TEXT)", "body = 'text'"]
)
def test_p8_a_damaged_body_is_found_by_its_digest(sound: sqlite3.Connection, change: str) -> None:
    """Bytes out are bytes in, whichever of them was changed."""
    sound.execute(f"UPDATE message SET {change} WHERE m = 2048")
    assert doctor.check_bodies(sound).rows == ({"m": 2048, "topic": "orders"},)


def test_a_message_is_named_by_the_id_that_other_commands_take(sound: sqlite3.Connection) -> None:
    """`m` is a number of the store; one whose transaction is gone, or whose id is damaged, has no other name."""
    id = bytes.fromhex("018f0000000070008000000000000002")
    sound.executescript("UPDATE message SET body = x'00'; UPDATE log SET m = 9999999 WHERE m = 1024")
    sound.execute("UPDATE tx SET id = ? WHERE n = 2", (id,))
    named = {row["m"]: row.get("message") for row in doctor.check_bodies(sound).rows}
    assert named[2048] == "018f0000-0000-7000-8000-000000000002-0" and named[1024] is None
    ghost = next(each for each in doctor.INVARIANTS if each.name == "log_is_committed")
    assert [row.get("message") for row in doctor.check(sound, ghost).rows] == [None]


def test_a_sample_is_spread_over_all_messages(sound: sqlite3.Connection) -> None:
    """First and last are in every sample of two; none is looked at twice."""
    sound.execute("UPDATE message SET body = x'00'")
    assert [row["m"] for row in doctor.check_bodies(sound, sample=2).rows] == [1024, 9216]
    assert len(doctor.check_bodies(sound, sample=1_000).rows) == 8
    assert doctor.check_bodies(sound, sample=0).ok


def test_violations_are_listed_up_to_the_limit(sound: sqlite3.Connection) -> None:
    """P9: ten million broken rows make a list of twenty."""
    sound.execute("UPDATE tx SET state = 0 WHERE n < 6")
    assert len(doctor.check(sound, doctor.INVARIANTS[0], limit=3).rows) == 3


def test_work_past_its_bound_is_unknown_and_not_ok(sound: sqlite3.Connection) -> None:
    """A check that was not finished must not say that all is well."""
    endless = doctor.Invariant(
        "endless", "P9", "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n WHERE i < 0", "never"
    )
    assert doctor.check(sound, endless, steps_max=100_000).ok is None
    assert doctor.check(sound, doctor.INVARIANTS[0], steps_max=100_000).ok is True


def test_a_damaged_file_is_a_finding(sound: sqlite3.Connection, tmp_path: Path) -> None:
    """SQLite's own check sees what no invariant asks about."""
    path = tmp_path / "store.db"
    sound.close()
    raw = bytearray(path.read_bytes())
    raw[4_096 * 2 : 4_096 * 9] = b"\x5a" * 4_096 * 7
    path.write_bytes(raw)
    conn = sqlite3.connect(file.read_only(path), uri=True, isolation_level=None)
    found = doctor.integrity_check(conn)
    conn.close()
    assert found.ok is False and found.rows


# --- a store that was written by the coordinator's own functions ---


class Workload:
    """Producers, members and leases that end, in one seeded order, straight over the transaction functions."""

    def __init__(self, path: Path, seed: int) -> None:
        self.dice = random.Random(seed)
        self.now = 1_000
        self.backend = SqliteBackend(path, env=Env(Settings(dev=True)), synchronous="NORMAL", now_ms=0)
        self.numbers = {b"a": 0, b"b": 0, b"c": 0}
        self.open: list[tuple[Content, tuple[int | None, ...]]] = []
        self.hand: list[str] = []
        for name, kind in (("seq", Kind.SEQUENCE), ("plain", Kind.UNORDERED)):
            self.do(topics.put, topics.TopicWanted(name, kind, 2))
        self.do(producers.hello, producers.Hello("p", None))
        wanted = (groups.Wanted("seq", None, ()), groups.Wanted("plain", None, ()))
        self.do(groups.put, groups.GroupWanted("g", wanted, "earliest", 500, 3, 50, 400))

    def do(self, fn: object, command: object) -> object:
        tx = self.backend.tx
        self.backend.begin()
        tx.now = self.now
        try:
            given = fn(tx, self.now, command)  # type: ignore[operator]
        except Problem as problem:
            self.backend.rollback()
            return problem
        self.backend.commit()
        tx.events.clear()
        return given

    def prepare(self) -> None:
        key = self.dice.choice([None, *self.numbers])
        topic = "plain" if key is None else "seq"
        body = str(self.dice.random()).encode()
        digest = message_digest(topic=topic, key=key, tag=None, content_type="application/json", body=body, attributes=None)
        message = NewMessage(0, topic, key, None, EXTRA, body, digest, None)
        content = Content(self.dice.randbytes(16), "p", None, None, transaction_digest([digest]), (message,), None, False)
        self.do(transactions.store_content, content)
        commits = self.dice.random() < 0.8
        if key is not None and commits:
            self.numbers[key] += 1
        self.open.append((content, (self.numbers[key] if key is not None else None,) if commits else ()))

    def decide(self) -> None:
        if self.open:
            content, numbers = self.open.pop(self.dice.randrange(len(self.open)))
            self.do(transactions.decide, Decision(content.id, bool(numbers), "p", None, content.digest, numbers or None))

    def fetch(self) -> None:
        given = self.do(fetching.fetch, Fetch("g", self.dice.randint(1, 9), None, self.dice.choice("xy"), None))
        if isinstance(given, list):
            self.hand += [each.token for each in given]

    def settle(self) -> None:
        for _ in range(min(len(self.hand), 4)):
            token = self.hand.pop(self.dice.randrange(min(len(self.hand), 3)))
            self.do(settling.settle, SettleMany("g", (Settle(token, self.dice.choice(("ack", "ack", "ack", "nack", "reject")), "why"),)))

    def wait(self) -> None:
        self.now += self.dice.choice((1, 40, 600))
        self.do(settling.expire_tick, None)

    def turn(self) -> None:
        self.dice.choice((self.prepare, self.prepare, self.decide, self.decide, self.fetch, self.settle, self.wait))()


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_found_while_the_coordinator_works(tmp_path: Path, seed: int) -> None:
    """After each of many turns of prepare, decide, fetch, settle and ended leases every invariant holds."""
    work = Workload(tmp_path / "store.db", seed)
    conn = sqlite3.connect(file.read_only(tmp_path / "store.db"), uri=True, isolation_level=None)
    for turn in range(400):
        work.turn()
        if turn % 5 == 0:
            wrong = [(found.name, found.rows) for found in doctor.run(conn, sample=50) if not found.ok]
            assert not wrong, f"turn {turn}: {wrong}"
    counts = {table: conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("log", "dead", "tx")}
    conn.close()
    work.backend.close()
    assert min(counts.values()) > 0, f"the workload reached too little: {counts}"
