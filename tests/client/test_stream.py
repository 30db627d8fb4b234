"""The connection: what it batches, what it repeats, what it refuses, and whom it never hurts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec
import pytest

from halfmsg.txclient import ApiError, Busy, Client, Conflict, Message, TransportError, _calls, _wire
from halfmsg.txclient._links import Links, Seen
from halfmsg.txclient._settings import settings

from .stub_server import TIME_MS, StubServer, accept, refuse, transaction

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(20)]


async def test_send_is_one_submit_without_producer(server: StubServer, client: Client) -> None:
    """A plain send names no producer, and its answer is a committed transaction."""
    sent = await client.send("order.placed", {"id": 7}, key="7")
    op = server.ops[0]
    assert (op["op"], op["messages"][0]["data"], "producer" in op) == ("submit", b'{"id":7}', False)
    assert (sent.id, sent.state, sent.message_ids) == (op["id"], "committed", [f"{op['id']}-0"])
    assert client.time_ms == TIME_MS + 1


async def test_the_four_calls_speak_the_vocabulary(server: StubServer, client: Client) -> None:
    """prepare, submit, commit and rollback send what API §6 says."""
    message = Message("t", {"a": 1}, key="k")
    prepared = await client.prepare([message], producer="orders", first_check=2)
    await client.submit([message], producer="orders", numbers=[4])
    await client.commit(prepared.id, digest="d" * 32, numbers=[1])
    await client.rollback(prepared.id, producer="orders", reason="never begun")
    prepare, submit, commit, rollback = server.ops
    assert prepare["first_check_s"] == 2.0 and len(prepare["digest"]) == 32 and "sequence" not in prepare["messages"][0]
    assert submit["messages"][0]["sequence"] == 4
    assert commit == {"op": "commit", "id": prepared.id, "digest": "d" * 32, "numbers": [1]}
    assert rollback == {"op": "rollback", "id": prepared.id, "producer": "orders", "reason": "never begun"}


async def test_who_may_not_answer_as_a_producer_is_told_what_to_do(
    server: StubServer, client: Client, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    """A producer is made with a command; what is wrong with one that is there, another shows."""
    server.refused = [{"name": "orders", "code": "producer_not_found"}, {"name": "mail", "code": "wrong_source"}]
    await client.send("t", 0)
    said = [record.getMessage() for record in caplog.records]
    assert [line.partition(";")[2] for line in said] == [
        " make it with: halfmsg producer set orders", " see: halfmsg producer show mail"]  # fmt: skip


class Shop:
    """A producer that is never asked here."""

    source: str | None = None

    def __init__(self, name: str) -> None:
        self.name = name

    async def answer(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"verdicts": []}

    def beat(self) -> Mapping[str, Any]:
        return {}


async def test_p2_producer_that_comes_between_hello_and_welcome_is_named(server: StubServer, client: Client) -> None:
    """Else its check-backs find no way for as long as the connection lives."""
    server.at_hello = lambda: client._links.here().stream.producers.attach(Shop("late"))
    await client.send("t", 1)
    hellos = await server.hellos.reach(2)
    assert [[each["name"] for each in hello["producers"]] for hello in hellos[:2]] == [[], ["late"]]


async def test_p2_hello_that_was_refused_is_said_again(server: StubServer, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk goes, a producer is made: nobody has to start the service again."""
    monkeypatch.setattr("halfmsg.txclient._stream.BEAT_S", 0.01)
    server.refused = [{"name": "orders", "code": "storage_full"}]
    await client.attach(Shop("orders"))
    await server.hellos.reach(3)
    server.refused = []
    seen = len(server.hellos)
    await server.hellos.reach(seen + 1)
    beats = len(server.other)
    await server.other.reach(beats + 3)
    assert len(server.hellos) <= seen + 2


async def test_p2_question_before_the_welcome_breaks_nothing(server: StubServer, client: Client) -> None:
    """The coordinator may ask a producer as soon as it has heard the hello."""
    server.before_welcome = [{"type": "check", "n": 1, "producer": "orders", "transactions": []}, {"type": "beat", "time": 1, "settled_before": {}}]
    await client.send("t", 1)
    assert len(server.hellos) == 1


