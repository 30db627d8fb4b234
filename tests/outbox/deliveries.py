"""Deliveries as a consumer gets them, and handlers for them in a side's colour."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from halfmsg import Delivery, Inbox

from .sides import Side, settled


def unordered(id: str | None = None, **more: Any) -> Delivery:
    """A delivery of an unordered topic."""
    fields: dict[str, Any] = {"topic": "u", "lane": 0, "offset": 0, "time": datetime.now(UTC), "group": "g"}
    tx = id or str(uuid4())
    return Delivery(id=f"{tx}-0", transaction_id=tx, **fields | more)


def ordered(sequence: int, **more: Any) -> Delivery:
    """A delivery of a sequence topic: key k of one source."""
    return unordered(topic="s", key="k", sequence=sequence, source="S", **more)


@asynccontextmanager
async def inbox_of(side: Side, **options: Any) -> AsyncIterator[Inbox]:
    inbox = Inbox(side.url, **options)
    try:
        yield inbox
    finally:
        await inbox.aclose()


async def take(side: Side, inbox: Inbox, delivery: Delivery, *, commits: bool = True, **options: Any) -> bool:
    """One handler's transaction on a connection of its own: claim first, effect if it is ours."""
    conn = await side.connect()
    await side.begin(conn)
    mine: bool = await settled(inbox.claim(conn, delivery, **options))
    if mine:
        await side.business(conn, str(uuid4()))
    await (side.commit(conn) if commits else side.rollback(conn))
    return mine


def last(side: Side) -> int:
    rows = side.read("SELECT last FROM halfmsg_key")
    return rows[0][0] if rows else 0


def handler_of(side: Side, work: Any) -> Any:
    """A handler in the side's colour."""

    async def colourful(delivery: Delivery, conn: Any) -> None:
        await settled(work(delivery, conn))

    def plain(delivery: Delivery, conn: Any) -> None:
        work(delivery, conn)

    return colourful if side.is_async else plain


def effect(side: Side) -> Any:
    return handler_of(side, lambda delivery, conn: side_insert(side, conn, delivery.id))


def side_insert(side: Side, conn: Any, id: str) -> Any:
    return conn.execute("INSERT INTO business (id) VALUES ({})".format("?" if side.dialect == "sqlite" else "%s"), (id,))
