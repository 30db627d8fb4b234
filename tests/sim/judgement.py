"""How a world ends: what must come to rest, and what is judged then, from the databases and the store's file."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import UUID

from halfmsg.coordinator import backup, doctor
from halfmsg.coordinator.errors import StartError
from halfmsg.coordinator.messages import Reason
from halfmsg.coordinator.store.sqlite import file
from tests.kill import collect, load
from tests.support import checker, history

from .ledger import spot_of

if TYPE_CHECKING:
    from .operators import Backup
    from .world import World

CALLS_AT_REST: Final = 5  # the loops' own, on their way
STATES: Final = {0: "prepared", 1: "committed", 2: "rolled_back", 3: "parked"}
BY_OPERATOR: Final = 3
_OPEN: Final = {
    "transactions are undecided": "SELECT count(*) FROM tx WHERE state = 0",
    "runs are in flight": "SELECT count(*) FROM flight",
    "messages wait for another try": "SELECT count(*) FROM retry",
    "messages are held": "SELECT count(*) FROM held",
    "lanes have more": "SELECT count(*) FROM place p JOIN grp g ON g.id = p.grp JOIN lane l ON l.topic = g.topic AND l.lane = p.lane"
    " WHERE p.next_off < l.next_off",
}


def _reader(store: Path) -> sqlite3.Connection:
    """One that does not tidy up: where the coordinator is down it would write into its file, and the next start call that damage."""
    return sqlite3.connect(file.read_only(store), uri=True, isolation_level=None)


def left(world: World) -> list[str]:
    left = []
    if rows := collect.unsent(world.folder):
        left.append(f"{rows} row sets are not handed over")
    with closing(_reader(world.store)) as conn:
        for what, sql in _OPEN.items():
            count = conn.execute(sql).fetchone()[0]
            if count:
                left.append(f"{count} {what}")
    return left


async def judge(world: World) -> None:
    for name in list(world.nodes):
        if name != "coordinator":
            world.crash(name, told=False)
    await _bounded(world)
    world.crash("coordinator", told=False)
    with closing(_reader(world.store)) as conn:
        _stands(world, conn)
        for finding in doctor.run(conn, integrity=True):
            if finding.ok is not True:
                world.book.add("finding", name=finding.name, rows=[str(row) for row in finding.rows])
        if world.backups:
            _restored(world, world.backups[-1], conn)
    for error in collect.told(world.folder, world.book):
        world.wrong(f"odd: {error}")
    world.book.copy(history.read(world.folder / "till.events"))
    collect.truth(world.folder, world.book)
    collect.effects(world.folder, world.book)
    verdict = checker.check(history.read(world.folder / "history.jsonl"))
    for kind, count in verdict.counts().items():
        if count:
            world.ledger.wrong += [f"{kind}: {line}" for line in getattr(verdict, kind)[:5]]


def _stands(world: World, conn: sqlite3.Connection) -> None:
    """How each transaction and dead letter stands at the end."""
    forced: set[str] = set()
    for id, state, by in conn.execute("SELECT id, state, decided_by FROM tx"):
        id, state = str(UUID(bytes=id)), STATES[state]
        world.book.add("decided" if state in checker.DECIDED else "undecided", transaction=id, state=state, by="end", final=True)
        if by == BY_OPERATOR:
            forced.add(id)
            world.book.add("forced", transaction=id, state=state)
    world.ledger.wrong += [f"{id} was decided by an operator, and none did" for id in sorted(forced - world.forced)]
    world.ledger.wrong += [f"{id} came as forced, and was not" for id in sorted(world.flagged - forced)]
    world.ledger.wrong += [f"{id} was forced, and came without its flag" for id in sorted(world.unflagged & forced)]
    for (id,) in conn.execute("SELECT DISTINCT tx_id FROM conflict"):
        if (id := str(UUID(bytes=id))) in forced:
            world.book.add("conflict", transaction=id)
            world.mark("forced_and_contradicted")
    _settled(world, conn)
    dead = """SELECT g.name, t.name, d.m, d.reason, x.id, d.grp, d.lane, d.off FROM dead d JOIN topic t ON t.id = d.topic
        JOIN tx x ON x.n = d.m / 1024 LEFT JOIN grp g ON g.id = d.grp"""
    for group, topic, m, reason, id, grp, lane, off in conn.execute(dead):
        world.mark("dead_letter")
        world.book.add("dead", group=group, topic=topic, message=f"{UUID(bytes=id)}-{m % 1024}", reason=reason)
        spot = (str(grp), str(lane), str(off))
        if world.ledger.is_done(spot):
            world.wrong(f"both: {spot} of {group} was acked and is a dead letter")
        if world.ledger.is_lost_in_its_last_hand(spot):
            world.mark("zombie_after_dead_letter")


def _settled(world: World, conn: sqlite3.Connection) -> None:
    """Each message of each group has been acked or is a dead letter, and for a reason that somebody gave (P2, P3, I9)."""
    ledger = world.ledger
    dead = {(str(grp), str(lane), str(off)): reason for grp, lane, off, reason in conn.execute("SELECT grp, lane, off, reason FROM dead")}
    for spot, reason in dead.items():
        match reason:
            case _ if spot[0] == "None":
                world.wrong(f"dead letter of a whole topic, reason {reason}: {spot}")
            case Reason.REJECTED if spot in ledger.rejected:
                pass
            case Reason.ATTEMPTS if ledger.hands[spot] >= load.MAX_ATTEMPTS:
                pass
            case _:
                world.wrong(f"dead letter of reason {reason}, {ledger.hands[spot]} times handed out and not so ended by anybody: {spot}")
    for row in conn.execute("SELECT q.id, g.lane, g.off FROM log g JOIN grp q ON q.topic = g.topic"):
        spot = tuple(map(str, row))
        if not ledger.is_done(spot) and spot not in dead:
            world.wrong(f"lost: {spot} was not acked and is no dead letter")
    for what, done in (("ack", ledger.is_done), ("reject", ledger.rejected.__contains__)):
        gone = [token for token in sorted(world.answered[what]) if not done(spot_of(token)[0])]
        ledger.wrong += [f"{what} of {token} was answered, and is not stored" for token in gone]
    if ledger.parked and not world.parked_by_age:
        world.wrong(f"parked, and nothing was old: {ledger.parked[0]}")


async def _bounded(world: World) -> None:
    """I12: nothing is left behind at rest."""
    coordinator = world.coordinator()
    engine = getattr(coordinator, "engine", None)  # none: it never started
    if engine is None:
        world.wrong("no coordinator at the end")
        return
    if engine._backend._conn.in_transaction:
        world.wrong("a transaction is open at rest")
        return  # the next one breaks the store
    await asyncio.sleep(1.0)
    queued = [job for job in engine._writer._queue]
    if engine._writer._calls_waiting > len(queued) + CALLS_AT_REST:
        world.wrong(f"{engine._writer._calls_waiting} commands are counted as waiting at rest, {len(queued)} are")


def _restored(world: World, kept: Backup, now: sqlite3.Connection) -> None:
    """A store of the last backup: it has what was acknowledged before, decided as it was told and as it is to the end, and is sound (W15)."""
    path = world.folder / "restored.db"
    try:
        made = backup.restore(kept.path, path, replace=False, accept_loss=False, now_ms=int(time.time() * 1000), progress=lambda *_: None)
    except StartError as error:
        world.wrong(f"restore: {error}")
        return
    world.ledger.wrong += [f"restored: {each.name}: {each.rows[:2]}" for each in made.findings]
    with closing(sqlite3.connect(path)) as conn:
        found, end = _states(conn), _states(now)
        world.ledger.wrong += [f"restored: {each.name}: {each.rows[:2]}" for each in doctor.run(conn, integrity=True) if each.ok is not True]
    for id, said in kept.said.items():
        if id not in found:
            world.wrong(f"restored: {id} was acknowledged before the backup, and is not in it")
        elif said in checker.DECIDED and found[id] != said:
            world.wrong(f"restored: {id} was acknowledged as {said} before the backup, and is {found[id]} in it")
    for id, state in found.items():
        if state in checker.DECIDED and end.get(id) != state:
            world.wrong(f"restored: {id} is {state} in the backup, and {end.get(id)} at the end")


def _states(conn: sqlite3.Connection) -> dict[str, str]:
    return {str(UUID(bytes=id)): STATES[state] for id, state in conn.execute("SELECT id, state FROM tx")}
