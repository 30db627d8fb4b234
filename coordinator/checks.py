"""The coordinator's side of the check-back: what the poller needs, over the store, the streams and the producers' URLs."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterable, Mapping, Sequence

from halfmsg.checkback import http_way, poller, ports, question, schedule, verdict
from halfmsg.checkback.allowlist import GuardedSession, NotAllowed
from halfmsg.checkback.verdict import Result, Ruling

from .engine import Engine
from .errors import Problem
from .ids import format_id, new_id, parse_id
from .messages import Source, Verdict
from .service import verdicts
from .store.sqlite.deliveries import Deliveries
from .stream import Streams, StreamWay


class SystemRandom:
    """Chance for jitter only; nothing is decided by it."""

    def __init__(self) -> None:
        self._random = random.Random(os.urandom(8))

    def random(self) -> float:
        return self._random.random()


NOT_APPLIED = ("storage_full", "storage_unavailable", "outcome_unknown")
"""Answers of the store to a ruling that are no answer about its transaction."""


class CheckStore:
    """Claims and rulings as transaction functions."""

    def __init__(self, engine: Engine, chance: ports.Random, lease_s: float) -> None:
        self._engine, self._chance, self._lease_ms = engine, chance, int(lease_s * 1000)
        check = engine.settings.check
        self._policy = schedule.CheckPolicy(
            first_delay_s=check.first_delay_s, max_interval_s=check.max_interval_s, max_attempts=check.max_attempts, max_age_s=check.max_age_s
        )
        self._sources: tuple[int, ...] = ()

    async def refresh(self) -> None:
        """Which producers have undecided or parked transactions: two look-ups a producer."""

        def read(tx: Deliveries) -> tuple[int, ...]:
            return tuple(id for (id,) in tx.all("SELECT id FROM source LIMIT 100000") if tx.source_has_undecided(id))

        self._sources = await self._engine.read(read)

    def sources_with_open(self) -> Iterable[int]:
        return self._sources

    async def claim_due_checks(self, limits: Mapping[int, int]) -> list[ports.DueCheck]:
        """In one transaction: one that is parked in between would be claimed as both, and a question that names it twice is none."""
        command = verdicts.ClaimDue(limits, self._lease_ms)
        claimed = await self._engine.submit(((verdicts.claim_due, command), (verdicts.claim_parked, command)))
        for result in claimed:
            if isinstance(result, Problem):
                raise result
        return [check_of(each) for due in claimed for each in due]

    async def apply_rulings(self, rulings: list[ports.Judged]) -> None:
        """Raises Problem where the store took none of them: they are asked about again."""
        calls = [(verdicts.apply_ruling, self._ruled(check, ruling, took_ms)) for check, ruling, took_ms in rulings]
        for result in await self._engine.submit(calls) if calls else ():
            if isinstance(result, Problem) and result.code in NOT_APPLIED:
                raise result

    def _ruled(self, check: ports.DueCheck, ruling: Ruling, took_ms: int) -> verdicts.Ruled:
        now = self._engine.clock.now_ms()
        attempts = check.attempts + (ruling.result is Result.UNKNOWN)
        next_check = schedule.next_check_ms(self._policy, now, attempts, ruling.result, self._chance.random())
        return verdicts.Ruled(
            check.n,
            Verdict(ruling.result.value),
            _digest(ruling.digest),
            ruling.numbers,
            ruling.detail,
            took_ms,
            next_check,
            schedule.is_used_up(self._policy, attempts),
            schedule.is_too_old(self._policy, now, check.prepared_at_ms),
        )


def _digest(text: str | None) -> bytes | None:
    """Text that is no hex is another digest: it decides nothing (R9)."""
    if text is None:
        return None
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b"?"


def check_of(due: verdicts.Due) -> ports.DueCheck:
    source = None if due.producer.db_id is None else due.producer.db_id.hex()
    tx = due.tx
    return ports.DueCheck(tx.n, format_id(tx.id), tx.mark, due.producer.id, due.producer.name, source, tx.first_at, tx.attempts, due.topics)


class CheckWays:
    """The producer's streams, youngest first, then its URL (R15)."""

    def __init__(self, engine: Engine, streams: Streams, session: GuardedSession) -> None:
        self._engine, self._streams, self._session = engine, streams, session
        self._producers: dict[str, Source] = {}

    async def refresh(self) -> None:
        def read(tx: Deliveries) -> dict[str, Source]:
            found: dict[str, Source] = {}
            for (name,) in tx.all("SELECT name FROM source WHERE check_url IS NOT NULL LIMIT 10000"):
                source = tx.source(name)
                if source is not None:
                    found[name] = source
            return found

        self._producers = await self._engine.read(read)

    def ways(self, producer: str) -> Sequence[ports.Way]:
        found: list[ports.Way] = [StreamWay(connection) for connection in self._streams.of_producer(producer)]
        source = self._producers.get(producer)
        if source is not None and source.check_url is not None:
            found.append(self._http(source, source.check_url))
        return found

    def _http(self, source: Source, url: str) -> ports.Way:
        secrets = () if source.secret is None else (source.secret,)
        dialect = "dtm" if source.dialect == "dtm" else "halfmsg"
        return http_way.HttpWay(self._session, url, new_id=self._question_id, secrets=secrets, dialect=dialect)  # type: ignore[arg-type]

    def _question_id(self) -> str:
        return new_id(self._engine.clock.now_ms()).hex()


