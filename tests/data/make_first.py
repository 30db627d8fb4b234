"""Makes the kept store of the first schema: `python -m tests.data.make_first`. Run once, for that schema; never again over the same file.

Something of everything, so that no table is empty, by the real transaction functions as far as they reach. What they cannot make yet
(a skip by an operator) is a row by hand, as the schema says. `first.json` is what a test must find: who is due what, and each decision.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from halfmsg.coordinator.errors import Problem
from halfmsg.coordinator.store.sqlite import file
from tests.corruption.content import Filler, Sent
from tests.support.factories import new_message

FILE: Final = Path(__file__).parent / "first.db.gz"
EXPECTED: Final = Path(__file__).parent / "first.json"
SEED: Final = 20_261_121


def make(path: Path) -> dict[str, Any]:
    filler = Filler(path, SEED)
    filler.dice = random.Random(SEED)
    world, store = filler.world, filler.store
    filler.some(60)
    filler.gap()
    filler.hands()
    for number in (1, 2, 4):
        view = world.sequence(number, "skipped", body=b"%d" % number)
        if number < 3:
            filler.record.due["g-seq"].add(view.tx.id)
            filler.record.sent[view.tx.id] = Sent("seq", b"skipped", number, b"%d" % number)
            filler.record.states[view.tx.id] = "committed"
    store.do(lambda tx: _skip(tx, world.now))
    world.later(5)
    view = world.prepare(new_message("seq", b"open", key="open"))
    filler.record.states[view.tx.id] = "prepared"
    view = world.prepare(new_message("plain", b"asked"))
    world.ruling(view.tx, "unknown")
    filler.record.states[view.tx.id] = "prepared"
    view = world.prepare(new_message("plain", b"contrary"))
    world.rollback(view.tx.id)
    try:
        world.commit(view)
    except Problem as problem:
        print("listed:", problem)
    filler.record.states[view.tx.id] = "rolled_back"
    view = world.prepare(new_message("plain", b"forced"))
    world.park(view.tx.id)
    world.force(view.tx.id, commit=True)
    filler.note(view, "committed", Sent("plain", None, None, b"forced"), visible=True)
    filler.note(world.prepare(new_message("plain", b"parked")), "parked", Sent("plain", None, None, b"parked"), visible=False)
    world.park(list(filler.record.states)[-1])
    now = world.now
    store.close()
    due = {group: {id.hex(): _row(filler, id) for id in sorted(ids)} for group, ids in filler.record.due.items()}
    return {"now": now, "due": due, "states": {id.hex(): state for id, state in filler.record.states.items()}}


def _skip(tx: Any, now: int) -> None:
    """Number 3 of one key: recorded, and the key is released past it."""
    okey = tx.one("SELECT id FROM okey WHERE key = ?", b"skipped")[0]
    tx.skip(okey, 3, 3, "operator", "never committed", now)


def _row(filler: Filler, id: bytes) -> list[Any]:
    sent = filler.record.sent[id]
    return shape(sent.topic, sent.key, sent.sequence, sent.body)


def shape(topic: str, key: bytes | None, sequence: int | None, body: bytes) -> list[Any]:
    return [topic, None if key is None else key.decode(), sequence, len(body), hashlib.blake2b(body, digest_size=16).hexdigest()]


def main() -> int:
    if FILE.exists():
        print(f"{FILE} exists; it is kept for ever")
        return 1
    if len(file.migrations()) != 1:
        print("this version has another schema; the kept file is of the first")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "halfmsg.db"
        expected = make(path)
        small = Path(folder) / "small.db"
        conn = sqlite3.connect(path)
        conn.execute("VACUUM INTO ?", (str(small),))
        conn.close()
        FILE.write_bytes(gzip.compress(small.read_bytes(), 9, mtime=0))
    EXPECTED.write_text(json.dumps(expected, ensure_ascii=False) + "\n")
    print(f"{FILE} {FILE.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
