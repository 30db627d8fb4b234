"""A store with something of everything in it, and an independent record of what was stored: ids, bodies, decisions, who must get what."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from halfmsg.coordinator.messages import Kind, TransactionView
from tests.support.factories import PRODUCER, World, new_message
from tests.support.stores import open_sqlite

SUFFIXES: Final = ("", "-wal", "-shm", "-sums")
KEYS: Final = ("anna", "böhm", "c")


@dataclass(frozen=True)
class Sent:
    topic: str
    key: bytes | None
    sequence: int | None
    body: bytes


@dataclass
class Record:
    """Kept beside the store, never read from it. `due`: group -> (transaction id, index) that it must still be given."""

    states: dict[bytes, str] = field(default_factory=dict)
    sent: dict[bytes, Sent] = field(default_factory=dict)
    due: dict[str, set[bytes]] = field(default_factory=dict)
    held: set[bytes] = field(default_factory=set)


class Filler:
    def __init__(self, path: Path, seed: int, *, synchronous: str = "OFF") -> None:
        self.dice = random.Random(seed)
        self.store = open_sqlite(path, synchronous=synchronous)
        self.world = World(self.store)
        self.record = Record()
        self.numbers = dict.fromkeys(KEYS, 0)
        for name, kind in (("seq", Kind.SEQUENCE), ("plain", Kind.UNORDERED), ("arr", Kind.ARRIVAL)):
            self.world.topic(name, kind, lanes=2)
            self.world.group(f"g-{name}", name)
            self.record.due[f"g-{name}"] = set()

    def note(self, view: TransactionView, state: str, sent: Sent, *, visible: bool) -> None:
        self.record.states[view.tx.id] = state
        self.record.sent[view.tx.id] = sent
        if visible:
            self.record.due[f"g-{sent.topic}"].add(view.tx.id)

    def body(self) -> bytes:
        return self.dice.randbytes(self.dice.choice((8, 60, 400, 5_000)))

    def some(self, count: int) -> None:
        """Transactions in every state and of every kind of topic."""
        for _ in range(count):
            self.dice.choice((self.sequence, self.sequence, self.plain, self.arrival, self.half))()

    def sequence(self) -> None:
        key, body = self.dice.choice(KEYS), self.body()
        self.numbers[key] += 1
        view = self.world.sequence(self.numbers[key], key, body=body)
        self.note(view, "committed", Sent("seq", key.encode(), self.numbers[key], body), visible=True)

    def plain(self) -> None:
        body = self.body()
        self.note(self.world.send("plain", body), "committed", Sent("plain", None, None, body), visible=True)

    def arrival(self) -> None:
        key, body = self.dice.choice(KEYS), self.body()
        view = self.world.send("arr", body, key=key)
        self.note(view, "committed", Sent("arr", key.encode(), view.messages[0].sequence, body), visible=True)

    def half(self) -> None:
        body = self.body()
        view = self.world.prepare(new_message("plain", body))
        match self.dice.randrange(4):
            case 0:
                self.world.rollback(view.tx.id)
                self.note(view, "rolled_back", Sent("plain", None, None, body), visible=False)
            case 1:
                self.world.park(view.tx.id)
                self.note(view, "parked", Sent("plain", None, None, body), visible=False)
            case 2:
                self.world.commit(view)
                self.note(view, "committed", Sent("plain", None, None, body), visible=True)
            case _:
                self.note(view, "prepared", Sent("plain", None, None, body), visible=False)

    def gap(self) -> None:
        """A number behind one that never came."""
        body = self.body()
        view = self.world.sequence(2, "gap", body=body)
        self.note(view, "committed", Sent("seq", b"gap", 2, body), visible=False)
        self.record.held.add(view.tx.id)

    def hands(self) -> None:
        """Some acked, some given back, one a dead letter, some in flight."""
        for group in ("g-seq", "g-plain", "g-arr"):
            hand = self.world.fetch(group, 8, member="m")
            by_key = {each.row.key for each in hand}
            firsts = [next(each for each in hand if each.row.key == key) for key in sorted(by_key, key=repr)] if group != "g-plain" else hand[:4]
            for at, each in enumerate(firsts):
                done = self.world.settle(("ack", "reject", "nack")[at % 3], each, group=group)
                if done[0].error is None and at % 3 != 2:
                    self.record.due[group].discard(each.row.tx_id)


def fill(folder: Path, seed: int, count: int = 60, *, killed: bool = False) -> Record:
    """`folder/halfmsg.db` with content. Killed: as `kill -9` leaves it, half of it in the log, the log begun anew once."""
    path = folder / "halfmsg.db"
    work = path if not killed else folder / "work.db"
    filler = Filler(work, seed)
    filler.some(count)
    filler.gap()
    filler.hands()
    filler.store.backend.checkpoint()  # type: ignore[attr-defined]
    filler.some(count // 2)
    filler.store.backend._checkpoint("PASSIVE")  # type: ignore[attr-defined]  # the log begins anew over its old frames
    filler.some(count // 3)
    if killed:
        copy(work, path)
    filler.store.close()
    if killed:
        for suffix in SUFFIXES:
            work.with_name(work.name + suffix).unlink(missing_ok=True)
    return filler.record


def copy(source: Path, target: Path) -> None:
    for suffix in SUFFIXES:
        each = source.with_name(source.name + suffix)
        if each.exists():
            shutil.copyfile(each, target.with_name(target.name + suffix))


__all__ = ["PRODUCER", "Filler", "Record", "Sent", "copy", "fill"]
