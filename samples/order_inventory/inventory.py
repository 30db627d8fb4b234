"""The inventory service: moves stock once for each line of an invoice, in the order in which the order service committed them.

The effect, the inbox's row and the answer to the order service are one local commit. The answer is known only inside, so it goes by
`publish`: rows beside the effect, handed over after the commit.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, LiteralString

from aiohttp import web

from halfmsg import Client, Consumer, Delivery, Inbox, Outbox

from . import db, service
from .hooks import Hooks

NAME: Final = "inventory"
MOVE: Final = "stock.move"
RESERVED: Final = "stock.reserved"

# `move` has no unique key on (invoice, line) on purpose: a move applied twice must show in the books, not be caught by the table
TABLES: Final = """
CREATE TABLE IF NOT EXISTS stock (code TEXT PRIMARY KEY, quantity BIGINT NOT NULL, moves BIGINT NOT NULL);
CREATE TABLE IF NOT EXISTS move (
    id {id}, code TEXT NOT NULL, number BIGINT NOT NULL, invoice TEXT NOT NULL, line INTEGER NOT NULL, quantity INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS move_invoice ON move (invoice, line);
"""


class Inventory:
    tables: LiteralString = TABLES

    def __init__(self, chosen: service.Options) -> None:
        self.client = Client(chosen.coordinator)
        self.hooks = Hooks()
        self.database = db.Database(chosen.db)
        self.outbox = Outbox(self.client, NAME, chosen.db)
        self.consumer = Consumer(self.client, NAME, inbox=Inbox(chosen.db), lease=2.0)
        self.consumer.on(MOVE)(self.move)

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/stock/{code}", self.show), web.get("/moves/{invoice}", self.moves)]

    async def move(self, msg: Delivery, conn: db.Connection) -> None:
        """Runs inside a transaction that also holds the inbox's row. Stock may go below zero: the shop sold it, so it is owed."""
        line = msg.json()
        await db.execute(
            conn, "INSERT INTO move (code, number, invoice, line, quantity) VALUES (?, ?, ?, ?, ?)",
            (msg.key, msg.sequence, line["invoice"], line["line"], line["quantity"]),
        )  # fmt: skip
        await db.execute(
            conn,
            "INSERT INTO stock (code, quantity, moves) VALUES (?, ?, 1)"
            " ON CONFLICT (code) DO UPDATE SET quantity = stock.quantity + excluded.quantity, moves = stock.moves + 1",
            (msg.key, line["quantity"]),
        )
        self.hooks.reach("in_effect")
        await self.outbox.publish(conn, RESERVED, {"invoice": line["invoice"], "line": line["line"]})

    async def show(self, request: web.Request) -> web.Response:
        rows = await self.database.rows("SELECT quantity, moves FROM stock WHERE code = ?", (request.match_info["code"],))
        if not rows:
            raise web.HTTPNotFound
        return web.json_response({"quantity": rows[0][0], "moves": rows[0][1]})

    async def moves(self, request: web.Request) -> web.Response:
        """How many moves an invoice has caused, and how many of its lines: more of the first would be a double."""
        rows = await self.database.rows("SELECT count(*), count(DISTINCT line) FROM move WHERE invoice = ?", (request.match_info["invoice"],))
        return web.json_response({"moves": rows[0][0], "lines": rows[0][1]})

    async def status(self) -> Mapping[str, Any]:
        rows = await self.database.rows("SELECT coalesce(sum(moves), 0) FROM stock")
        return {"moves": int(rows[0][0])}


def main(argv: Sequence[str] | None = None) -> None:
    chosen = service.options(argv, port=7612, file="inventory.db")
    service.run(Inventory(chosen), chosen)


if __name__ == "__main__":
    main(sys.argv[1:])
