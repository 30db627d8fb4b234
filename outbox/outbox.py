"""The outbox: publish inside your own transaction, hand over after it, answer for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, Unpack, overload
from uuid import UUID

from msgspec import Struct

from halfmsg.checkback import Answer, Question, Verdict, frames
from halfmsg.txclient import Client, HalfmsgError, Ids, Message, MessageOptions, UsageError
from halfmsg.txclient._message import name_of
from halfmsg.txclient._sync import run as in_portal

from . import _clock, answering, fence, tables
from .adapters import adapter_of
from .effects import Aside, AsyncAdapter, Steps
from .fence import Attempt, Drawn
from .home import Home, own_transaction
from .lent import lent_on, run_on_async, run_on_sync
from .relay import Relay

if TYPE_CHECKING:
    from .block import Block
    from .half import Half

log = logging.getLogger("halfmsg.outbox")
C = TypeVar("C")
T = TypeVar("T")
BEATS_MAX: Final = 16
TOPICS_EVERY_S: Final = 5.0
LEAVE_WAIT_S: Final = 5.0
LOOK_MAX_S: Final = 5.0
LOOK_AGAIN_S: Final = 60.0
SILENCE: Final = 1.5
"""Of the budget of an answer, on one connection: it is given up, and the next question has another, before twice the budget is over."""
PREPARE_TIMEOUT_S: Final = 0.25
BODY_BYTES_MAX: Final = 4 * 1024 * 1024
TRANSACTION_BYTES_MAX: Final = 7 * 1024 * 1024
MESSAGE_BYTES: Final = 1_000
"""What a message weighs on the wire besides body and attributes (topic, key, tag, digest), at the most."""


class AwaitsExecute(Protocol):
    """aiosqlite, psycopg AsyncConnection: what makes a publish awaitable."""

    def execute(self, *args: Any, **kwargs: Any) -> Awaitable[Any]: ...


class Receipt(Struct, frozen=True):
    """What publish returns; true only once YOUR transaction commits."""

    message_id: str
    transaction_id: str
    topic: str
    key: str | None
    sequence: int | None


class Outbox:
    """A producer's side of halfmsg over one database of its own. No I/O before the first use.

    `db`: where relay and check-back get THEIR connections, `sqlite:///FILE` or `postgresql://…`. While `async with outbox` (or `with
    outbox`) is open, this process hands over what was published here and answers the coordinator's questions; without it the rows wait
    for any process that does, or for `halfmsg outbox relay`.
    """

    def __init__(self, client: Client, producer: str, db: object, *, tables: str = "halfmsg_", prepare_timeout_s: float = PREPARE_TIMEOUT_S) -> None:
        """Raises UsageError: bad_name, bad_url, unknown_database, driver_missing."""
        self.client = client
        self.name = name_of(producer, "producer")
        self.prepare_timeout_s = prepare_timeout_s
        self._home = Home(db, tables)
        self._ids = Ids()
        self._source: bytes | None = None
        self._purged_before: int | None = None
        self._looking = os.getpid(), threading.Lock()
        self._look_after = 0.0
        self._known: Mapping[str, Mapping[str, Any]] = {}
        self._dev = False
        self._relay_of: tuple[int, Relay] | None = None
        self._stop: asyncio.Event | None = None
        self._tasks: list[asyncio.Task[None]] = []

    # --- the ways in ---------------------------------------------------------------------------------------------------------

    def prepared(self, *messages: Message, required: bool = False, id: str | None = None) -> Half:
        """A block around your transaction for what is known before it: stored and invisible at the coordinator; then `half.fence(on)`."""
        from .half import Half

        if not messages:
            raise UsageError("bad_request", "a half message has at least one message")
        return Half(self, list(self._checked(messages)), required, self._id(id))

    @overload
    def publish(self, on: AwaitsExecute, topic: str, body: object, **options: Unpack[MessageOptions]) -> Coroutine[Any, Any, Receipt]: ...  # type: ignore[overload-overlap]
    @overload
    def publish(self, on: object, topic: str, body: object, **options: Unpack[MessageOptions]) -> Receipt: ...
    def publish(self, on: Any, topic: str, body: object, **options: Unpack[MessageOptions]) -> Any:
        """Write one message beside your rows, in the transaction that is open on `on`: no network, no commit.

        A sync connection gives a Receipt, an async one an awaitable. What the coordinator would refuse for ever raises here (API §0.9).
        """
        messages = self._checked([Message(topic, body, **options)])
        return self._write(on, messages, lambda receipts: receipts[0])

    @overload
    def publish_many(self, on: AwaitsExecute, messages: Iterable[Message]) -> Coroutine[Any, Any, Sequence[Receipt]]: ...  # type: ignore[overload-overlap]
    @overload
    def publish_many(self, on: object, messages: Iterable[Message]) -> Sequence[Receipt]: ...
    def publish_many(self, on: object, messages: Iterable[Message]) -> Any:
        """Several messages as one halfmsg transaction; numbers are drawn in sorted key order."""
        return self._write(on, self._checked(messages), lambda receipts: receipts)

    @overload
    def transaction(self, on: C, /) -> Block[C]: ...
    @overload
    def transaction(self) -> Block[Any]: ...
    def transaction(self, on: Any = None, /) -> Block[Any]:  # type: ignore[misc]
        """Open a transaction on your connection, or on one of the outbox's own; its messages are one halfmsg transaction."""
        from .block import Block

        return Block(self, on)

    def _write(self, on: Any, messages: list[Message], pick: Callable[[list[Receipt]], Any]) -> Any:
        attempt = Attempt(self._id(None), self._mark(), stored=False)

        def steps(in_block: bool) -> Steps[list[Drawn]]:
            return fence.publish(self._home.tables, attempt, messages, self._source, in_block=in_block)

        return self.run_on(on, steps, lambda drawn: self._receipts(attempt, drawn, pick))

    def _receipts(self, attempt: Attempt, drawn: list[Drawn], pick: Callable[[list[Receipt]], Any]) -> Any:
        if self._relay is not None:
            self._relay.expect()
        return pick(receipts_of(attempt.id, drawn))

    def run_on(self, on: Any, steps: Callable[[bool], Steps[T]], then: Callable[[T], Any]) -> Any:
        """Run on the user's connection, in its colour. An error ends its transaction (R8), or fails what is lent on it: `steps(True)`."""
        adapter = adapter_of(on)
        if adapter.dialect != self._home.dialect:
            raise UsageError("other_database", f"the connection is {adapter.dialect}, the Outbox's database is {self._home.dialect}")
        lent = lent_on(adapter.conn)
        ours = self._learnt(steps, in_block=lent is not None)
        if not adapter.is_async:
            return then(run_on_sync(adapter, ours))

        async def running() -> Any:
            return then(await run_on_async(adapter, lent, ours))

        return running() if lent is None else lent.awaited(running)

    def _learnt(self, steps: Callable[[bool], Steps[T]], *, in_block: bool) -> Steps[T]:
        """Which database this is, is learnt with the connection in hand: what comes behind a publish on it, comes behind it then, too."""
        if self._source is None:
            yield Aside(self.learn_source)
        return (yield from steps(in_block))

    # --- which database ------------------------------------------------------------------------------------------------------

    def learn_source(self) -> None:
        """The id of the database behind the URL, where this Outbox was never opened: a connection to another one that has the tables too must
        be refused, since no relay would ever look there (P2). What cannot be read is asked again after a minute; until then any will do.
        """
        if self._looking[0] != os.getpid():  # a fork while somebody looked: nobody would let go of that one here
            self._looking = os.getpid(), threading.Lock()
        looking = self._looking[1]
        if self._source is not None or not looking.acquire(timeout=LOOK_MAX_S):
            return
        try:
            if self._source is None and _clock.monotonic() >= self._look_after:
                self._look_after = _clock.monotonic() + LOOK_AGAIN_S
                self._source = self._home.look_source()
        except Exception:
            log.debug("outbox %s: which database its URL leads to is not known yet", self.name, exc_info=True)
        finally:
            looking.release()

    def _checked(self, messages: Iterable[Message]) -> list[Message]:
        found = list(messages)
        if not 1 <= len(found) <= 1_000:
            raise UsageError("too_large", f"{len(found)} messages; a transaction has 1 to 1,000")
        for message in found:
            self._check(message)
        check_size(found)
        return found

    def _check(self, message: Message) -> None:
        """What would be refused for ever, as far as the coordinator has been heard; else the relay lists it (API §9.6)."""
        unbuilt = (message.delay_ms, message.deliver_at, message.expires_in_ms, message.priority)
        if any(value is not None for value in unbuilt):
            raise UsageError("not_supported", "delay, deliver_at, expires_in and priority are known, but not built yet")
        topic = self._known.get(message.topic)
        if topic is None:
            if self._known and not self._dev:
                create = f"halfmsg topic create {message.topic} --kind {'unordered' if message.key is None else 'sequence'}"
                raise UsageError("topic_not_found", f"no topic {message.topic} at the coordinator; make it with: {create}")
            return
        kind = topic["kind"]
        if (kind == "unordered") != (message.key is None):
            has = "needs a key" if message.key is None else "takes no key, since a key means order"
            raise UsageError("combination_refused", f"topic {message.topic} is {kind} and {has}")
        if kind == "arrival":
            raise UsageError("combination_refused", f"topic {message.topic} is in order of arrival: use Client.send, or make it a sequence topic")
        if len(message.body) > topic["max_message_bytes"]:
            raise UsageError("too_large", f"a body of {len(message.body)} bytes; topic {message.topic} takes {topic['max_message_bytes']}")

    def _mark(self) -> int | None:
        """The newest coordinator time seen, or `purged_before` as read at start (R3). None: the local transaction will read it."""
        return self._purged_before if self.client.time_ms is None else self.client.time_ms

    def _id(self, text: str | None) -> bytes:
        try:
            return UUID(text or self._ids.transaction()).bytes
        except ValueError as error:
            raise UsageError("bad_request", f"id={text!r} is not a UUID") from error

    # --- answering (Decides) -------------------------------------------------------------------------------------------------

    @property
    def source_id(self) -> str | None:
        return None if self._source is None else self._source.hex()

    @property
    def source(self) -> str | None:
        return self.source_id

    async def decide(self, questions: Sequence[Question], /) -> Mapping[str, Answer]:
        """What became of these: final rows first, then a tombstone for each absent one, within 4 s; the rest is left out (R28).

        A database that falls silent ends it after 8 s: with what was read by then, else TimeoutError.
        """
        found: dict[str, Answer] | None = None
        deadline = _clock.monotonic() + answering.BUDGET_S
        try:
            async with asyncio.timeout(2 * answering.BUDGET_S):
                source, found = await self._read(questions, deadline)
                self._source = self._source or source
                if source != self._source:
                    words = "outbox %s: its URL leads to another database now: %s, and no longer %s; nothing is answered"
                    log.error(words, self.name, source.hex(), self.source_id)
                    return {}
                await self._rule_absent(questions, found, source, deadline)
        except TimeoutError:
            if found is None:
                raise
            log.warning("outbox %s: a question is answered in part only: the database says nothing", self.name)
        return found

    async def _read(self, questions: Sequence[Question], deadline: float) -> tuple[bytes, dict[str, Answer]]:
        reading = answering.read_positive(self._home.tables, questions, lambda: _clock.monotonic() < deadline)
        return await self._home.run(reading, limit_s=SILENCE * answering.BUDGET_S)

    async def _rule_absent(self, questions: Sequence[Question], found: dict[str, Answer], source: bytes, deadline: float) -> None:
        absent = [q for q in questions if q.id not in found and (q.source is None or q.source == source.hex())]
        if absent:
            try:
                await self._rule_all(absent, found, deadline)
            except Exception:  # a replica that takes no writes, a lost connection: what is proven is said, the rest is left out
                log.warning("outbox %s: a question is answered in part only", self.name, exc_info=True)

    async def _rule_all(self, absent: Sequence[Question], found: dict[str, Answer], deadline: float) -> None:
        async with self._home.impatient(SILENCE * answering.BUDGET_S) as adapter:
            for question in absent:
                if _clock.monotonic() >= deadline:
                    break
                answer = await self._rule(adapter, question)
                if answer is not None:
                    found[question.id] = answer

    async def _rule(self, adapter: AsyncAdapter, question: Question) -> Answer | None:
        try:
            return await adapter.run(own_transaction(answering.rule(self._home.tables, question, self._source)))
        except Exception as error:
            if not answering.is_locked(error):
                raise
            if adapter.dialect == "postgresql":
                await adapter.conn.rollback()
            return Answer(Verdict.RUNNING)

    async def holders(self, missing: Sequence[Any]) -> Mapping[Any, str | None]:
        """Who holds numbers that have not arrived (R5). Those that are not read within 8 s are left out."""
        found = {}
        try:
            async with asyncio.timeout(2 * answering.BUDGET_S):
                for place in missing:
                    asking = answering.who_holds(self._home.tables, place.topic, place.key, place.sequence)
                    found[place] = await self._home.run(asking, limit_s=SILENCE * answering.BUDGET_S)
        except TimeoutError:
            log.warning("outbox %s: holders of numbers are told in part only: the database says nothing", self.name)
        return found

    async def answer(self, question: Mapping[str, Any], /) -> Mapping[str, Any]:
        """A `check` frame of the stream."""
        asked = frames.read_frame(question)
        answers = await self.decide(asked)
        held = await self.holders(asked.missing) if asked.missing else None
        return frames.write_verdicts(asked, answers, self.source_id, held)

    async def beat(self) -> Mapping[str, Any]:
        """Append a random value to the last 16 in meta and report them (R7)."""
        async with asyncio.timeout(2 * answering.BUDGET_S):
            beats = _beat(self._home.tables, os.urandom(8))
            return {"beats": await self._home.run(beats, transaction=True, limit_s=SILENCE * answering.BUDGET_S)}

    # --- open and close ------------------------------------------------------------------------------------------------------

    def schema(self, dialect: str) -> str:
        """The DDL of the tables, for your own migrations. Then run `halfmsg outbox install` once: it adds the rows, as the database's own id."""
        if dialect not in ("sqlite", "postgresql"):
            raise UsageError("unknown_database", f"{dialect!r} is not known here yet; there are sqlite and postgresql")
        return ";\n".join(tables.statements(dialect, self._home.tables.prefix)) + ";\n"  # type: ignore[arg-type]

    @property
    def _relay(self) -> Relay | None:
        """Of this process: after a fork the parent's runs in the parent, and its loop is no loop of the child's."""
        return self._relay_of[1] if self._relay_of is not None and self._relay_of[0] == os.getpid() else None

    @_relay.setter
    def _relay(self, relay: Relay | None) -> None:
        self._relay_of = None if relay is None else (os.getpid(), relay)

    @property
    def is_open(self) -> bool:
        return self._relay is not None

    async def _load_source(self) -> None:
        if self._source is None or self._purged_before is None:
            meta = await self._home.run(fence.our_meta(self._home.tables, self._source))
            self._source, self._purged_before = meta.source, meta.purged_before

    async def __aenter__(self) -> Outbox:
        if self.is_open:
            raise UsageError("already_open", "this Outbox is open already; one block a process is enough")
        self._stop = asyncio.Event()
        try:
            await self._load_source()
            self._relay = Relay(self.client, self.name, self._home, self._source or b"")
            await self.client.attach(self)
            await self._learn()
        except BaseException:  # cancelled: nothing of a half-opened outbox stays
            self._relay = None
            try:
                await self.client.detach(self)
            finally:
                await self._home.aclose()
            raise
        self._tasks = [asyncio.create_task(self._relay.run(self._stop)), asyncio.create_task(self._learn_for_ever())]
        return self

    async def __aexit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /) -> None:
        relay, self._relay = self._relay, None
        if relay is None or self._stop is None:
            return
        self._stop.set()
        relay.wake()
        for task in self._tasks:
            task.cancel()
        async with contextlib.AsyncExitStack() as leaving:  # all of it also where this is cancelled meanwhile: nothing stays
            leaving.push_async_callback(self._home.aclose)
            leaving.push_async_callback(self.client.detach, self)
            leaving.push_async_callback(relay.release_lanes)
            await asyncio.gather(*self._tasks, return_exceptions=True)
            left = await relay.drain(LEAVE_WAIT_S)
            if left:
                log.warning("outbox %s: left_for_relay=%d row sets; the next relay hands them over", self.name, left)

    def __enter__(self) -> Outbox:
        """The same in the background thread of this process, for code without a loop."""
        in_portal(self.__aenter__())
        return self

    def __exit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /) -> None:
        in_portal(self.__aexit__(t, e, tb))
        self._home.close_sync()

    async def _learn(self) -> None:
        """Topics and their limits, so that what would be refused for ever raises before the local commit."""
        try:
            async with asyncio.timeout(2.0):
                info = await self.client.get("/v1/info")
                self._known, self._dev = await self.client.topics(), bool(info.get("dev"))
        except (HalfmsgError, TimeoutError) as error:
            log.debug("outbox %s: topics are not known yet: %s", self.name, error)

    async def _learn_for_ever(self) -> None:
        stop = self._stop
        while stop is not None and not stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TOPICS_EVERY_S):
                    await stop.wait()
            await self._learn()


