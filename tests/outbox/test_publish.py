"""What `publish`, `publish_many` and `half.fence` do inside the service's own transaction, on all four kinds of connection (R2)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg.rows import dict_row

from halfmsg import Client, Message, NotInTransaction, Outbox, Receipt, UsageError
from halfmsg.outbox import admin, fence
from halfmsg.txclient import transaction_digest

from .sides import NOWHERE, Side, closing, plain, settled, sqlite_side

Way = Callable[[Outbox, Any], Awaitable[Any]]


async def by_publish(outbox: Outbox, conn: Any) -> Any:
    return await settled(outbox.publish(conn, "s", 1, key="k"))


async def by_publish_many(outbox: Outbox, conn: Any) -> Any:
    return await settled(outbox.publish_many(conn, [plain()]))


async def by_fence(outbox: Outbox, conn: Any) -> Any:
    return await settled(outbox.prepared(plain()).fence(conn))


WAYS = pytest.mark.parametrize("way", [by_publish, by_publish_many, by_fence])


@WAYS
async def test_r8_publish_is_refused_outside_a_transaction(side: Side, way: Way) -> None:
    """On a connection that commits each statement there is no fate to share, so the call raises and writes nothing."""
    conn = await side.connect(autocommit=True)
    async with closing(side.outbox()) as outbox:
        with pytest.raises(NotInTransaction) as caught:
            await way(outbox, conn)
    assert caught.value.code == "not_in_transaction"
    assert side.counts() == (0, 0, 0)


async def test_r8_publish_first_is_refused_where_the_driver_begins_late(tmp_path: Path) -> None:
    """sqlite3 opens a transaction at its first write only: a publish as first statement is refused, and the text has the remedy."""
    side = sqlite_side(tmp_path, "sqlite3")
    conn = await side.connect()
    with pytest.raises(NotInTransaction, match="BEGIN IMMEDIATE"):
        side.outbox().publish(conn, "s", 1, key="k")
    await side.close()


async def test_publish_begins_where_psycopg_would_begin(side: Side) -> None:
    """psycopg without autocommit begins at whatever statement is first, also if it is ours."""
    if side.dialect != "postgresql":
        pytest.skip("SQLite's drivers begin at the first write")
    conn = await side.connect()
    await by_publish(side.outbox(), conn)
    await side.rollback(conn)
    assert side.counts() == (0, 0, 0)


@WAYS
async def test_p1_nothing_stays_after_rollback(side: Side, way: Way) -> None:
    """Business row, message row and fence row fall together: 0/0/0."""
    conn = await side.connect()
    await side.begin(conn)
    await side.business(conn)
    await way(side.outbox(), conn)
    await side.rollback(conn)
    assert side.counts() == (0, 0, 0)


@WAYS
async def test_p2_all_of_it_stays_after_commit(side: Side, way: Way) -> None:
    """Business row, message row and fence row commit together: 1/1/1, and never by the library."""
    conn = await side.connect()
    await side.begin(conn)
    await side.business(conn)
    await way(side.outbox(), conn)
    assert side.counts() == (0, 0, 0)
    await side.commit(conn)
    assert side.counts() == (1, 1, 1)


async def test_r9_fence_holds_the_digest_of_its_messages(side: Side) -> None:
    """The digest in the fence row is txclient's transaction_digest over the messages in their order, whatever their keys."""
    messages = [plain("z", {"a": "ü"}), plain("a"), Message("u", b"\x00\xff", tag="t", attributes={"x": "1"})]
    conn = await side.connect()
    await side.begin(conn)
    receipts = await settled(side.outbox().publish_many(conn, messages))
    await side.commit(conn)
    [(digest, unsent)] = side.read("SELECT digest, unsent FROM halfmsg_tx")
    assert (bytes(digest), unsent) == (transaction_digest([each.digest() for each in messages]), 1)
    assert [(each.key, each.sequence) for each in receipts] == [("z", 1), ("a", 1), (None, None)]
    assert len({each.transaction_id for each in receipts}) == 1
    assert [each.message_id for each in receipts] == [f"{receipts[0].transaction_id}-{index}" for index in range(3)]


async def test_p8_rows_hold_what_was_published(side: Side) -> None:
    """Body, content type, tag and attributes come back as they went in, for the relay to send."""
    message = Message("u", b"\x00\xff", tag="t", attributes={"x": "ü"}, content_type="image/png")
    conn = await side.connect()
    await side.begin(conn)
    await settled(side.outbox().publish_many(conn, [message]))
    await side.commit(conn)
    async with closing(side.outbox()) as outbox:
        [row] = await outbox._home.run(fence.read_unsent(outbox._home.tables, 10, 10**6))
    [wire] = row.messages()
    assert wire == {"topic": "u", "index": 0, "content_type": "image/png", "data": b"\x00\xff", "tag": "t", "attributes": {"x": "ü"}}


async def test_cursor_may_be_handed_in(side: Side) -> None:
    """A cursor stands for its connection."""
    conn = await side.connect()
    await side.begin(conn)
    cursor = await settled(conn.cursor())
    receipt = await settled(side.outbox().publish(cursor, "s", 1, key="k"))
    assert isinstance(receipt, Receipt)
    await settled(cursor.close())
    await side.commit(conn)
    assert side.counts() == (0, 1, 1)


