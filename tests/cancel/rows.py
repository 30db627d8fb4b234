"""One row a route: what must stand before it, and what it is called with. A route without a row fails `test_routes.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from halfmsg.coordinator.ids import format_id, new_id
from tests.clocks.life import LEASE_S, PRODUCER, Life

LONGEST_S = LEASE_S + 5
"""What an extend asks for, so that it does make a lease longer; none here is longer than that."""


class Asked(NamedTuple):
    path: Mapping[str, str] = MappingProxyType({})
    body: Any = None
    query: str = ""


NOTHING = Asked()


Make = Callable[["World"], Awaitable[Asked]]


class World:
    """A life, with things made anew for each call; `owed` are the numbers that were sent and that no call ended."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.made = 0
        self.owed: set[int] = set()

    def fresh(self) -> str:
        self.made += 1
        return f"x{self.made}"

    def id(self) -> str:
        return format_id(new_id(self.life.clock.now_ms()))

    async def sent(self) -> int:
        """One released message of the topic without order."""
        self.made += 1
        await self.life.send("u", self.made)
        self.owed.add(self.made)
        return self.made

    async def given(self) -> dict[str, Any]:
        """A delivery in a hand."""
        number = await self.sent()
        while True:
            for each in await self.life.fetch("u"):
                if each["data"] == number:
                    return each
                assert await self.life.settle("ack", "u", each) == [""]
                self.owed.discard(each["data"])

    async def half(self) -> str:
        return await self.life.prepare()

    async def dead(self) -> int:
        given = await self.given()
        await self.life.settle("reject", "u", given)
        self.owed.discard(given["data"])
        return int((await self.life.must("GET", "/v1/groups/u/dead-letters"))["items"][-1]["id"])

    async def empty_topic(self) -> str:
        name = self.fresh()
        await self.life.must("PUT", f"/v1/topics/{name}", {"kind": "unordered"})
        return name

    async def idle_group(self) -> str:
        name = self.fresh()
        await self.life.must("PUT", f"/v1/groups/{name}", {"topics": [{"topic": "u"}]})
        return name


def fixed(asked: Asked = NOTHING) -> Make:
    async def make(world: World) -> Asked:
        return asked

    return make


def of_half(body: Callable[[World, str], Any] = lambda world, id: None) -> Make:
    async def make(world: World) -> Asked:
        id = await world.half()
        return Asked({"id": id}, body(world, id))

    return make


def of_given(more: dict[str, Any], *, ends: bool, by_s: float | None = None) -> Make:
    """Ended or not: that is what a cancelled ack or reject leaves open. After a nack or an extend the message is owed as before."""

    async def make(world: World) -> Asked:
        given = await world.given()
        if ends:
            world.owed.discard(given["data"])
        deliveries = {"deliveries": [{"token": given["token"]} | more]}
        return Asked({"group": "u"}, deliveries if by_s is None else deliveries | {"by_s": by_s})

    return make


async def send(world: World) -> Asked:
    world.made += 1
    return Asked({"topic": "a"}, {"data": world.made, "key": "k", "id": world.id()})


async def put_transaction(world: World) -> Asked:
    return Asked({}, {"id": world.id(), "producer": PRODUCER, "messages": [{"topic": "u", "data": 0}]})


async def batch(world: World) -> Asked:
    op = {"op": "prepare", "id": world.id(), "producer": PRODUCER, "messages": [{"topic": "u", "data": 0}]}
    return Asked({}, {"ops": [op, {"op": "rollback", "id": op["id"], "producer": PRODUCER}]})


async def fetch(world: World) -> Asked:
    await world.sent()
    return Asked({"group": "u"}, {"max": 10, "wait_s": 0})


async def long_poll(world: World) -> Asked:
    """Nothing comes; the clock passes its end while it waits."""
    await world.life.drained_all("u")
    world.owed.clear()
    asyncio.get_running_loop().call_later(0.02, world.life.clock.advance, 0.2)
    return Asked({"group": "u"}, {"max": 10, "wait_s": 0.04})


async def wait_for_decision(world: World) -> Asked:
    """None comes; the clock passes its end while it waits."""
    id = await world.half()
    asyncio.get_running_loop().call_later(0.02, world.life.clock.advance, 0.2)
    return Asked({"id": id}, query="wait_s=0.04")


async def delete_topic(world: World) -> Asked:
    return Asked({"topic": await world.empty_topic()})


async def delete_group(world: World) -> Asked:
    return Asked({"group": await world.idle_group()})


async def delete_producer(world: World) -> Asked:
    name = world.fresh()
    await world.life.must("PUT", f"/v1/producers/{name}", {})
    return Asked({"producer": name})


async def put_topic(world: World) -> Asked:
    return Asked({"topic": world.fresh()}, {"kind": "unordered"})


async def put_group(world: World) -> Asked:
    return Asked({"group": world.fresh()}, {"topics": [{"topic": "u"}]})


async def put_producer(world: World) -> Asked:
    return Asked({"producer": world.fresh()}, {})


async def check_producer(world: World) -> Asked:
    return Asked({"producer": PRODUCER}, {"ids": [await world.half()]})


async def get_message(world: World) -> Asked:
    given = await world.given()
    return Asked({"id": given["id"]})


async def dead_letter(world: World) -> Asked:
    return Asked({"group": "u", "id": str(await world.dead())})


