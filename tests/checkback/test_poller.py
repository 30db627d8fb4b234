"""Asking who is due: limits, ways in turn, breakers, and what a failure costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from halfmsg.checkback import Responder, question, verdict
from halfmsg.checkback.allowlist import open_session
from halfmsg.checkback.answers import Missing
from halfmsg.checkback.http_way import HttpWay
from halfmsg.checkback.poller import Poller, PollerSettings, TickReport
from halfmsg.checkback.verdict import Result, Ruling
from tests.checkback.fakes import SECRET, SOURCE, Clock, NoChance, Store, Way, Ways, due, says, silent
from tests.checkback.test_responder import Database

COMMITTED = says(Result.COMMITTED)


@pytest.fixture
def clock() -> Clock:
    return Clock()


Make = Callable[..., Poller]


@pytest.fixture
async def make(clock: Clock) -> AsyncIterator[Make]:
    """Pollers that are closed at the end, with nothing left in flight."""
    made: list[Poller] = []

    def build(store: Store, ways: Ways, **options: Any) -> Poller:
        made.append(Poller(store, ways, clock, NoChance(), **options))
        return made[-1]

    yield build
    for poller in made:
        await poller.aclose(grace_s=0)


async def test_due_checks_are_asked_and_their_rulings_applied(make: Make) -> None:
    """One tick: claimed, asked in one question, ruled."""
    store, way = Store(due(1), due(2)), Way(COMMITTED)
    report = await make(store, Ways(orders=[way])).tick(wait=True)
    assert report == TickReport(asked=2, answered=2, no_answer=0, decided=2, busy_producers=0)
    assert store.results == {"id-1": Result.COMMITTED, "id-2": Result.COMMITTED}
    assert len(store.applied) == len(way.questions) == 1


async def test_question_carries_what_the_producer_needs(make: Make) -> None:
    """Exactly the wire's form: mark and source decide, the rest is for people."""
    way = Way(COMMITTED)
    await make(Store(due(1)), Ways(orders=[way])).tick(wait=True)
    transaction = {"id": "id-1", "mark": 10, "prepared_at": "2023-11-14T22:13:10.123Z", "attempt": 1, "topics": ["order.placed"]}
    assert way.questions == [{"type": "check", "producer": "orders", "source": SOURCE, "transactions": [transaction]}]


def test_question_names_no_source_while_none_is_bound_and_asks_for_holders_where_numbers_miss() -> None:
    """Both parts are there only if there is something to say (R5, R7)."""
    asked = question.build("orders", None, [], [Missing("t", "k", 3)])
    assert asked == {"type": "check", "producer": "orders", "transactions": [], "holders": [{"topic": "t", "key": "k", "sequence": 3}]}


async def test_nothing_due_asks_nobody(make: Make) -> None:
    """An idle coordinator does not even open a store transaction."""
    store = Store()
    assert await make(store, Ways()).tick(wait=True) == TickReport()
    assert store.limits == []


async def test_ids_travel_fifty_a_question_and_eight_questions_at_once(make: Make) -> None:
    """400 ids are claimed at most; the rest is left due."""
    store, way = Store(*map(due, range(500))), Way(COMMITTED)
    way.gate = asyncio.Event()
    poller = make(store, Ways(orders=[way]))
    assert (await poller.tick()).asked == 400
    await asyncio.sleep(0)
    assert (await poller.tick()).asked == 0
    way.gate.set()
    await poller.aclose()
    assert [len(asked["transactions"]) for asked in way.questions] == [50] * 8
    assert way.most_at_once == 8
    assert len(store.waiting) == 100


async def test_two_databases_of_a_producer_are_asked_apart(make: Make) -> None:
    """A question names one source (R7)."""
    way = Way(COMMITTED)
    await make(Store(due(1), due(2, source=None), due(3)), Ways(orders=[way])).tick(wait=True)
    assert [(asked.get("source"), len(asked["transactions"])) for asked in way.questions] == [(None, 1), (SOURCE, 2)]


