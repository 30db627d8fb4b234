"""After the decision each message is released by itself, by its key's rule (R5, R11, R21).

An `unordered` message goes to the log at once. One of a `sequence` topic waits for its number's turn; `arrival` draws its number
here. A number that is missing is a question to its producer at once, and holds its key alone.
"""

from __future__ import annotations

from msgspec import Struct

from ..digests import lane_of
from ..messages import Kind, MessagePlace, Reason, Topic, Tx
from ..release_rules import Turn, turn
from ..store.base import StoreTx

DRAIN_MAX = 1_000
ASK_ON_GAP_MAX = 50


class Ready(Struct, frozen=True):
    """A message of a transaction that has just been decided."""

    m: int
    topic: Topic
    okey: int | None
    key: bytes | None
    number: int | None


def release_all(tx: StoreTx, now: int, decided: Tx, messages: list[Ready]) -> tuple[MessagePlace, ...]:
    """Release each message; keys in sorted order, so that two coordinators cannot deadlock (R11). Places come back by index."""
    places = [_release(tx, now, decided, message) for message in sorted(messages, key=_lock_order)]
    return tuple(sorted(places, key=lambda place: place.index))


def _lock_order(message: Ready) -> tuple[int, int, int]:
    return (message.okey or 0, message.number or 0, message.m)


def _release(tx: StoreTx, now: int, decided: Tx, message: Ready) -> MessagePlace:
    kind = message.topic.kind
    if kind is Kind.UNORDERED:
        return _append(tx, now, message, _group_lane(message.topic, decided.n), None)
    if kind is Kind.ARRIVAL:
        okey = _okey(message)
        number = _arrival_number(tx, now, okey)
        tx.advance_key(okey, number + 1)
        return _append(tx, now, message, _key_lane(message), number)
    return _in_sequence(tx, now, decided, message)


def _arrival_number(tx: StoreTx, now: int, okey: int) -> int:
    """After a restore not the next one: it may have been given out, and an inbox would take its second bearer for a repeat (W15)."""
    number, floor = tx.key(okey).next_seq, tx.restored().arrival_floor
    if number >= floor:
        return number
    if number > 1:
        tx.skip(okey, number, floor - 1, "restore", "these numbers may have been given out after the backup", now)
    return floor


def _okey(message: Ready) -> int:
    if message.okey is None:
        raise ValueError("an ordered message has a key")
    return message.okey


def _key_lane(message: Ready) -> int:
    return lane_of(message.key or b"", message.topic.lanes)


def _group_lane(topic: Topic, n: int) -> int:
    """Unordered: lanes in turn, but neighbours share one, so that a group commit touches one lane, not all (PROTOCOL §4)."""
    return 0 if topic.lanes == 1 else (n >> 8) % topic.lanes


def _append(tx: StoreTx, now: int, message: Ready, lane: int, seq: int | None) -> MessagePlace:
    off = tx.release(message.topic, lane, message.m, seq, message.okey, now)
    return MessagePlace(message.m & 1023, message.topic.name, message.key, seq, lane, off)


def _in_sequence(tx: StoreTx, now: int, decided: Tx, message: Ready) -> MessagePlace:
    okey, number = _okey(message), message.number
    if number is None:
        raise ValueError("a decision is complete: numbers were checked before")
    tx.close_key(okey, decided.n)
    key = tx.key(okey)
    verdict = turn(
        number=number,
        next_number=key.next_seq,
        stopped=key.stopped or key.draining,
        held_by_other=number >= key.next_seq and tx.held(okey, number) is not None,
        skipped=number < key.next_seq and tx.is_skipped(okey, number),
    )
    if verdict is Turn.RELEASE:
        place = _append(tx, now, message, _key_lane(message), number)
        tx.advance_key(okey, number + 1)
        drain(tx, now, okey)
        return place
    if verdict is Turn.HOLD:
        tx.hold(okey, number, message.m)
        _ask_who_fills(tx, now, okey)
        return MessagePlace(message.m & 1023, message.topic.name, message.key, number, held="gap")
    return _to_topic_dead(tx, now, message, number, verdict)


def _to_topic_dead(tx: StoreTx, now: int, message: Ready, number: int, verdict: Turn) -> MessagePlace:
    reason = Reason.LATE_AFTER_SKIP if verdict is Turn.LATE_AFTER_SKIP else Reason.NUMBER_TAKEN
    okey = _okey(message)
    if reason is Reason.NUMBER_TAKEN:
        tx.stop_key(okey)
    tx.add_dead(
        grp=None, topic=message.topic.id, lane=None, off=None, okey=okey, seq=number, m=message.m, reason=reason, attempts=0, first_out=None,
        at=now, history=None,
    )  # fmt: skip
    return MessagePlace(message.m & 1023, message.topic.name, message.key, number, dead=reason.word)


def drain(tx: StoreTx, now: int, okey: int) -> int:
    """Release what is held in turn, at most 1,000 a call; what remains is marked `draining` for the tick (R20)."""
    key = tx.key(okey)
    if key.stopped:
        return 0
    number = key.next_seq
    released = 0
    topic: Topic | None = None
    lane = 0
    while released < DRAIN_MAX and (m := tx.take_held(okey, number)) is not None:
        if topic is None:
            topic_id, _, _, name = tx.key_name(okey)
            topic = tx.topic_by_id(topic_id)
            lane = lane_of(name, topic.lanes)
        tx.release(topic, lane, m, number, okey, now)
        number += 1
        released += 1
    if released:
        tx.advance_key(okey, number)
    more = released == DRAIN_MAX and tx.held(okey, number) is not None
    if more != key.draining:
        tx.set_draining(okey, more)
    return released


def drain_tick(tx: StoreTx, now: int, _: None) -> int:
    return sum(drain(tx, now, key.id) for key in tx.draining_keys(10))


def _ask_who_fills(tx: StoreTx, now: int, okey: int) -> None:
    """A gap is a question, not a wait (R5): undecided transactions of this key are asked about now, less the time a commit on its
    way needs."""
    soon = now + int(tx.env.settings.check.gap_delay_s * 1000)
    for n in tx.open_on_key(okey, ASK_ON_GAP_MAX):
        tx.ask_soon(n, soon)
    tx.emit(("gap", okey))
