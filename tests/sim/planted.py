"""Wrong ends of a world, put in by hand just before it is judged: each shows that a rule of `judgement.py` can fail (`--plant NAME`)."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from uuid import UUID

from tests.kill import load

if TYPE_CHECKING:
    from .world import World

YEAR_S: Final = 31_536_000.0
NOBODY: Final = "00000000-0000-7000-8000-000000000000"


def _store(world: World, sql: str) -> None:
    with closing(sqlite3.connect(world.store, isolation_level=None)) as conn:
        if conn.execute(sql).rowcount == 0:
            raise LookupError(f"this seed has nothing to plant that in: {sql}")


def effects_of_a_clock_that_is_behind(world: World) -> None:
    """What a producer committed "years before" any group stood has no effect in one of them."""
    late: list[tuple[str]] = []
    for name in load.PRODUCERS:
        with closing(sqlite3.connect(load.database(world.folder, name))) as conn:
            late += conn.execute("SELECT message FROM work WHERE at < ?", (time.time() - YEAR_S,)).fetchall()
    with closing(sqlite3.connect(load.database(world.folder, load.GROUPS[0]), isolation_level=None)) as conn:
        if not conn.executemany("DELETE FROM effect WHERE message = ?", late).rowcount > 0:
            raise LookupError("no producer of this seed has a clock that is behind")


def decision_turned_round(world: World) -> None:
    _store(world, "UPDATE tx SET state = 2 WHERE n = (SELECT max(n) FROM tx WHERE state = 1)")


def decided_by_no_operator(world: World) -> None:
    _store(world, "UPDATE tx SET decided_by = 3 WHERE n = (SELECT min(n) FROM tx WHERE state = 2)")


def flag_that_nobody_set(world: World) -> None:
    world.flagged.add(min(world.unflagged - world.forced))


def flag_that_is_missing(world: World) -> None:
    """Decided by an operator who said so, and it came without a word of it."""
    id = min(world.unflagged - world.forced)
    world.forced.add(id)
    _store(world, f"UPDATE tx SET decided_by = 3 WHERE id = x'{UUID(id).hex}'")


def acked_and_dead(world: World) -> None:
    with closing(sqlite3.connect(world.store)) as conn:
        spot = conn.execute("SELECT grp, lane, off FROM dead WHERE grp IS NOT NULL").fetchone()
    if spot is None:
        raise LookupError("no dead letter in this seed")
    world.ledger._done.add(tuple(map(str, spot)))


def neither_acked_nor_dead(world: World) -> None:
    """Of the group without an inbox, whose effects nobody counts."""
    world.ledger._done.remove(max(spot for spot in world.ledger._done if spot[0] == _raw(world)))


def _raw(world: World) -> str:
    with closing(sqlite3.connect(world.store)) as conn:
        return str(conn.execute("SELECT id FROM grp WHERE name = 'raw'").fetchone()[0])


def acked_and_not_stored(world: World) -> None:
    world.answered["ack"].add("1.0.999.999.7")


def rejected_by_nobody(world: World) -> None:
    _store(world, "UPDATE dead SET reason = 2 WHERE rowid = (SELECT min(rowid) FROM dead WHERE reason = 1)")


def dead_before_its_time(world: World) -> None:
    with closing(sqlite3.connect(world.store)) as conn:
        world.ledger.hands[tuple(map(str, conn.execute("SELECT grp, lane, off FROM dead WHERE reason = 1").fetchone()))] = 1


def dead_for_all(world: World) -> None:
    _store(world, "UPDATE dead SET grp = NULL WHERE rowid = (SELECT min(rowid) FROM dead)")


def parked_and_not_old(world: World) -> None:
    world.parked_by_age = False
    world.ledger.parked.append("too old")


def effects_exchanged(world: World) -> None:
    """Two of one key in the wrong order, each under the other's number."""
    with closing(sqlite3.connect(load.database(world.folder, load.GROUPS[0]), isolation_level=None)) as conn:
        sql = "SELECT min(n), max(n) FROM effect WHERE sequence IS NOT NULL AND producer IS NOT NULL GROUP BY producer, key HAVING count(*) > 1"
        first, last = conn.execute(sql).fetchone()
        content = {n: conn.execute("SELECT message, digest FROM effect WHERE n = ?", (n,)).fetchone() for n in (first, last)}
        conn.execute("UPDATE effect SET message = 'away' WHERE n = ?", (first,))
        for n, other in ((last, first), (first, last)):
            conn.execute("UPDATE effect SET message = ?, digest = ? WHERE n = ?", (*content[other], n))


def acknowledged_and_not_in_the_backup(world: World) -> None:
    last = world.backups[-1]
    world.backups[-1] = replace(last, said=last.said | {NOBODY: "committed"})


def turned_round_after_the_backup(world: World) -> None:
    last = world.backups[-1]
    id = min(id for id, state in last.said.items() if state == "committed")
    world.backups[-1] = replace(last, said=last.said | {id: "rolled_back"})


def open_transaction(world: World) -> None:
    coordinator = world.coordinator()
    assert coordinator is not None
    coordinator.engine._backend._conn.execute("BEGIN")  # type: ignore[attr-defined]


def commands_that_wait_for_ever(world: World) -> None:
    coordinator = world.coordinator()
    assert coordinator is not None
    coordinator.engine._writer._calls_waiting += 100


def error_in_a_log(world: World) -> None:
    logging.getLogger("halfmsg.loops").error("leases failed; it is tried again")


def error_of_a_handler(world: World) -> None:
    logging.getLogger("aiohttp.server").error("Error handling request")


ENDS: Final[dict[str, Callable[[World], None]]] = {
    plant.__name__: plant
    for plant in (
        effects_of_a_clock_that_is_behind, decision_turned_round, decided_by_no_operator, flag_that_nobody_set, flag_that_is_missing,
        acked_and_dead, neither_acked_nor_dead, acked_and_not_stored, rejected_by_nobody, dead_before_its_time, dead_for_all,
        parked_and_not_old, effects_exchanged, acknowledged_and_not_in_the_backup, turned_round_after_the_backup, open_transaction,
        commands_that_wait_for_ever, error_in_a_log, error_of_a_handler,
    )
}  # fmt: skip