async def test_transaction_of_psycopg_may_be_handed_in(side: Side) -> None:
    """`with conn.transaction() as tx` gives an object that knows its connection; what knows none is refused by name."""
    if side.dialect == "sqlite":
        pytest.skip("SQLite's drivers have no such object")
    conn = await side.connect(autocommit=True)
    if side.is_async:
        async with conn.transaction() as tx:
            assert (await by_publish(side.outbox(), tx)).sequence == 1
    else:
        with conn.transaction() as tx:
            assert (await by_publish(side.outbox(), tx)).sequence == 1
    assert side.counts() == (0, 1, 1)
    with pytest.raises(UsageError) as caught:
        side.outbox().publish(conn.info, "u", 1)
    assert caught.value.code == "unknown_database"


async def test_factories_of_the_caller_do_not_matter(side: Side) -> None:
    """Row factory, text factory and cursor class of the caller's connection shape his rows, not ours."""
    conn = await side.connect()
    if side.dialect == "sqlite":
        conn.row_factory, conn.text_factory = (lambda cursor, row: {"row": row}), bytes
    else:
        conn.row_factory = dict_row
        conn.cursor_factory = psycopg.AsyncRawCursor if side.is_async else psycopg.RawCursor
    await side.begin(conn)
    assert (await by_publish(side.outbox(), conn)).sequence == 1
    assert (await by_publish(side.outbox(), conn)).sequence == 2
    await side.commit(conn)
    assert side.counts() == (0, 2, 2)


async def test_publish_gives_the_colour_of_what_was_handed_in(side: Side) -> None:
    """A sync connection gives a Receipt at once, an async one something to await."""
    conn = await side.connect()
    await side.begin(conn)
    result: Any = side.outbox().publish(conn, "u", 1)
    assert isinstance(result, Receipt) is not side.is_async
    await settled(result)
    await side.rollback(conn)


async def test_other_dialect_is_another_database(side: Side, tmp_path: Path) -> None:
    """A connection to a kind of database that the Outbox does not have is refused before anything is written."""
    other = f"sqlite:///{tmp_path}/x.db" if side.dialect == "postgresql" else "postgresql://127.0.0.1/test"
    conn = await side.connect()
    await side.begin(conn)
    with pytest.raises(UsageError) as caught:
        await settled(Outbox(Client(NOWHERE), "orders", other).publish(conn, "u", 1))
    assert caught.value.code == "other_database"
    await side.rollback(conn)


async def test_r7_other_file_is_another_database(side: Side, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """An outbox that knows its source refuses a connection to a database of the same kind with another source, and ends its transaction."""
    from .conftest import make_side

    theirs = make_side(request, tmp_path, side.kind)
    async with closing(theirs.outbox()) as outbox:
        await outbox._load_source()
        conn = await side.connect()
        await side.begin(conn)
        await side.business(conn)
        with pytest.raises(UsageError) as caught:
            await by_publish(outbox, conn)
        await side.commit(conn)
    assert caught.value.code == "other_database"
    assert side.counts() == (0, 0, 0)


async def test_schema_missing_names_the_command(side: Side) -> None:
    """On a server database the tables are never made on the way: the error's text is the command that makes them."""
    if side.dialect == "sqlite":
        pytest.skip("on SQLite they are made on first use of the file by the library")
    conn = await side.connect()
    await side.begin(conn)
    outbox = side.outbox(tables="other_")
    with pytest.raises(UsageError, match="halfmsg outbox install") as caught:
        await by_publish(outbox, conn)
    assert caught.value.code == "schema_missing"
    await side.rollback(conn)


async def test_unknown_connection_is_refused_by_name() -> None:
    """What is no connection is named in the error."""
    with pytest.raises(UsageError, match=r"builtins\.object") as caught:
        Outbox(Client(NOWHERE), "orders", "sqlite:///x.db").publish(object(), "u", 1)
    assert caught.value.code == "unknown_database"


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([], "too_large"),
        ([Message("u", 1)] * 1_001, "too_large"),
        ([Message("u", b"x" * 1024 * 1024)] * 5, "too_large"),
        ([Message("u", 1, delay=5)], "not_supported"),
    ],
)
async def test_r23_what_would_be_refused_for_ever_raises_before_the_commit(messages: list[Message], code: str, file: Side) -> None:
    """Limits and what is not built yet raise inside publish, and cost the caller's transaction nothing."""
    conn = await file.connect()
    await file.begin(conn)
    await file.business(conn)
    with pytest.raises(UsageError) as caught:
        await settled(file.outbox().publish_many(conn, messages))
    await file.commit(conn)
    assert (caught.value.code, file.counts()) == (code, (1, 0, 0))


async def test_no_schema_row_is_decoded_by_chance(file: Side) -> None:
    """`halfmsg_out.meta` is the digest, content type, tag and attributes, in this order: what a later version must still read."""
    conn = await file.connect()
    await file.begin(conn)
    message = Message("u", 1, tag="t")
    await settled(file.outbox().publish_many(conn, [message]))
    await file.commit(conn)
    [(meta,)] = file.read("SELECT meta FROM halfmsg_out")
    assert msgspec.msgpack.decode(meta) == [message.digest(), "application/json", "t", None]
    assert admin.waiting(file.url)[0].topic == "u"
