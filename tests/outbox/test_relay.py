"""The relay: rows handed over after the local commit, idempotently, by any number of relays (R2, R12, R23)."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from halfmsg import Client, Message, Outbox, UsageError, Verdict
from halfmsg.checkback import Question
from halfmsg.coordinator.app import Coordinator
from halfmsg.outbox import admin, home
from halfmsg.outbox.effects import Sql, SyncAdapter, one
from halfmsg.outbox.fence import Attempt
from halfmsg.outbox.home import Home
from halfmsg.outbox.relay import Relay, is_refusal, lane_of
from halfmsg.txclient.errors import api_error

from .sides import NOWHERE, Side, closing, plain, settled

Make = Callable[[Client], Awaitable[Relay]]


@pytest_asyncio.fixture
async def make(database: Side) -> AsyncIterator[Make]:
    """Relays without their loop: a test turns them by `tick()`."""
    homes: list[Home] = []

    async def one(client: Client) -> Relay:
        outbox = database.outbox()
        await outbox._load_source()
        homes.append(outbox._home)
        return Relay(client, "orders", outbox._home, outbox._source or b"")

    yield one
    for each in homes:
        await each.aclose()


@pytest_asyncio.fixture
async def relay(make: Make, client: Client) -> Relay:
    return await make(client)


async def publish(side: Side, *messages: Message) -> None:
    """One local transaction; each message is one halfmsg transaction."""
    conn = await side.connect()
    await side.begin(conn)
    for message in messages:
        await settled(side.outbox().publish_many(conn, [message]))
    await side.commit(conn)


async def bodies(client: Client, wanted: int) -> list[Any]:
    found: list[Any] = []
    async with asyncio.timeout(10):
        while len(found) < wanted:
            batch = await client.fetch("g", wait=1)
            found += [each.json() for each in batch]
            await client.ack(batch)
    return found + [each.json() for each in await client.fetch("g", wait=0)]


def unsent(side: Side) -> list[int | None]:
    return [row[0] for row in side.read("SELECT unsent FROM halfmsg_tx ORDER BY unsent")]


async def test_p2_rows_are_handed_over_in_order(database: Side, relay: Relay, client: Client) -> None:
    """What was committed is submitted with its numbers, delivered in order, and marked sent."""
    await publish(database, *(plain("k", n) for n in range(5)))
    assert (await relay.tick()).submitted == 5
    assert await bodies(client, 5) == [0, 1, 2, 3, 4]
    assert unsent(database) == [None] * 5
    assert (await relay.tick()).submitted == 0


async def test_r2_submit_again_doubles_nothing(database: Side, relay: Relay, client: Client) -> None:
    """A relay that died before it marked its rows: the next one submits them again, and nothing is delivered twice."""
    await publish(database, plain("k", 1), plain(None, 2))
    await relay.tick()
    database.read("UPDATE halfmsg_tx SET unsent = 1")
    assert (await relay.tick()).submitted == 2
    assert sorted(await bodies(client, 2)) == [1, 2]


async def test_r2_two_relays_share_the_lanes_and_may_repeat_each_other(database: Side, make: Make, client: Client) -> None:
    """The second relay takes no row of a lane that the first one owns; where both have a row, it is delivered once all the same."""
    first, second = await make(client), await make(client)
    await publish(database, *(plain(None, n) for n in range(20)))
    await first.tick()
    database.read("UPDATE halfmsg_tx SET unsent = 1")
    assert (await second.tick()).submitted == 0
    await first.release_lanes()
    assert (await second.tick()).submitted == 20
    database.read("UPDATE halfmsg_tx SET unsent = 1")
    database.read("UPDATE halfmsg_lane SET owner = NULL")
    first._owned = dict.fromkeys(range(64), 2**60)
    await asyncio.gather(first.tick(), second.tick())
    assert unsent(database) == [None] * 20
    assert sorted(await bodies(client, 20)) == list(range(20))


async def test_p2_relay_that_is_refused_keeps_no_lanes(database: Side, make: Make, client: Client) -> None:
    """An old process with a name or a token that is not taken any more: the sound relay beside it hands over with its next pass."""
    sound, sick = await make(client), await make(client)
    sick._producer = "ghost"
    await publish(database, *(plain(None, n) for n in range(20)))
    report = await sick.tick()
    assert (report.submitted, report.refused, report.waiting) == (0, 0, 20)
    assert (await sound.tick()).submitted == 20
    assert sorted(await bodies(client, 20)) == list(range(20))


async def test_r23_row_that_cannot_be_read_is_set_aside_and_listed(database: Side, relay: Relay, client: Client) -> None:
    """It is no message any more: the others go, the pass is none that failed, and `outbox ls` shows it."""
    await publish(database, plain(None, 1))
    database.read("UPDATE halfmsg_out SET meta = ?", b"\xc1")
    await publish(database, plain(None, 2))
    report = await relay.tick()
    assert (report.submitted, report.refused) == (1, 1)
    assert [(each.topic, each.refused) for each in admin.waiting(database.url)] == [("u", "unreadable")]
    assert await bodies(client, 1) == [2]


async def test_r5_relay_commits_a_prepared_one_with_its_digest_and_numbers(database: Side, make: Make, client: Client) -> None:
    """One pass after the local commit it is committed by its producer's word; the check-back is not needed."""
    async with closing(Outbox(client, "orders", database.url)) as outbox:
        await outbox._load_source()
        await client.attach(outbox)
        half = outbox.prepared(plain("k"), plain("j"))
        await client.op(half._op() | {"first_check_s": 300})
        half._attempt = Attempt(half._attempt.id, half._attempt.mark, stored=True)
        conn = await database.connect()
        await database.begin(conn)
        await settled(half.fence(conn))
        await database.commit(conn)
        relay = await make(client)
        relay.remember(half._attempt.id)
        assert (await relay.tick()).committed == 1
        now = await client.transaction(half.id)
        await client.detach(outbox)
    assert (now.state, now.decided_by, [each.sequence for each in now.messages]) == ("committed", "producer", [1, 1])


