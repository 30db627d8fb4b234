"""Who looks after the system in a world: one looks at transactions and decides by hand, one pauses, asks and makes backups."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfmsg import Client
from halfmsg.coordinator import backup
from halfmsg.coordinator.errors import StartError
from halfmsg.txclient import ApiError, Busy, Conflict, HalfmsgError
from tests.kill import load
from tests.support.checker import DECIDED

if TYPE_CHECKING:
    from .world import World

URL = "http://127.0.0.1:7610"


async def operator(world: World, seed: int) -> None:
    """Looks now and then for what was just acknowledged: it is there, and a decision stays (I3, I11)."""
    chance, client, seen = random.Random(seed), Client(URL), dict[str, str]()
    while True:
        await asyncio.sleep(chance.uniform(0.1, 0.6))
        if not world.told:
            continue
        id = world.told[-1] if chance.random() < 0.5 else chance.choice(world.told)
        told = world.states[id]
        try:
            found = await client.transaction(id)
        except ApiError as error:
            if error.code == "transaction_not_found":
                world.wrong(f"operator: {id} was acknowledged and is not found")
            continue
        except HalfmsgError:
            continue
        state = found.state
        world.mark("operator_saw_it")
        world.ledger.wrong += [f"operator: {id} {line}" for line in went_back(told, seen.get(id), state)]
        seen[id] = state
        if chance.random() < 0.05 and state == "prepared":
            await _park(client, id, world)
        if chance.random() < 0.05 and state == "committed":
            await _contradict(client, id, found.producer, world)


def went_back(told: str, seen: str | None, state: str) -> list[str]:
    """A read that is behind what somebody was told before it was asked for, or behind an earlier read (I3, I11)."""
    return [
        f"was {how} as {before} and is {state}" for how, before in (("acknowledged", told), ("seen", seen)) if before in DECIDED and before != state
    ]


async def _contradict(client: Client, id: str, producer: str | None, world: World) -> None:
    """The opposite of a decision that stands, in its producer's own words: it is refused with that decision (P4)."""
    source = None if producer is None else _source(load.database(world.folder, producer))
    try:
        await client.op({"op": "rollback", "id": id, "producer": producer or "shop-a", "source": source, "reason": "by mistake"})
        world.wrong(f"{id} is committed, and a rollback of it was taken")
    except ApiError as error:
        if producer is not None and not isinstance(error, Busy):
            world.mark("contradicted")
            stands = error.transaction if isinstance(error, Conflict) else None
            if error.code != "decided_otherwise" or stands is None or stands.state != "committed":
                world.wrong(f"{id} is committed, and a rollback of it was refused with {error!r}, {stands}")
    except HalfmsgError:
        return


def _source(path: Path) -> str:
    """Which database its words come from, as it knows itself."""
    with closing(sqlite3.connect(path)) as conn:
        (source,) = conn.execute("SELECT v FROM halfmsg_meta WHERE k = 'source'").fetchone()
        return str(source.hex())


async def _park(client: Client, id: str, world: World) -> None:
    try:
        await _call(client, f"/v1/transactions/{id}/park", {"reason": "an operator's mistake"})
        world.mark("parked")
    except HalfmsgError:
        return


async def _decide(client: Client, world: World, chance: random.Random) -> None:
    """A decision by hand, right or wrong: taken of a parked one alone, and flagged (R4). One whose answer is lost may have been taken."""
    try:
        listed = await client._link().http.call("GET", "/v1/transactions", params={"state": "prepared"}, timeout_s=2.0)
        free = [item["id"] for item in listed["items"] if not any(message.get("key") for message in item["messages"])]
        if not free:
            return
        id = chance.choice(free)
        await _park(client, id, world)
        await asyncio.sleep(chance.uniform(0, 1.0))
    except HalfmsgError:
        return
    what = chance.choice(("commit", "rollback"))
    world.forced.add(id)
    try:
        await _call(client, f"/v1/transactions/{id}/{what}", {"force": True, "reason": "the shop said so on the phone"})
        world.mark(f"forced_{what}")
    except HalfmsgError:
        return


async def _call(client: Client, path: str, body: Any = None) -> None:
    await client._link().http.call("POST", path, body, timeout_s=2.0)


async def caretaker(world: World, seed: int) -> None:
    """Decides by hand, pauses groups, asks a producer at once, and makes backups, whatever state the coordinator is in."""
    chance, client = random.Random(seed), Client(URL)
    while True:
        await asyncio.sleep(chance.expovariate(0.8))
        if world.healed:
            for group in world.groups:  # a pause that was given up may have arrived after its end
                await _resume(client, group)
        match chance.choice((0, 1, 2, 3, 3, 3)):
            case 0 if not world.healed:
                await _pause(client, chance.choice(world.groups), chance)
                world.mark("paused")
            case 1 if world.told:
                with suppress(HalfmsgError):
                    await _call(client, f"/v1/transactions/{chance.choice(world.told)}/check")
            case 2 if not world.healed:
                make_backup(world)
            case 3 if not world.healed:  # what is left then has to come to rest by itself
                await _decide(client, world, chance)
            case _:
                continue


async def _pause(client: Client, group: str, chance: random.Random) -> None:
    with suppress(HalfmsgError):
        await _call(client, f"/v1/groups/{group}/pause")
        await asyncio.sleep(chance.uniform(0.2, 3.0))
    await _resume(client, group)


async def _resume(client: Client, group: str) -> None:
    """Until somebody says that it is: a group that stays paused never comes to rest."""
    while True:
        try:
            await _call(client, f"/v1/groups/{group}/resume")
            return
        except HalfmsgError:
            await asyncio.sleep(0.2)


@dataclass(frozen=True)
class Backup:
    """`said`: each transaction that was acknowledged before it was begun, and the state that was."""

    path: Path
    said: dict[str, str]


def make_backup(world: World) -> None:
    """Of the file as it stands, whether or not its coordinator runs."""
    path = world.folder / f"backup-{len(world.backups)}.db"
    said = {id: world.states.get(id, "") for id in world.told}
    try:
        made = backup.backup(world.store, path, now_ms=int(time.time() * 1000), version="sim", progress=lambda *_: None)
    except StartError as error:
        world.wrong(f"backup: {error}")
        return
    world.mark("backed_up")
    world.ledger.wrong += [f"backup: {each.name}: {each.rows[:2]}" for each in made.findings]
    world.backups.append(Backup(path, said))