async def test_r15_each_no_answer_moves_on_to_the_next_way(make: Make) -> None:
    """What the stream answered is done; only the rest is asked at the URL."""
    stream = Way(lambda ids: {ids[0]: Ruling(Result.RUNNING), ids[1]: verdict.no_answer("timed out")}, "stream")
    url = Way(COMMITTED)
    store = Store(due(1), due(2), due(3))
    await make(store, Ways(orders=[stream, url])).tick(wait=True)
    assert store.results == {"id-1": Result.RUNNING, "id-2": Result.COMMITTED, "id-3": Result.COMMITTED}
    assert [transaction["id"] for transaction in url.questions[0]["transactions"]] == ["id-2", "id-3"]


async def test_answered_ids_are_not_asked_a_second_way(make: Make) -> None:
    """`unknown` is an answer, however unwelcome: it costs one attempt, not two."""
    second = Way(COMMITTED)
    store = Store(due(1))
    await make(store, Ways(orders=[Way(says(Result.UNKNOWN)), second])).tick(wait=True)
    assert store.results == {"id-1": Result.UNKNOWN}
    assert second.questions == []


async def test_only_so_many_ways_are_tried(make: Make) -> None:
    """Ten dead streams must not hold a question beyond its lease (W9)."""
    ways = [Way(silent(), "stream") for _ in range(10)]
    await make(Store(due(1)), Ways(orders=ways)).tick(wait=True)
    assert [len(way.questions) for way in ways] == [1] * 3 + [0] * 7


async def test_r7_wrong_source_is_reported_whatever_a_later_way_fails_with(make: Make) -> None:
    """That another database answers alarms, and a time-out after it must not hide it."""
    store = Store(due(1))
    await make(store, Ways(orders=[Way(silent(verdict.WRONG_SOURCE)), Way(silent("HTTP 503"))])).tick(wait=True)
    assert store.details == {"id-1": verdict.WRONG_SOURCE}


async def test_producer_without_a_way_gets_no_answer(make: Make) -> None:
    """Noted like any silence, so that the console can say why."""
    store = Store(due(1))
    report = await make(store, Ways()).tick(wait=True)
    assert (report.no_answer, store.details) == (1, {"id-1": "no way to ask"})