ROWS: dict[tuple[str, str], list[Make]] = {
    ("POST", "/v1/transactions"): [put_transaction],
    ("GET", "/v1/transactions"): [fixed()],
    ("GET", "/v1/transactions/{id}"): [of_half(), wait_for_decision],
    ("POST", "/v1/transactions/{id}/commit"): [of_half(lambda world, id: {"digest": world.life.digests[id], "producer": PRODUCER})],
    ("POST", "/v1/transactions/{id}/rollback"): [of_half(lambda world, id: {"producer": PRODUCER})],
    ("POST", "/v1/transactions/{id}/check"): [of_half()],
    ("POST", "/v1/transactions/{id}/park"): [of_half(lambda world, id: {"reason": "test"})],
    ("POST", "/v1/batch"): [batch],
    ("GET", "/v1/topics"): [fixed()],
    ("GET", "/v1/topics/{topic}"): [fixed(Asked({"topic": "u"}))],
    ("PUT", "/v1/topics/{topic}"): [put_topic],
    ("DELETE", "/v1/topics/{topic}"): [delete_topic],
    ("POST", "/v1/topics/{topic}/messages"): [send],
    ("GET", "/v1/topics/{topic}/messages"): [fixed(Asked({"topic": "u"}))],
    ("GET", "/v1/topics/{topic}/dead-letters"): [fixed(Asked({"topic": "u"}))],
    ("GET", "/v1/topics/{topic}/keys/{key}"): [fixed(Asked({"topic": "a", "key": "k"}))],
    ("POST", "/v1/topics/{topic}/keys/{key}/skip"): [fixed(Asked({"topic": "a", "key": "k"}))],
    ("GET", "/v1/keys"): [fixed(), fixed(Asked(query="group=a"))],
    ("GET", "/v1/messages/{id}"): [get_message],
    ("GET", "/v1/groups"): [fixed()],
    ("GET", "/v1/groups/{group}"): [fixed(Asked({"group": "u"}))],
    ("PUT", "/v1/groups/{group}"): [put_group],
    ("DELETE", "/v1/groups/{group}"): [delete_group],
    ("POST", "/v1/groups/{group}/fetch"): [fetch, long_poll],
    ("POST", "/v1/groups/{group}/ack"): [of_given({}, ends=True)],
    ("POST", "/v1/groups/{group}/nack"): [of_given({"reason": "no"}, ends=False)],
    ("POST", "/v1/groups/{group}/reject"): [of_given({"reason": "no"}, ends=True)],
    ("POST", "/v1/groups/{group}/extend"): [of_given({}, ends=False, by_s=LONGEST_S)],
    ("POST", "/v1/groups/{group}/pause"): [fixed(Asked({"group": "a"}))],
    ("POST", "/v1/groups/{group}/resume"): [fixed(Asked({"group": "a"}))],
    ("POST", "/v1/groups/{group}/seek"): [fixed(Asked({"group": "u"}))],
    ("GET", "/v1/groups/{group}/dead-letters"): [fixed(Asked({"group": "u"}))],
    ("GET", "/v1/groups/{group}/dead-letters/{id}"): [dead_letter],
    ("DELETE", "/v1/groups/{group}/dead-letters/{id}"): [dead_letter],
    ("POST", "/v1/groups/{group}/dead-letters/redrive"): [fixed(Asked({"group": "u"}))],
    ("GET", "/v1/tasks/{id}"): [fixed(Asked({"id": "1"}))],
    ("POST", "/v1/tasks/{id}/cancel"): [fixed(Asked({"id": "1"}))],
    ("GET", "/v1/producers"): [fixed()],
    ("GET", "/v1/producers/{producer}"): [fixed(Asked({"producer": PRODUCER}))],
    ("PUT", "/v1/producers/{producer}"): [put_producer],
    ("DELETE", "/v1/producers/{producer}"): [delete_producer],
    ("POST", "/v1/producers/{producer}/check"): [check_producer],
    ("POST", "/v1/producers/{producer}/rotate-secret"): [fixed(Asked({"producer": PRODUCER}))],
    ("GET", "/v1/sinks"): [fixed()],
    ("PUT", "/v1/sinks/{sink}"): [fixed(Asked({"sink": "s"}))],
    ("GET", "/v1/tokens"): [fixed()],
    ("POST", "/v1/tokens"): [fixed()],
    ("GET", "/v1/audit"): [fixed()],
    ("GET", "/console"): [fixed()],
    ("GET", "/v1/conflicts"): [fixed()],
    ("GET", "/v1/info"): [fixed()],
    ("GET", "/v1/doctor"): [fixed()],
}
NOT_BUILT = {
    ("POST", "/v1/topics/{topic}/keys/{key}/skip"),
    ("POST", "/v1/groups/{group}/seek"),
    ("DELETE", "/v1/groups/{group}/dead-letters/{id}"),
    ("POST", "/v1/groups/{group}/dead-letters/redrive"),
    ("GET", "/v1/tasks/{id}"),
    ("POST", "/v1/tasks/{id}/cancel"),
    ("POST", "/v1/producers/{producer}/rotate-secret"),
    ("GET", "/v1/sinks"),
    ("PUT", "/v1/sinks/{sink}"),
    ("GET", "/v1/tokens"),
    ("POST", "/v1/tokens"),
    ("GET", "/v1/audit"),
    ("GET", "/console"),
}
"""They answer 501. Who builds one gives its row what the call needs, and takes it out of here."""