async def test_p2_resend_takes_rows_whose_writer_saw_no_time(database: Side, relay: Relay, client: Client) -> None:
    """A WSGI worker never hears the coordinator's time. A restored coordinator needs its rows as well, whatever time is asked for."""
    await publish(database, plain("k"))
    assert (await relay.tick()).submitted == 1
    assert admin.resend(database.url, 2**52).again == 1
    assert (await relay.tick()).submitted == 1


async def test_r23_refused_rows_are_set_aside_and_listed(database: Side, relay: Relay, client: Client) -> None:
    """A row that the coordinator refuses for ever is kept and listed with its code; the others go on."""
    await publish(database, Message("nope", 1, key="x"), plain(None, "fine"))
    report = await relay.tick()
    assert (report.refused, report.submitted) == (1, 1)
    assert unsent(database) in ([None, 2], [2, None])
    [listed] = admin.waiting(database.url)
    assert (listed.topic, listed.key, listed.sequence, listed.refused) == ("nope", "x", 1, "topic_not_found")
    assert await bodies(client, 1) == ["fine"]
    assert (await relay.tick()).refused == 0


async def test_r23_refused_row_goes_when_its_reason_is_gone_and_somebody_says_so(database: Side, relay: Relay, client: Client) -> None:
    """An order that was placed before its topic was made is not lost: `halfmsg outbox retry`. What is sent stays sent."""
    await publish(database, Message("nope", 1, key="x"), plain(None, "fine"))
    assert (await relay.tick()).refused == 1
    await client.put_topic("nope", kind="sequence")
    await client.put_group("late", topics=[{"topic": "nope"}])
    assert admin.retry(database.url) == 1
    assert (await relay.tick()).submitted == 1
    assert unsent(database) == [None, None] and admin.waiting(database.url) == []
    assert admin.retry(database.url) == 0


async def test_r23_temporary_refusals_are_repeated(
    database: Side, make: Make, client: Client, coordinator: Coordinator, caplog: pytest.LogCaptureFixture
) -> None:
    """A topic without a group says wait: the row stays, and goes once there is a group. The log says why, once."""
    await client.put_topic("lonely", kind="unordered")
    await publish(database, Message("lonely", 1))
    async with Client(f"http://{coordinator.address}", timeout=0.2) as hasty:
        relay = await make(hasty)
        assert [(await relay.tick()).waiting for _ in range(2)] == [1, 1]
        assert unsent(database) == [1]
        assert sum("rows wait" in each.message and "no_group" in each.message for each in caplog.records) == 1
        await client.put_group("late", topics=[{"topic": "lonely"}])
        assert (await relay.tick()).submitted == 1