async def test_way_that_breaks_its_word_is_a_way_without_an_answer(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Raising or answering nothing, it costs only itself."""

    def raises(ids: list[str]) -> Any:
        raise RuntimeError("a defect")

    store = Store(due(1), due(2, producer="bills", producer_id=2), due(3, producer="stock", producer_id=3))
    ways = Ways(orders=[Way(raises)], bills=[Way(raises), Way(COMMITTED)], stock=[Way(lambda ids: {})])
    await make(store, ways).tick(wait=True)
    assert store.details == {"id-1": "failed", "id-2": "", "id-3": "id not in the answer"}
    assert "a defect" in caplog.text


async def test_hanging_way_is_cut_off_and_the_next_one_asked(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that lost its peer without knowing must leave time for the URL."""
    monkeypatch.setattr("halfmsg.checkback.poller.OVERTIME_S", 0)
    hanging = Way(COMMITTED, "stream")
    hanging.gate = asyncio.Event()
    store = Store(due(1))
    settings = PollerSettings(question_timeout_s=0.01)
    await make(store, Ways(orders=[hanging, Way(says(Result.ROLLED_BACK))]), settings=settings).tick(wait=True)
    assert store.results == {"id-1": Result.ROLLED_BACK}


async def test_sick_producer_does_not_hold_the_others(make: Make) -> None:
    """While orders hang with all their places taken, bills are asked and ruled tick after tick."""
    hanging = Way(COMMITTED)
    hanging.gate = asyncio.Event()
    store = Store(*map(due, range(500)))
    told: asyncio.Queue[str] = asyncio.Queue()
    ways = Ways(orders=[hanging], bills=[Way(COMMITTED)])
    poller = make(store, ways, on_result=lambda producer, ruling, took_s: told.put_nowait(producer))
    assert (await poller.tick()).asked == 400
    for n in (1000, 1001):
        store.waiting.append(due(n, producer="bills", producer_id=2))
        report = await poller.tick()
        assert (report.asked, report.busy_producers) == (1, 1)
        assert await told.get() == "bills"
    hanging.gate.set()
    await poller.aclose()
    assert len(store.results) == 402


async def test_report_tells_of_questions_that_ended_since_the_last_one(make: Make) -> None:
    """A tick does not wait; what it began is reported by the next."""
    store = Store(due(1))
    poller = make(store, Ways(orders=[Way(COMMITTED)]))
    assert await poller.tick() == TickReport(asked=1)
    assert await poller.tick(wait=True) == TickReport(answered=1, decided=1)
    assert await poller.tick() == TickReport()


async def test_transaction_that_is_being_asked_is_not_asked_twice(make: Make) -> None:
    """Should a lease be too short, one `unknown` must not cost two attempts."""
    way, store = Way(COMMITTED), Store(due(1))
    way.gate = asyncio.Event()
    poller = make(store, Ways(orders=[way]))
    await poller.tick()
    store.waiting.append(due(1))
    assert (await poller.tick()).asked == 0
    way.gate.set()
    await poller.tick(wait=True)
    assert len(way.questions) == 1


async def silent_until_open(make: Make, clock: Clock) -> tuple[Poller, Store, Way]:
    """A producer whose breaker has just opened, with plenty due."""
    store, way = Store(), Way(silent())
    poller = make(store, Ways(orders=[way]))
    for n in range(5):
        assert not poller.breaker_open("orders")
        store.waiting = [due(n)]
        await poller.tick(wait=True)
    store.waiting = list(map(due, range(100, 200)))
    return poller, store, way


async def test_r15_breaker_spares_a_silent_producer_then_tries_one_id(make: Make, clock: Clock) -> None:
    """Nobody for 5 s, then one; another silence doubles the pause, an answer ends it."""
    poller, _, way = await silent_until_open(make, clock)
    assert poller.breaker_open("orders") and not poller.breaker_open("bills")
    clock.advance(4.999)
    assert await poller.tick(wait=True) == TickReport(busy_producers=1)
    clock.advance(0.001)
    assert (await poller.tick(wait=True)).asked == 1
    clock.advance(9.999)
    assert (await poller.tick(wait=True)).asked == 0
    clock.advance(0.001)
    way.says = COMMITTED
    assert (await poller.tick(wait=True)).asked == 1
    assert not poller.breaker_open("orders")
    assert (await poller.tick(wait=True)).asked == 98


async def test_r15_one_trial_at_a_time(make: Make, clock: Clock) -> None:
    """While the one id is under way, no second is asked."""
    poller, _, way = await silent_until_open(make, clock)
    way.gate = asyncio.Event()
    clock.advance(5)
    assert (await poller.tick()).asked == 1
    assert (await poller.tick()).asked == 0
    way.gate.set()


async def test_r15_hello_closes_the_breaker_of_its_producer_only(make: Make, clock: Clock) -> None:
    """Who says hello can be asked at once."""
    poller, _, _ = await silent_until_open(make, clock)
    poller.hello("bills")
    assert poller.breaker_open("orders")
    poller.hello("orders")
    assert (await poller.tick(wait=True)).asked == 100


async def test_breaker_is_remembered_while_nothing_is_open(make: Make, clock: Clock) -> None:
    """A producer that was sick a moment ago is not met with full force for having nothing due in between."""
    poller, store, _ = await silent_until_open(make, clock)
    waiting, store.waiting = store.waiting, []
    await poller.tick()
    store.waiting = waiting
    assert (await poller.tick()).asked == 0


async def test_one_answer_among_many_silences_keeps_the_breaker_closed(make: Make) -> None:
    """A responder that ran out of budget has answered: what it left out is asked again, it is not sick (R28)."""
    store = Store()
    poller = make(store, Ways(orders=[Way(lambda ids: {ids[0]: Ruling(Result.RUNNING)})]))
    for _ in range(6):
        store.waiting = list(map(due, range(50)))
        assert (await poller.tick(wait=True)).no_answer == 49
    assert not poller.breaker_open("orders")


async def test_store_that_fails_loses_nothing(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """The rulings are dropped and said so; the lease brings the check back and it is asked again."""
    store = Store(due(1))
    store.broken = RuntimeError("disk full")
    poller = make(store, Ways(orders=[Way(COMMITTED)]))
    await poller.tick(wait=True)
    assert "disk full" in caplog.text
    store.broken, store.waiting = None, [due(1)]
    await poller.tick(wait=True)
    assert store.results == {"id-1": Result.COMMITTED}


async def test_each_ruling_is_told_with_its_duration(make: Make, clock: Clock) -> None:
    """For metrics: producer, ruling, seconds; the store gets the same in ms."""

    def slowly(ids: list[str]) -> dict[str, Ruling]:
        clock.advance(0.25)
        return {id_: Ruling(Result.RUNNING) for id_ in ids}

    told: list[tuple[str, Ruling, float]] = []
    store = Store(due(1))
    poller = make(store, Ways(orders=[Way(slowly)]), on_result=lambda *given: told.append(given))
    await poller.tick(wait=True)
    assert told == [("orders", Ruling(Result.RUNNING), 0.25)]
    assert store.applied[0][0][2] == 250


async def test_aclose_waits_for_the_questions_in_flight(make: Make) -> None:
    """An answer that is on its way is still applied."""
    way, store = Way(COMMITTED), Store(due(1))
    way.gate = asyncio.Event()
    poller = make(store, Ways(orders=[way]))
    await poller.tick()
    closing = asyncio.create_task(poller.aclose())
    await asyncio.sleep(0)
    assert not closing.done()
    way.gate.set()
    await closing
    assert store.results == {"id-1": Result.COMMITTED}


async def test_aclose_cuts_off_what_does_not_end_in_its_grace(make: Make) -> None:
    """Nothing is applied for it, and nothing is left running."""
    way, store = Way(COMMITTED), Store(due(1))
    way.gate = asyncio.Event()
    poller = make(store, Ways(orders=[way]))
    await poller.tick()
    await asyncio.sleep(0)
    await poller.aclose(grace_s=0)
    assert (store.applied, way.asked_at_once) == ([], 0)


async def test_run_ticks_until_stopped_and_survives_a_failing_tick(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """A store that is away for a moment does not end the asking."""
    stop = asyncio.Event()

    class Flaky(Store):
        ticks = 0

        def sources_with_open(self) -> list[int]:
            self.ticks += 1
            if self.ticks == 1:
                raise RuntimeError("database is away")
            if self.ticks == 3:
                stop.set()
            return []

    store = Flaky()
    await make(store, Ways()).run(stop, 0)
    assert store.ticks == 3
    assert "database is away" in caplog.text


@pytest.mark.parametrize("wrong", [{"concurrency": 0}, {"ids_a_question": 0}, {"ids_a_question": 51}, {"question_timeout_s": 0}, {"ways_max": 0}])
def test_senseless_settings_are_refused(wrong: dict[str, Any]) -> None:
    """A responder refuses more than 50 ids, so no poller may be set to ask them."""
    with pytest.raises(ValueError, match="check settings"):
        PollerSettings(**wrong)


def test_w9_lease_outlasts_every_way_of_a_question() -> None:
    """10 s a way and 1 s of overtime, three ways."""
    assert PollerSettings().lease_min_s == 33


async def test_producer_is_asked_over_real_sockets_end_to_end(make: Make, clock: Clock) -> None:
    """Poller, signed question, mounted responder, signed answer, rulings in the store."""
    app = web.Application()
    app.router.add_post("/halfmsg/check", Responder(Database(), secret=SECRET, now=clock.unix_s).aiohttp)
    session = await open_session()
    async with TestServer(app) as server:
        url = str(server.make_url("/halfmsg/check"))
        way = HttpWay(session, url, new_id=lambda: "msg_1", secrets=[SECRET], now=clock.unix_s)
        store = Store(due(1), due(2))
        report = await make(store, Ways(orders=[way])).tick(wait=True)
    await session.aclose()
    assert (report.decided, {ruling for _, ruling, _ in store.applied[0]}) == (2, {Ruling(Result.COMMITTED, "d" * 32, (None, 3))})
