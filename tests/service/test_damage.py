"""Rows that are not what was stored, and lists that are full."""

from __future__ import annotations

import pytest

from halfmsg.coordinator.service import fetching
from halfmsg.coordinator.settings import Groups, Settings
from tests.support.factories import World, bodies, dead_letter

from .asked import rows


def test_p8_damaged_body_is_quarantined(plain: World) -> None:
    """One byte flipped in the file: not delivered, not dropped, listed once in the topic's dead letters; its neighbours go."""
    plain.group("h")
    plain.send_many(3)
    plain.store.do(lambda tx: tx.conn.execute("UPDATE message SET body = x'39' WHERE body = x'31'"))
    assert bodies(plain.fetch("g")) == bodies(plain.fetch("h")) == [b"0", b"2"]
    assert rows(plain, "SELECT reason, off, grp FROM dead") == [(5, 1, None)]
    assert len(rows(plain, "SELECT 1 FROM message")) == 3


DAMAGE = [
    "body = CAST(body || x'00' AS BLOB)", "body = 1", "extra = x'c1'", "extra = x''", "tag = 'other'", "tag = 7",
    "tag = CAST(x'ff' AS TEXT)", "digest = x'00'",
]  # fmt: skip


@pytest.mark.parametrize("column", DAMAGE)
def test_p8_every_damaged_part_is_seen(plain: World, column: str) -> None:
    """Body, headers, tag, digest: whatever differs from what was sent, the message is quarantined."""
    plain.send()
    plain.store.do(lambda tx: tx.conn.execute(f"UPDATE message SET {column}"))
    assert plain.fetch() == []
    assert rows(plain, "SELECT reason FROM dead") == [(5,)]


@pytest.mark.parametrize(
    "column",
    [
        "body = CAST(body AS TEXT)",
        "extra = CAST(extra AS TEXT)",
        "body = CAST(x'ff' AS TEXT)",
    ],
)
def test_p8_damage_to_a_row_header_is_seen(plain: World, column: str) -> None:
    """One bit of a row's header turns a blob into text: the very bytes go out or it is quarantined, and the neighbours go."""
    plain.send(body=b"{}")
    plain.store.do(lambda tx: tx.conn.execute(f"UPDATE message SET {column}"))
    plain.send(body=b"sound")
    hand = bodies(plain.fetch())
    assert hand in ([b"sound"], [b"{}", b"sound"])
    assert rows(plain, "SELECT reason, off FROM dead") == ([(5, 0)] if len(hand) == 1 else [])


def test_p8_damaged_body_stops_its_key(seq: World) -> None:
    """On an ordered topic what comes after the damaged one waits for an operator; other keys go on."""
    for number in (1, 2, 3):
        seq.sequence(number)
    seq.sequence(1, "j")
    seq.store.do(lambda tx: tx.conn.execute("UPDATE message SET body = x'00' WHERE body = x'32'"))
    hand = seq.fetch(member="m")
    assert [(each.row.key, each.row.seq) for each in hand] == [(b"k", 1), (b"j", 1)]
    seq.ack(*hand)
    seq.later(86_400)
    assert seq.fetch(member="m") == []
    assert seq.sequence(4).messages[0].held == "gap"
    assert rows(seq, "SELECT reason, seq, grp FROM dead") == [(5, 2, None)]


def test_p8_damage_after_the_first_hand_out_is_seen_too(seq: World) -> None:
    """A message that comes back is checked again before it goes out again."""
    for number in (1, 2):
        seq.sequence(number)
    hand = seq.fetch(member="m")
    seq.nack(hand[0], delay_ms=0)
    seq.store.do(lambda tx: tx.conn.execute("UPDATE message SET body = x'00' WHERE body = x'31'"))
    assert seq.fetch(member="m") == []
    seq.later(86_400)
    assert seq.fetch(member="m") == []
    assert rows(seq, "SELECT reason, seq FROM dead") == [(5, 1)]


def test_p2_full_dead_letter_list_stops_its_group(plain: World) -> None:
    """At the limit nothing more is handed out, so nothing can be dropped; below it the group goes on (R20)."""
    plain.store.env.settings = Settings(group=Groups(max_dead_letters=2))
    plain.group("h")
    dead_letter(plain)
    dead_letter(plain)
    plain.send()
    assert plain.fetch("g") == []
    assert len(plain.fetch("h")) == 3
    plain.store.do(lambda tx: tx.conn.execute("DELETE FROM dead WHERE id = 1"))
    assert len(plain.fetch("g")) == 1


def test_p9_lane_waits_when_too_many_of_it_failed(seq: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the cap of exceptions a lane hands out nothing new, so a failing group cannot turn the log into rows."""
    monkeypatch.setattr(fetching, "LANE_RETRIES_MAX", 3)
    for number in range(3):
        seq.sequence(1, f"k{number}")
    seq.nack(*seq.fetch(member="m"), delay_ms=60_000)
    seq.sequence(1, "new")
    assert seq.fetch(member="m") == []
    seq.later(60)
    assert {each.row.key for each in seq.fetch(member="m")} == {b"k0", b"k1", b"k2", b"new"}