async def test_many_waiting_ops_go_out_in_few_frames(server: StubServer, client: Client) -> None:
    """Everything waiting goes into one frame, at most 1,000 operations each."""
    await client.send("t", 0)
    await asyncio.gather(*(client.send("t", n) for n in range(2_500)))
    assert [len(frame["ops"]) for frame in server.frames][1:] == [1_000, 1_000, 500]


async def test_a_frame_stays_near_one_mebibyte(server: StubServer, client: Client) -> None:
    """Large operations are spread over frames."""
    await asyncio.gather(*(client.send("t", b"x" * 400_000) for _ in range(6)))
    assert [len(frame["ops"]) for frame in server.frames] == [2, 2, 2]


async def test_lost_connection_sends_unanswered_ops_again_in_order(server: StubServer, client: Client) -> None:
    """A lost connection loses answers, never decisions."""
    server.silent = True
    first = [asyncio.create_task(client.send("t", n, id=f"{n:032d}")) for n in range(3)]
    await server.frames.reach(1)
    later = asyncio.create_task(client.send("t", 3, id=f"{3:032d}"))
    await server.ops.reach(4)
    server.silent = False
    await server.connections[0].kill()
    await asyncio.gather(*first, later)
    assert [op["id"] for op in server.ops] == [f"{n:032d}" for n in (0, 1, 2, 3, 0, 1, 2, 3)]
    assert len(server.connections) == 2


async def test_cancelled_caller_hurts_no_other(server: StubServer, client: Client) -> None:
    """The neighbours in the frame of a cancelled call get their own answers, also after a reconnect."""
    server.silent = True
    calls = [asyncio.create_task(client.send("t", n, id=f"{n:032d}")) for n in range(3)]
    await server.ops.reach(3)
    calls[1].cancel()
    server.silent = False
    await server.connections[0].kill()
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(done[1], asyncio.CancelledError)
    assert [done[0].id, done[2].id] == [f"{0:032d}", f"{2:032d}"]  # type: ignore[union-attr]
    assert [op["id"] for op in server.ops][3:] == [f"{0:032d}", f"{2:032d}"]


async def test_no_answer_in_time_is_a_timeout_and_the_next_call_works(server: StubServer, client: Client) -> None:
    """A time-out ends one call; a late answer to it is ignored."""
    server.silent = True
    with pytest.raises(TransportError) as caught:
        await client.op({"op": "commit", "id": "1" * 32}, timeout=0.05)
    assert caught.value.code == "timeout" and "unknown" in str(caught.value)
    server.silent = False
    await server.connections[0].send({"type": "results", "n": 1, "results": [{"ok": {}}]})
    assert (await client.send("t", 1)).state == "committed"


async def test_unreachable_names_cause_and_next_step(server: StubServer) -> None:
    """No coordinator: the call waits its time, then says what to start."""
    await server.stop()
    async with Client(server.url, timeout=0.3) as client:
        with pytest.raises(TransportError, match=r"refused.*is `halfmsg serve` running") as caught:
            await client.send("t", 1)
    assert caught.value.code == "unreachable"


async def test_one_try_fails_at_once_while_the_coordinator_is_away(server: StubServer) -> None:
    """`retry=False` does not wait for a connection that was just refused."""
    await server.stop()
    async with Client(server.url, timeout=0.2) as client:
        for _ in range(2):
            with pytest.raises(TransportError) as caught:
                await client.op({"op": "commit", "id": "1" * 32}, timeout=60, retry=False)
            assert caught.value.code == "unreachable"


async def test_one_try_fails_when_the_connection_is_lost(server: StubServer, client: Client) -> None:
    """`retry=False` is not sent a second time."""
    server.silent = True
    call = asyncio.create_task(client.op({"op": "commit", "id": "1" * 32}, retry=False))
    await server.ops.reach(1)
    await server.connections[0].kill()
    with pytest.raises(TransportError):
        await call
    assert len(server.ops) == 1


async def test_op_waits_for_a_coordinator_that_comes_back(server: StubServer) -> None:
    """A call begun while nobody listened succeeds when somebody does."""
    await server.stop()
    async with Client(server.url, timeout=10) as client:
        call = asyncio.create_task(client.send("t", 1))
        with pytest.raises(TransportError):
            await client.op({"op": "commit", "id": "1" * 32}, retry=False)
        await server.start()
        assert (await call).state == "committed"