async def test_r23_rows_that_must_wait_hold_up_nobody_else(database: Side, make: Make, client: Client, coordinator: Coordinator) -> None:
    """More rows than one pass takes wait for a group; a row behind them is handed over in the next pass."""
    await client.put_topic("lonely", kind="unordered")
    await publish(database, *(Message("lonely", n) for n in range(210)))
    database.read("UPDATE halfmsg_tx SET mark = 1")
    await publish(database, plain(None, "behind"))
    database.read("UPDATE halfmsg_tx SET mark = 2 WHERE mark = 0")
    async with Client(f"http://{coordinator.address}", timeout=0.2) as hasty:
        relay = await make(hasty)
        for _ in range(2):
            await relay.tick()
    assert await bodies(client, 1) == ["behind"]


async def test_p2_transaction_that_commits_behind_the_cursor_is_handed_over(
    database: Side, relay: Relay, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt keeps the mark it began with; when it commits after later ones were handed over, a later pass still finds it."""
    monkeypatch.setattr("halfmsg.outbox.relay.SUBMITS_MAX", 2)
    await publish(database, *(plain(None, n) for n in range(4)))
    database.read("UPDATE halfmsg_tx SET mark = 9")
    assert [(await relay.tick()).submitted for _ in range(2)] == [2, 2]
    await publish(database, plain(None, "late"))
    assert sum([(await relay.tick()).submitted for _ in range(2)]) == 1
    assert unsent(database) == [None] * 5


async def test_coordinator_away_costs_nothing_but_time(database: Side, make: Make) -> None:
    """No coordinator: rows wait; drain gives up at its deadline and says how many are left."""
    await publish(database, plain())
    async with Client(NOWHERE, timeout=30) as client:
        relay = await make(client)
        async with asyncio.timeout(5):
            assert await relay.drain(0.3) == 1
    assert unsent(database) == [1]


async def test_drain_hands_over_what_is_left(database: Side, relay: Relay, client: Client) -> None:
    """drain ends as soon as nothing is left."""
    await publish(database, *(plain(None, n) for n in range(3)))
    assert await relay.drain(10) == 0
    assert sorted(await bodies(client, 3)) == [0, 1, 2]


async def test_open_outbox_hands_over_bare_publishes(database: Side, client: Client) -> None:
    """While `async with outbox` is open nobody needs a hook: the commit is found, and leaving waits for what is committed."""
    async with Outbox(client, "orders", database.url) as outbox:
        conn = await database.connect()
        await database.begin(conn)
        await outbox.publish(conn, "s", "now", key="k")
        await database.commit(conn)
        assert await bodies(client, 1) == ["now"]
        async with outbox.transaction() as tx:
            await tx.publish("s", "last", key="k")
    assert await bodies(client, 1) == ["last"]
    assert unsent(database) == [None, None]


async def test_expecting_rows_ends_a_long_pause(database: Side, relay: Relay) -> None:
    """A publish in an idle service: the pause of up to a second that had begun before it ends at once."""
    relay._pause_s = 60
    resting = asyncio.create_task(relay._rest())
    await asyncio.sleep(0)
    relay.expect()
    await asyncio.wait_for(resting, 5)


async def test_open_outbox_refuses_what_the_coordinator_refuses_for_ever(database: Side, client: Client) -> None:
    """Topics and limits are learnt at start: unknown topic, missing key and key too many raise inside publish, before the commit."""
    await client.put_topic("a", kind="arrival")
    async with Outbox(client, "orders", database.url) as outbox, outbox.transaction() as tx:
        for message, code in (
            (Message("nope", 1), "topic_not_found"),
            (Message("s", 1), "combination_refused"),
            (Message("u", 1, key="k"), "combination_refused"),
            (Message("a", 1, key="k"), "combination_refused"),
        ):
            with pytest.raises(UsageError) as caught:
                tx.publish_many([message])
            assert caught.value.code == code
    assert database.counts() == (0, 0, 0)


async def test_outbox_opened_twice_is_an_error(database: Side, client: Client) -> None:
    """One block a process; the second one is refused and the first goes on."""
    async with Outbox(client, "orders", database.url) as outbox:
        with pytest.raises(UsageError) as caught:
            async with outbox:
                raise AssertionError("entered")
        assert (caught.value.code, outbox.is_open) == ("already_open", True)
    assert not outbox.is_open


async def test_outbox_whose_opening_is_cancelled_is_closed(database: Side, client: Client) -> None:
    """Cancelled at every await while it opens: nothing stays half open, and it can be opened afterwards."""
    from .faults import cancel_at

    outbox = Outbox(client, "orders", database.url)
    for k in range(1, 200):
        reached, _ = await cancel_at(outbox.__aenter__(), k)
        if not reached:
            break
        assert not outbox.is_open
    assert outbox.is_open
    await outbox.__aexit__(None, None, None)


async def test_p2_lane_of_a_row_never_changes() -> None:
    """The lane follows from the last byte of the id: what relays of other versions agree on."""
    assert [lane_of(bytes(15) + bytes([n])) for n in (0, 63, 64, 255)] == [0, 63, 0, 63]


async def test_outbox_that_was_opened_before_a_fork_is_not_open_in_the_child(file: Side, client: Client) -> None:
    """The parent's relay lives in the parent's loop: who counts on it in the child would wait for the check-back."""
    async with Outbox(client, "orders", file.url) as outbox:
        child = os.fork()
        if child == 0:
            os._exit(0 if not outbox.is_open and outbox._relay is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert outbox.is_open


async def test_r23_what_is_said_of_the_relays_name_sets_no_row_aside(
    database: Side, make: Make, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A relay under a name that is another database's, or nobody's: the rows wait for the right one."""
    right = await make(client)
    await publish(database, plain("k"))
    await client._put("/v1/producers/mail", {})
    id = {"producer": "mail", "source": "0d" * 16, "messages": [{"topic": "u", "data": b"1"}]}
    await client.op({"op": "submit", "id": str(uuid4()), **id})
    for wrong, code in (("mail", "wrong_source"), ("not-made", "producer_not_found")):
        relay = await make(client)
        relay._producer = wrong
        report = await relay.tick()
        assert (report.waiting, report.refused) == (1, 0)
        assert any("rows wait" in each.message and code in each.message for each in caplog.records)
        await relay.release_lanes()
    assert admin.waiting(database.url)[0].refused is None
    assert (await right.tick()).submitted == 1


def test_fork_shares_no_connection(side: Side) -> None:
    """A child of a service opens its own connections: both go on, on the sync path, and the parent's are left alone."""
    if side.is_async:
        pytest.skip("the async path belongs to one loop, which does not survive a fork")
    outbox = side.outbox()
    with outbox.transaction() as tx:
        tx.publish("s", "parent", key="k")
    child = os.fork()
    if child == 0:
        try:
            with outbox.transaction() as tx:
                tx.publish("s", "child", key="k")
            outbox._home.close_sync()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with outbox.transaction() as tx:
        assert tx.publish("s", "parent again", key="k").sequence == 3
    outbox._home.close_sync()
    assert side.counts() == (0, 3, 3)


def test_fork_shares_no_connection_with_a_second_thread_of_the_child(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads of a child come at once: while the first forgets the parent's connections, the second must not get one of them."""
    if side.is_async:
        pytest.skip("the async path belongs to one loop, which does not survive a fork")
    ours = Home(side.url, "halfmsg_")
    parents = ours.take_sync()
    ours.give_sync(parents)
    got: list[SyncAdapter] = []
    first = threading.current_thread()

    class Between(list[object]):
        def append(self, kept: object) -> None:
            if threading.current_thread() is first:
                second = threading.Thread(target=lambda: got.append(ours.take_sync()))
                second.start()
                second.join()
            super().append(kept)

    monkeypatch.setattr(home, "_PARENTS", Between())
    ours._pid = -1  # as a child finds it
    got.append(ours.take_sync())
    for adapter in {id(adapter): adapter for adapter in (*got, parents)}.values():
        adapter.close()
    assert len(got) == 2 and parents not in got


async def test_p3_connections_of_ours_wait_for_the_disk(file: Side) -> None:
    """Fence, verdict and claim are promises: SQLite connections that the library opens, of either colour, run at FULL."""
    async with closing(file.outbox()) as outbox:
        adapter, blocking = await outbox._home.take(), outbox._home.take_sync()
        assert await adapter.run(one(Sql("PRAGMA synchronous"))) == blocking.do(Sql("PRAGMA synchronous")) == [(2,)]
        await outbox._home.give(adapter)
        outbox._home.give_sync(blocking)


@asynccontextmanager
async def in_colour(side: Side, block: Any) -> AsyncIterator[Any]:
    """A block by `async with` or by `with`, as the side's driver asks."""
    if side.is_async:
        async with block as tx:
            yield tx
    else:
        with block as tx:
            yield tx


async def test_pool_keeps_nothing_dirty(database: Side) -> None:
    """A connection of ours on which a transaction was left open is never handed out again."""
    async with closing(database.outbox()) as outbox:
        adapter = await outbox._home.take()
        await database.execute(adapter.conn, "BEGIN")
        await database.business(adapter.conn)
        await outbox._home.give(adapter)
        async with outbox.transaction() as tx:
            await database.business(tx.conn, "mine")
    assert database.read("SELECT id FROM business") == [("mine",)]


async def test_pool_keeps_no_factories_of_a_user(side: Side) -> None:
    """What one block sets on a connection of ours is not the next one's surprise: rows come as the driver gives them."""

    def words(cursor: Any, row: Any = None) -> Any:
        return str if row is None else str(row)

    async with closing(side.outbox()) as outbox:
        for _ in range(2):
            async with in_colour(side, outbox.transaction()) as tx:
                cursor = await settled(tx.conn.execute("SELECT 1"))
                assert tuple(await settled(cursor.fetchone())) == (1,)
                tx.conn.row_factory = words


async def test_p5_search_path_left_by_a_block_turns_no_verdict(postgres: Side) -> None:
    """A block chooses a tenant's schema for its session; the next check-back still looks at the fences of this outbox, not of that schema."""
    schema = "tenant" + uuid4().hex[:8]
    postgres.read(f"CREATE SCHEMA {schema}")
    admin.install(f"{postgres.url.partition('?')[0]}?options=-csearch_path%3D{schema}")
    async with closing(postgres.outbox()) as outbox:
        async with outbox.transaction() as tx:
            id = (await tx.publish("s", 1, key="k")).transaction_id
        async with outbox.transaction() as tx:
            await tx.conn.execute(f"SET search_path TO {schema}, public")
        answers = await outbox.decide([Question(id, 0, None)])
    assert answers[id].verdict is Verdict.COMMITTED


@pytest.mark.parametrize(
    ("status", "code"), [(500, "internal"), (401, "unauthenticated"), (403, "forbidden"), (404, "group_not_found"), (503, "draining")]
)
def test_r23_failure_that_is_no_refusal_of_the_row_is_repeated(status: int, code: str) -> None:
    """A defect of the coordinator, a token that is not taken, another's subscribe: the row waits, it is not set aside for ever."""
    assert not is_refusal(api_error({"code": code, "status": status}))


def test_r23_refusal_of_the_content_is_one() -> None:
    """What will be said again of the very same row."""
    assert is_refusal(api_error({"code": "topic_not_found", "status": 404}))


@pytest.mark.parametrize("years", [10, -10])
async def test_p10_claims_of_a_relay_with_another_clock_hold_no_rows(database: Side, relay: Relay, client: Client, years: int) -> None:
    """A relay whose clock was ten years off claimed every lane and died: its rows do not wait for that clock."""
    [(now_ms,)] = database.read("SELECT max(mark) FROM halfmsg_tx") or [(0,)]
    until = (now_ms or client.time_ms or 1_795_000_000_000) + years * 365 * 86_400_000
    database.read("UPDATE halfmsg_lane SET owner = ?, until = ?", b"dead", until)
    await publish(database, *(plain("k", n) for n in range(3)))
    assert (await relay.tick()).submitted == 3
    assert await bodies(client, 3) == [0, 1, 2]
