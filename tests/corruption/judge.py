"""What a coordinator makes of a damaged store, judged by the record alone: refused, or everything in it accounted for byte for byte.

Where it found nothing amiss, its invariants must hold as well.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from msgspec import MsgspecError

from halfmsg.coordinator import doctor
from halfmsg.coordinator.errors import Problem, StartError
from halfmsg.coordinator.store.base import RowDamaged, StoreBroken
from tests.corruption.content import KEYS, Record, Sent
from tests.support.clock import START_MS, ManualClock
from tests.support.factories import World
from tests.support.stores import Store, open_sqlite

GROUPS = ("g-seq", "g-plain", "g-arr")
TURNS = 60
LATER_S = 3_600.0


class Verdict:
    """`what`: refused, failed (a read says so), quarantined, or fine. `wrong`: what must never be."""

    def __init__(self, what: str, detail: str = "", wrong: list[str] | None = None) -> None:
        self.what, self.detail, self.wrong = what, detail, wrong or []


def judge(path: Path, record: Record) -> Verdict:
    try:
        store = open_sqlite(path, clock=ManualClock(START_MS + 60_000))
    except StartError as error:
        text = str(error)
        wrong = [] if path.name in text and "halfmsg" in text and "\n" not in text else [f"unclear: {text}"]
        return Verdict("refused", text, wrong)
    wrong = []  # filled as it goes on: an error at the end takes back nothing of what was handed out before
    try:
        return Verdict(_work(store, record, wrong), wrong=wrong)
    except (sqlite3.Error, Problem, RowDamaged, MsgspecError, ValueError, TypeError) as error:
        found = store.backend.meaning(error)
        if isinstance(found, StoreBroken):
            store.close()
            return _again(path, f"{found}", wrong)
        return Verdict("failed", f"{type(error).__name__}: {error}", wrong)
    finally:
        store.close()


def _again(path: Path, why: str, wrong: list[str]) -> Verdict:
    """The process has stopped over damage: the next start must refuse, or the damage was of what nothing needs any more."""
    try:
        open_sqlite(path).close()
    except StartError as error:
        return Verdict("refused", f"{why}; then {error}", wrong)
    return Verdict("failed", why, [*wrong, f"it stops over damage and starts again: {why}"])


def _work(store: Store, record: Record, wrong: list[str]) -> str:
    """Fine or quarantined. What is wrong goes into `wrong` as soon as it is seen."""
    world = World.__new__(World)
    world.store, world.ids, world.groups = store, 0, {}
    wrong += _states(store, record)
    for group in GROUPS:
        got = _handed(world, record, group, wrong)
        listed = _listed(store)
        for id in record.due[group] - got:
            if not listed & {id, record.sent[id].key or b"-", b"lane"}:
                wrong.append(f"silent: {group} never got {id.hex()}, and no list has it")
    wrong += [each for each in _states(store, record) if each not in wrong]
    if not (listed := _listed(store)):
        conn = store.backend.tx.conn  # type: ignore[attr-defined]
        wrong += [f"unsound: {each.name} {each.rows[:1]}" for each in doctor.run(conn, integrity=True) if not each.ok]
    return "quarantined" if listed else "fine"


def _handed(world: World, record: Record, group: str, wrong: list[str]) -> set[bytes]:
    """All that the group is given until nothing comes, each acked."""
    got: set[bytes] = set()
    idle = 0
    for _ in range(TURNS):
        world.expire()
        hand = world.fetch(group, 100, member="judge")
        for each in hand:
            wrong += _delivery(record, each)
            got.add(each.row.tx_id)
            world.ack(each, group=group)
        idle = 0 if hand else idle + 1
        if idle > 2:
            break
        world.later(LATER_S)
    return got


def _delivery(record: Record, each: Any) -> list[str]:
    row = each.row
    sent = record.sent.get(row.tx_id)
    if sent is None:
        return [f"unknown id {row.tx_id.hex()} delivered"]
    wrong = []
    if record.states[row.tx_id] != "committed":
        wrong.append(f"P1: {row.tx_id.hex()} is {record.states[row.tx_id]} and was delivered")
    if Sent(each.topic, row.key, row.seq, row.body) != sent:
        wrong.append(f"other content: {row.tx_id.hex()} {(each.topic, row.key, row.seq)} in place of {(sent.topic, sent.key, sent.sequence)}")
    if row.tx_id in record.held:
        wrong.append(f"P7: {row.tx_id.hex()} is behind a gap and was delivered")
    return wrong


def _listed(store: Store) -> set[bytes]:
    """Ids in the topics' dead letters for damage; a stopped key lists what is behind it, an unreadable row its whole lane."""
    found: set[bytes] = set()
    conn = store.backend.tx.conn  # type: ignore[attr-defined]
    for m, okey in conn.execute("SELECT m, okey FROM dead WHERE reason = 5").fetchall():
        row = conn.execute("SELECT id FROM tx WHERE n = ?", (m >> 10,)).fetchone()
        found.add(row[0] if row else b"lane")
        if okey is not None:
            key = conn.execute("SELECT key FROM okey WHERE id = ?", (okey,)).fetchone()
            found.add(key[0] if key else b"lane")
    return found


def _states(store: Store, record: Record) -> list[str]:
    wrong = []
    for id, state in record.states.items():
        try:
            tx = store.tx.find(id)
        except (sqlite3.Error, ValueError, Problem, RowDamaged):
            continue  # it says so
        if tx is None:
            wrong.append(f"gone: transaction {id.hex()}")
        elif tx.state.word != state:
            wrong.append(f"decision: {id.hex()} was {state} and is {tx.state.word}")
    return wrong


__all__ = ["KEYS", "Verdict", "judge"]