async def test_p2_connection_that_breaks_behind_its_upgrade_is_made_again(
    server: StubServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiohttp asserts that the transport is still there. (Found by seed 161 of the simulation: the stream ended, and its consumer with it.)"""
    real, broken = aiohttp.ClientSession.ws_connect, [AssertionError(), AttributeError("get_extra_info")]

    def connect(session: aiohttp.ClientSession, *args: Any, **kwargs: Any) -> Any:
        if broken:
            raise broken.pop()
        return real(session, *args, **kwargs)

    monkeypatch.setattr(aiohttp.ClientSession, "ws_connect", connect)
    assert (await client.send("t", 1)).state == "committed"
    assert not broken


async def test_refused_token_fails_at_once(server: StubServer, client: Client) -> None:
    """Waiting does not help against 401, so nobody waits."""
    server.refuse_stream = 401
    with pytest.raises(ApiError, match="HALFMSG_TOKEN") as caught:
        await client.send("t", 1)
    assert (caught.value.code, caught.value.status) == ("unauthenticated", 401)


async def test_conflict_carries_the_stored_transaction(server: StubServer, client: Client) -> None:
    """decided_otherwise brings the decision that stands."""
    server.answer = lambda op: refuse("decided_otherwise", 409, transaction=transaction({"op": "rollback", "id": op["id"]}))
    with pytest.raises(Conflict) as caught:
        await client.commit("1" * 32, digest="0" * 32)
    assert caught.value.transaction is not None and caught.value.transaction.state == "rolled_back"


async def test_busy_is_repeated_with_the_same_id(server: StubServer, client: Client) -> None:
    """A 503 is waited out within the call's time; the repeat is the same transaction."""
    answers = iter([refuse("overloaded", 503, retry_after_s=0)])
    server.answer = lambda op: next(answers, None) or accept(op)
    await client.send("t", 1)
    first, again = server.ops
    assert first == again


async def test_busy_beyond_the_deadline_is_raised_at_once(server: StubServer, client: Client) -> None:
    """Who is told to wait longer than they may is told so now."""
    server.answer = lambda op: refuse("backlog_full", 429, retry_after_s=60)
    with pytest.raises(Busy) as caught:
        await client.send("t", 1)
    assert caught.value.retry_after == 60 and len(server.ops) == 1


async def test_poisoned_frame_hurts_only_its_own_op(server: StubServer, client: Client) -> None:
    """When the coordinator closes with 4400, the suspects go out one by one, so that one bad operation cannot stop the others."""
    original = server._frame

    async def picky(connection: Any, frame: Mapping[str, Any]) -> None:
        if frame["type"] == "ops" and any(op["id"] == "bad" for op in frame["ops"]):
            await connection.send({"type": "error", "error": refuse("unknown_field", 400)["error"]})
            await connection.kill(4400)
        else:
            await original(connection, frame)

    server._frame = picky  # type: ignore[method-assign]
    ops = [{"op": "commit", "id": name} for name in ("a", "bad", "b")]
    done = await asyncio.gather(*(client.op(op) for op in ops), return_exceptions=True)
    assert [getattr(one, "code", "ok") for one in done] == ["ok", "unknown_field", "ok"]


async def test_go_away_finishes_then_comes_back(server: StubServer, client: Client) -> None:
    """A draining coordinator answers what it has; new operations go to the next connection."""
    server.silent = True
    open_work = asyncio.create_task(client.op({"op": "commit", "id": "open"}))
    await server.ops.reach(1)
    server.silent = False
    await server.connections[0].send({"type": "go_away", "reconnect_after_s": 0.01})
    await server.connections[0].send({"type": "results", "n": 1, "results": [{"ok": "done"}]})
    assert await open_work == "done"
    assert (await client.send("t", 2)).state == "committed"
    assert len(server.connections) == 2 and len(server.ops) == 2


async def test_unknown_frames_are_ignored(server: StubServer, client: Client) -> None:
    """A newer coordinator may say more than this client understands."""
    await client.send("t", 1)
    await server.connections[0].send({"type": "weather", "sun": True})
    await client.send("t", 2)
    assert len(server.connections) == 1


async def test_json_spells_bodies_both_ways(server: StubServer) -> None:
    """In JSON a bare JSON body is raw, any other base64."""
    client = Client(server.url)
    client._links = Links(settings(server.url, None, None, 5), _wire.Json())
    async with client:
        await client.prepare([Message("t", {"a": 1}), Message("t", b"\x00"), Message("t", b" 1", content_type="application/json")], producer="p")
    assert [(m.get("data"), m.get("data_base64")) for m in server.ops[0]["messages"]] == [({"a": 1}, None), (None, "AA=="), (None, "IDE=")]


class TestCalls:
    """The bookkeeping without a network."""

    def call(self, raw: bytes = b"\xc0", deadline: float = 1.0) -> _calls.Call:
        return _calls.Call(msgspec.Raw(raw), asyncio.get_running_loop().create_future(), deadline, False)

    async def test_p9_queue_is_bounded_by_count(self) -> None:
        """At the limit yes, one past it client_queue_full; and a caller that gave up makes room."""
        calls = _calls.Calls(max_calls=2)
        first = self.call()
        calls.add(first)
        calls.add(self.call())
        with pytest.raises(Busy) as caught:
            calls.add(self.call())
        assert caught.value.code == "client_queue_full"
        first.future.cancel()
        calls.add(self.call())

    async def test_p9_queue_is_bounded_by_bytes(self) -> None:
        """Bytes count as well, at the edge."""
        calls = _calls.Calls(max_bytes=4)
        calls.add(self.call(b"1234"))
        with pytest.raises(Busy):
            calls.add(self.call(b"5"))

    async def test_p2_what_has_no_answer_goes_out_again_first_and_in_order(self) -> None:
        """A lost connection loses answers, never operations: what was sent waits again, before what had not been sent."""
        calls = _calls.Calls()
        for raw in (b"1", b"2"):
            calls.add(self.call(raw))
        assert calls.frame() is not None
        calls.add(self.call(b"3"))
        calls.lost(TransportError("unreachable"))
        again = calls.frame()
        assert again is not None and [bytes(raw) for raw in again[1]] == [b"1", b"2", b"3"]
        assert len(calls) == 3 and not any(call.future.done() for call in calls._all())

    async def test_expire_ends_only_the_overdue_and_tells_the_next(self) -> None:
        """One timer serves all deadlines."""
        calls = _calls.Calls()
        early, late = self.call(deadline=1.0), self.call(deadline=2.0)
        calls.add(early)
        calls.add(late)
        assert calls.expire(1.5, lambda call: TransportError("timeout")) == 2.0
        assert isinstance(early.future.exception(), TransportError) and not late.future.done()

    async def test_room_comes_back_with_the_answers(self) -> None:
        """Answered operations count no more."""
        calls = _calls.Calls(max_calls=1)
        calls.add(self.call())
        frame = calls.frame()
        assert frame is not None
        calls.answer(frame[0], [_wire.Result(ok=1)])
        calls.add(self.call())
        assert len(calls) == 1

    async def test_wrong_number_of_results_changes_nothing(self) -> None:
        """An answer that does not match its frame is a protocol error, and the operations wait again."""
        calls = _calls.Calls()
        calls.add(self.call())
        frame = calls.frame()
        assert frame is not None
        with pytest.raises(TransportError):
            calls.answer(frame[0], [])
        assert calls.waiting and not calls.in_flight


async def test_seen_time_only_grows() -> None:
    """A mark is never older than one taken before (R3)."""
    seen = Seen()
    for told in (5, 3, None, 7):
        seen.told_time(told)
    assert seen.time_ms == 7


async def test_p2_time_seen_long_ago_is_no_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that heard the coordinator once and never again would mark today's rows with that day, and `outbox resend` pass them over."""
    seen, now = Seen(), 1_000.0
    monkeypatch.setattr("halfmsg.txclient._clock.monotonic", lambda: now)
    assert seen.time_ms is None
    seen.told_time(7)
    now += 1_799
    assert seen.time_ms == 7
    now += 1
    assert seen.time_ms is None
    seen.told_time(6)
    assert seen.time_ms == 7