def check_size(messages: Iterable[Message], before: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    """What one halfmsg transaction weighs so far: (bodies, with all else). Raises UsageError(too_large) past 4 MiB, or a frame."""
    bodies, whole = before
    for message in messages:
        bodies += len(message.body)
        attributes = sum(len(name) + len(value) for name, value in (message.attributes or {}).items())
        whole += len(message.body) + 4 * attributes + MESSAGE_BYTES
    if bodies > BODY_BYTES_MAX or whole > TRANSACTION_BYTES_MAX:
        limits = f"{BODY_BYTES_MAX} and {TRANSACTION_BYTES_MAX}"
        raise UsageError("too_large", f"{bodies} bytes of bodies, {whole} in all; a transaction has at most {limits}")
    return bodies, whole


def receipts_of(id: bytes, drawn: Iterable[Drawn]) -> list[Receipt]:
    text = fence.id_text(id)
    return [Receipt(f"{text}-{each.index}", text, each.message.topic, each.message.key, each.sequence) for each in drawn]


def _beat(names: tables.Tables, fresh: bytes) -> Steps[list[str]]:
    rows = yield names.sql("meta")
    before = next((bytes(row[1]) for row in rows if row[0] == tables.META_NAMES.index("beats")), b"")
    beats = [*(before[at : at + 8] for at in range(0, len(before), 8)), fresh][-BEATS_MAX:]
    yield names.sql("meta_set", b"".join(beats), "beats")
    return [beat.hex() for beat in beats]
