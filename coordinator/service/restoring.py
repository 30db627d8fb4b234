"""A store that was made from a backup begins again (W15): what was given out after the backup must never meet what is given out now.

Tokens jump, so that no lease of the time between is taken for a new one. Numbers of `arrival` topics jump, as inboxes have seen the
ones between. Whatever was in a hand at the backup is handed out again, uncharged. Generations stay: the inbox makes repeats harmless,
and a new generation would run every effect a second time. Numbers of `sequence` topics are the producers': what is missing is a gap.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import asdict

from ..messages import Flight, Kind, Restored, Topic
from ..store.base import StoreTx
from . import hands

JUMP = 1 << 40
"""More tokens than a coordinator gives out between a backup and a restore."""
NEVER = 1 << 62


class BeginAgain(Struct, frozen=True):
    backup_at: int
    origin: str
    doubt_before: int
    """The latest that the lost coordinator's time can have been: it may have run ahead of the wall clock."""


class Begun(Struct, frozen=True):
    """What was in hands at the backup, and the marks from which everything new counts."""

    taken_back: int
    token: int
    arrival_floor: int


def begin_again(tx: StoreTx, now: int, command: BeginAgain) -> Begun:
    """In one transaction, before anybody is served. The time in µs, and for generations in s, is past whatever an earlier restore of the same
    backup gave out.
    """
    before = tx.restored()
    token = max(tx.counter("token") + JUMP, now * 1_000)
    floor = max(before.arrival_floor + JUMP, now * 1_000)
    taken = take_back_all(tx, now)
    tx.put_counter("token", token)
    generation = max(before.generation + 1, now // 1_000)
    restored = Restored(now, command.backup_at, tx.counter("n"), floor, command.doubt_before, generation)
    for name, value in asdict(restored).items():
        tx.put_counter(f"restored_{name}", value)
    tx.audit(now, "operator", "store.restore", command.origin, f"backup of {command.backup_at}", None, f"tokens from {token}")
    return Begun(taken, token, floor)


def take_back_all(tx: StoreTx, now: int) -> int:
    """Every open delivery is due again, in its key's order; every lane is free. Gives how many."""
    taken = 0
    while runs := tx.expired_flights(NEVER, 100):
        for run in runs:
            group = tx.group_by_id(run.grp)
            if tx.flight(run.grp, run.lane, run.lo, run.token) is None:
                continue  # its lane came back with an earlier run
            if group is None:
                tx.drop_flight(run)
                continue
            taken += len(run.open_offsets())
            topic = tx.topic_by_id(group.topic)
            if topic.kind is Kind.UNORDERED:
                hands.give_back_unheld_run(tx, now, group, run, frozenset())
            else:
                taken += sum(len(other.open_offsets()) for other in tx.flights_of_lane(group.id, run.lane)) - len(run.open_offsets())
                hands.give_back_unheld(tx, now, group, topic, run.lane, frozenset())
                for left in tx.flights_of_lane(group.id, run.lane):
                    taken -= _lose(tx, now, topic, left)
    tx.free_all_places()
    return taken


def _lose(tx: StoreTx, now: int, topic: Topic, run: Flight) -> int:
    """What damage has taken from the log under a run is reported in the topic's dead letters (P8). Gives how many."""
    lost = run.open_offsets()
    for off in lost:
        hands.quarantine(tx, now, topic, run.lane, off)
    tx.drop_flight(run)
    return len(lost)
