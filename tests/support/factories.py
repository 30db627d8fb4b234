"""Things in a named state, one call each. They go through the real transaction functions, so that what a test starts from can happen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from halfmsg.coordinator.digests import message_digest, transaction_digest
from halfmsg.coordinator.messages import (
    By,
    Content,
    Decision,
    Delivery,
    ExtendMany,
    Fetch,
    Force,
    Group,
    ItemResult,
    Kind,
    NewMessage,
    Park,
    Settle,
    SettleMany,
    Source,
    Topic,
    TransactionView,
    Tx,
    Verdict,
)  # fmt: skip
from halfmsg.coordinator.service import fetching, groups, producers, settling, topics, transactions, verdicts
from halfmsg.coordinator.states import State
from tests.support.stores import Store

PRODUCER = "orders"
_encode = msgspec.msgpack.Encoder().encode


def an_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def new_message(
    topic: str = "plain", body: bytes = b"{}", *, index: int = 0, key: bytes | str | None = None, tag: str | None = None, sequence: int | None = None,
    attributes: dict[str, str] | None = None,
) -> NewMessage:  # fmt: skip
    key = key.encode() if isinstance(key, str) else key
    digest = message_digest(topic=topic, key=key, tag=tag, content_type="application/json", body=body, attributes=attributes)
    return NewMessage(index, topic, key, tag, _encode(("application/json", attributes, None)), body, digest, sequence)


def content(
    id: bytes, *messages: NewMessage, submit: bool = False, producer: str | None = PRODUCER, mark: int | None = None, source: bytes | None = None
) -> Content:
    messages = messages or (new_message(),)
    return Content(id, producer, source, mark, transaction_digest(m.digest for m in messages), messages, None, submit)


@dataclass
class World:
    """A store with a producer that can be asked, and short words for what a test does to it."""

    store: Store
    ids: int = 0
    groups: dict[str, list[Group]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store.run(producers.put, producers.ProducerWanted(PRODUCER, "http://127.0.0.1:1/check", "halfmsg", lambda n: b"s" * n))

    @property
    def source(self) -> Source:
        return self.store.tx.source(PRODUCER)  # type: ignore[no-any-return]

    def bind(self, db_id: bytes) -> Source:
        """A library says hello for it, with its database."""
        return self.store.run(producers.hello, producers.Hello(PRODUCER, db_id))  # type: ignore[no-any-return]

    @property
    def now(self) -> int:
        return self.store.clock.now_ms()

    def next_id(self) -> bytes:
        self.ids += 1
        return an_id(self.ids)

    # --- names ---

    def topic(self, name: str = "plain", kind: Kind = Kind.UNORDERED, **more: Any) -> Topic:
        more.setdefault("allow_no_group", True)
        return self.store.run(topics.put, topics.TopicWanted(name, kind, **more))[0]  # type: ignore[no-any-return]

    def group(
        self, name: str = "g", topic: str = "plain", *, start: str = "earliest", lease_s: float = 30, max_attempts: int | None = 16,
        tag: str | None = None, attributes: tuple[tuple[str, str], ...] = (), backoff_s: tuple[float, float] = (1, 600),
    ) -> Group:  # fmt: skip
        wanted = groups.GroupWanted(
            name,
            (groups.Wanted(topic, tag, attributes),),
            start,
            int(lease_s * 1000),
            max_attempts,
            int(backoff_s[0] * 1000),
            int(backoff_s[1] * 1000),
        )
        found: list[Group] = self.store.run(groups.put, wanted)[0]
        return found[0]

    # --- transactions ---

    def prepare(self, *messages: NewMessage, id: bytes | None = None, **more: Any) -> TransactionView:
        return self.store.run(transactions.store_content, content(id or self.next_id(), *messages, **more))  # type: ignore[no-any-return]

    def submit(self, *messages: NewMessage, id: bytes | None = None, **more: Any) -> TransactionView:
        return self.prepare(*messages, id=id, submit=True, **more)

    def send(self, topic: str = "plain", body: bytes = b"{}", **more: Any) -> TransactionView:
        """One plain send."""
        return self.submit(new_message(topic, body, **more), producer=None)

    def send_many(self, count: int, topic: str = "plain", **more: Any) -> None:
        for number in range(count):
            self.send(topic, b"%d" % number, **more)

    def sequence(self, number: int, key: str = "k", topic: str = "seq", body: bytes | None = None, **more: Any) -> TransactionView:
        """One message of a sequence topic, submitted with its number."""
        return self.submit(new_message(topic, b"%d" % number if body is None else body, key=key, sequence=number, **more))

    def commit(self, view: TransactionView, *, numbers: tuple[int | None, ...] | None = None, digest: bytes | None = None) -> TransactionView:
        command = Decision(view.tx.id, True, PRODUCER, None, view.tx.digest if digest is None else digest, numbers)
        return self.store.run(transactions.decide, command)  # type: ignore[no-any-return]

    def rollback(self, id: bytes) -> TransactionView:
        return self.store.run(transactions.decide, Decision(id, False, PRODUCER, None))  # type: ignore[no-any-return]

    def ruling(self, tx: Tx, word: str, *, digest: bytes | None = None, numbers: tuple[int | None, ...] | None = None, **more: Any) -> str:
        given: dict[str, Any] = {"detail": "", "took_ms": 1, "next_check": self.now + 5_000, "used_up": False, "too_old": False} | more
        ruled = verdicts.Ruled(n=tx.n, verdict=Verdict(word), digest=digest, numbers=numbers, **given)
        return self.store.run(verdicts.apply_ruling, ruled)  # type: ignore[no-any-return]

    def park(self, id: bytes, reason: str = "test") -> TransactionView:
        return self.store.run(verdicts.park, Park(id, reason))  # type: ignore[no-any-return]

    def force(self, id: bytes, *, commit: bool, numbers: tuple[int | None, ...] | None = None, if_state: str | None = None) -> TransactionView:
        return self.store.run(verdicts.force, Force(id, commit, "test", numbers, if_state))  # type: ignore[no-any-return]

    def find(self, id: bytes) -> Tx:
        found = self.store.tx.find(id)
        if found is None:
            raise AssertionError("no such transaction")
        return found  # type: ignore[no-any-return]

    def show(self, id: bytes) -> TransactionView:
        return transactions.show(self.store.tx, 0, id)

    # --- deliveries ---

    def fetch(
        self, group: str = "g", count: int = 100, *, member: str | None = None, lease_s: float | None = None, inbox: bytes | None = None,
        may_be_lost: bool = False,
    ) -> list[Delivery]:  # fmt: skip
        lease_ms = None if lease_s is None else int(lease_s * 1000)
        return self.store.run(fetching.fetch, Fetch(group, count, lease_ms, member, inbox, may_be_lost))  # type: ignore[no-any-return]

    def settle(self, what: str, *hand: Delivery | str, group: str = "g", reason: str = "no", **more: Any) -> list[ItemResult]:
        tokens = [each if isinstance(each, str) else each.token for each in hand]
        items = tuple(Settle(token, what, "" if what == "ack" else reason, **more) for token in tokens)
        return self.store.run(settling.settle, SettleMany(group, items))  # type: ignore[no-any-return]

    def ack(self, *hand: Delivery | str, group: str = "g") -> list[ItemResult]:
        return self.settle("ack", *hand, group=group)

    def nack(self, *hand: Delivery | str, group: str = "g", **more: Any) -> list[ItemResult]:
        return self.settle("nack", *hand, group=group, **more)

    def reject(self, *hand: Delivery | str, group: str = "g", reason: str = "never") -> list[ItemResult]:
        return self.settle("reject", *hand, group=group, reason=reason)

    def extend(self, *hand: Delivery | str, by_s: float = 30, group: str = "g") -> list[ItemResult]:
        tokens = tuple(each if isinstance(each, str) else each.token for each in hand)
        return self.store.run(settling.extend, ExtendMany(group, tokens, int(by_s * 1000)))  # type: ignore[no-any-return]

    def expire(self) -> int:
        return self.store.run(settling.expire_tick)  # type: ignore[no-any-return]

    def later(self, seconds: float) -> None:
        self.store.clock.advance(seconds)


def half_message(world: World, *messages: NewMessage) -> TransactionView:
    """Prepared: stored and invisible."""
    return world.prepare(*messages)


def committed_message(world: World, *messages: NewMessage) -> TransactionView:
    return world.commit(world.prepare(*messages), numbers=tuple(message.sequence for message in messages))


def rolled_back_transaction(world: World, *messages: NewMessage) -> TransactionView:
    return world.rollback(world.prepare(*messages).tx.id)


def parked_transaction(world: World, *messages: NewMessage) -> TransactionView:
    return world.park(world.prepare(*messages).tx.id)


def transaction_in(world: World, state: State | None, *messages: NewMessage) -> Tx | None:
    """One in a state of the table; None: an id that the coordinator has never seen is left to the caller."""
    if state is None:
        return None
    make = {
        State.PREPARED: half_message, State.COMMITTED: committed_message, State.ROLLED_BACK: rolled_back_transaction,
        State.PARKED: parked_transaction,
    }  # fmt: skip
    return make[state](world, *messages).tx


def leased_delivery(world: World, *, group: str = "g", member: str | None = None, lease_s: float | None = None) -> Delivery:
    """One message in a hand."""
    world.send()
    [given] = world.fetch(group, 1, member=member, lease_s=lease_s)
    return given


def dead_letter(world: World, *, group: str = "g") -> Delivery:
    given = leased_delivery(world, group=group)
    world.reject(given, group=group)
    return given


def bodies(hand: list[Delivery]) -> list[bytes]:
    return [each.row.body for each in hand]


def sequences(hand: list[Delivery]) -> list[int | None]:
    return [each.row.seq for each in hand]


__all__ = [
    "PRODUCER", "By", "World", "an_id", "bodies", "committed_message", "content", "dead_letter", "half_message", "leased_delivery", "new_message",
    "parked_transaction", "rolled_back_transaction", "sequences", "transaction_in",
]  # fmt: skip
