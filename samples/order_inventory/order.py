"""The order service: takes invoices, and tells the inventory what to move.

One invoice is one local transaction: its row, its lines, and the fence of the half messages that carry the lines. The lines are known
before the transaction begins, so they go by `prepared`. What the inventory answers comes back as this service's consumer group.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final, LiteralString

from aiohttp import web

from halfmsg import Client, Consumer, Delivery, Fenced, Inbox, Message, Outbox

from . import db, service
from .hooks import Hooks

NAME: Final = "orders"
MOVE: Final = "stock.move"
RESERVED: Final = "stock.reserved"
LINES_A_HALF: Final = 1_000  # as many messages as one halfmsg transaction holds; a longer invoice fences several
ATTEMPTS_MAX: Final = 5

TABLES: Final = """
CREATE TABLE IF NOT EXISTS invoice (
    invoice TEXT PRIMARY KEY, at TEXT NOT NULL, customer TEXT NOT NULL, country TEXT NOT NULL,
    lines INTEGER NOT NULL, answered INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS order_line (
    id {id}, invoice TEXT NOT NULL, line INTEGER NOT NULL, code TEXT NOT NULL, description TEXT NOT NULL,
    quantity INTEGER NOT NULL, price TEXT NOT NULL, number BIGINT NOT NULL);
"""


class LocalFailure(Exception):
    """Asked for by a caller who wants to see a local transaction fail."""


@dataclass(frozen=True, slots=True)
class Order:
    invoice: str
    at: str
    customer: str
    country: str
    lines: Sequence[Mapping[str, Any]]
    fail: bool

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Order:
        """Raises KeyError, TypeError or ValueError where the body is no order."""
        lines = [
            {"code": str(x["code"]), "description": str(x["description"]), "quantity": int(x["quantity"]), "price": str(x["price"])}
            for x in body["lines"]
        ]
        if not lines:
            raise ValueError("an invoice has at least one line")
        return cls(str(body["invoice"]), str(body["at"]), str(body["customer"]), str(body["country"]), lines, bool(body.get("fail")))

    def messages(self) -> list[Message]:
        """One a line, in the lines' order; the key is the stock code as it stands, so each code is a queue of its own."""
        return [
            Message(MOVE, {"invoice": self.invoice, "line": place, "quantity": -line["quantity"]}, key=line["code"])
            for place, line in enumerate(self.lines, 1)
        ]


class Orders:
    tables: LiteralString = TABLES

    def __init__(self, chosen: service.Options) -> None:
        self.client = Client(chosen.coordinator)
        self.hooks = Hooks()
        self.database = db.Database(chosen.db)
        self.outbox = Outbox(self.client, NAME, chosen.db)
        self.consumer = Consumer(self.client, NAME, inbox=Inbox(chosen.db), lease=2.0)
        self.consumer.on(RESERVED)(self.reserved)

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/invoices", self.place), web.get("/invoices/{invoice}", self.show)]

    async def place(self, request: web.Request) -> web.Response:
        """201, or 200 where the invoice is here already: a caller who got no answer asks again."""
        try:
            order = Order.of(await request.json())
        except (KeyError, TypeError, ValueError) as error:
            raise web.HTTPBadRequest(text=f"not an order: {error!r}") from error
        halves: list[str] = []
        in_time = True
        for _ in range(ATTEMPTS_MAX):
            if await self._known(order.invoice):
                return web.json_response({"invoice": order.invoice}, status=200)
            try:
                await self._write(order, halves, prepare=in_time)
            except Fenced:  # slower than its first check-back; what stands beside our own rows no check-back can overtake
                in_time = False
                continue
            except (db.Again, db.Duplicate):  # a deadlock; the same invoice beside this one
                continue
            except LocalFailure as error:
                return web.json_response({"invoice": order.invoice, "error": str(error), "transactions": halves}, status=422)
            return web.json_response({"invoice": order.invoice, "transactions": halves}, status=201)
        raise web.HTTPServiceUnavailable(text=f"{ATTEMPTS_MAX} attempts failed; try again")

    async def _write(self, order: Order, halves: list[str], *, prepare: bool) -> None:
        halves.clear()
        chunks = list(_chunks(order.messages()))
        async with AsyncExitStack() as blocks:
            prepared = [await blocks.enter_async_context(self.outbox.prepared(*some)) for some in chunks if prepare]
            halves += [half.id for half in prepared]
            async with self.database.transaction() as conn:
                await db.execute(
                    conn, "INSERT INTO invoice (invoice, at, customer, country, lines) VALUES (?, ?, ?, ?, ?)",
                    (order.invoice, order.at, order.customer, order.country, len(order.lines)),
                )  # fmt: skip
                told = [await half.fence(conn) for half in prepared] or [await self.outbox.publish_many(conn, some) for some in chunks]
                receipts = [receipt for some in told for receipt in some]
                # after the fence, whose numbers lock the stock codes: so the ids of a code's lines rise in the order of commits
                await db.execute_many(
                    conn, "INSERT INTO order_line (invoice, line, code, description, quantity, price, number) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    [
                        (order.invoice, place, line["code"], line["description"], line["quantity"], line["price"], receipt.sequence)
                        for place, (line, receipt) in enumerate(zip(order.lines, receipts, strict=True), 1)
                    ],
                )  # fmt: skip
                if order.fail:
                    raise LocalFailure("the local transaction failed, as asked")
            self.hooks.reach("after_commit")

    async def reserved(self, msg: Delivery, conn: db.Connection) -> None:
        """The inventory has moved a line: one more is answered. The inbox makes sure that it counts once."""
        await db.execute(conn, "UPDATE invoice SET answered = answered + 1 WHERE invoice = ?", (msg.json()["invoice"],))

    async def show(self, request: web.Request) -> web.Response:
        rows = await self.database.rows("SELECT lines, answered FROM invoice WHERE invoice = ?", (request.match_info["invoice"],))
        if not rows:
            raise web.HTTPNotFound
        return web.json_response({"lines": rows[0][0], "answered": rows[0][1], "complete": rows[0][0] == rows[0][1]})

    async def status(self) -> Mapping[str, Any]:
        rows = await self.database.rows(
            "SELECT count(*), coalesce(sum(lines), 0), coalesce(sum(answered), 0),"
            " coalesce(sum(CASE WHEN lines = answered THEN 1 ELSE 0 END), 0) FROM invoice"
        )
        return dict(zip(("invoices", "lines", "answered", "complete"), map(int, rows[0]), strict=True))

    async def _known(self, invoice: str) -> bool:
        return bool(await self.database.rows("SELECT 1 FROM invoice WHERE invoice = ?", (invoice,)))


def _chunks(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    for start in range(0, len(messages), LINES_A_HALF):
        yield messages[start : start + LINES_A_HALF]


def main(argv: Sequence[str] | None = None) -> None:
    chosen = service.options(argv, port=7611, file="orders.db")
    service.run(Orders(chosen), chosen)


if __name__ == "__main__":
    main(sys.argv[1:])