class Checks:
    """The poller with its two ports, and asking by hand."""

    def __init__(self, engine: Engine, streams: Streams, session: GuardedSession) -> None:
        check = engine.settings.check
        limits = poller.PollerSettings(check.concurrency_per_producer, check.ids_per_question, check.question_timeout_s)
        self.engine, self._session = engine, session
        self.store = CheckStore(engine, SystemRandom(), limits.lease_min_s + 5)
        self.ways = CheckWays(engine, streams, session)
        self.poller = poller.Poller(self.store, self.ways, engine.clock, SystemRandom(), limits, self._on_result)

    async def tick(self) -> None:
        await self.store.refresh()
        await self.poller.tick()

    def _on_result(self, producer: str, ruling: Ruling, took_s: float) -> None:
        self.engine.metrics.on_check(producer, ruling.result.value, took_s)

    def check_url(self, url: str) -> None:
        """Refuse a URL outside the operator's allow-list when it is registered, not only when it is called."""
        try:
            self._session.check_url(url)
        except (NotAllowed, ValueError) as error:
            raise Problem("bad_request", f"check_url: {error}") from error

    def hello(self, producer: str) -> None:
        self.poller.hello(producer)

    async def ask_now(self, producer: str, ids: Sequence[str]) -> list[dict[str, object]]:
        """Ask about these ids at once and apply the answers: an operator's first tool (R4). Of another producer's nothing is asked: it says whose."""
        found: list[ports.DueCheck] = []
        others: list[dict[str, object]] = []
        for id in dict.fromkeys(map(parse_id, ids)):
            due = await self.engine.call(verdicts.claim_one, id)
            if due.producer.name == producer:
                found.append(check_of(due))
            else:
                whose = f"not asked: it is of producer {due.producer.name}. Ask: halfmsg check {due.producer.name} {format_id(due.tx.id)}"
                others.append({"id": format_id(due.tx.id), "verdict": Result.NO_ANSWER.value, "detail": whose})
        started = self.engine.clock.monotonic()
        rulings = await self._first_answers(producer, found)
        took_ms = int((self.engine.clock.monotonic() - started) * 1000)
        await self.store.apply_rulings([(check, rulings[check.id], took_ms) for check in found])
        return others + [
            {"id": check.id, "verdict": rulings[check.id].result.value, "detail": rulings[check.id].detail, "took_ms": took_ms} for check in found
        ]

    async def _first_answers(self, producer: str, checks: list[ports.DueCheck]) -> dict[str, Ruling]:
        rulings = verdict.no_answers([check.id for check in checks], "no way to ask: no stream and no check_url")
        if not checks:
            return rulings
        asked = question.build(producer, checks[0].source, checks)
        for way in self.ways.ways(producer):
            rulings = dict(await way.ask(asked, self.engine.settings.check.question_timeout_s))
            if any(ruling.result is not Result.NO_ANSWER for ruling in rulings.values()):
                break
            await asyncio.sleep(0)
        return rulings
