"""M3: one consumer group, one ordering key, three messages, two consumers, and the inbox in their database.

A lease may end while its holder works on; the holder is then a zombie whose handler may still run, and whose acks and nacks are
refused by their dead token (they are left out: a refused word does nothing). An ack that is lost is one that never comes. Attempts,
leases and dead letters are `halfmsg.coordinator.policies`, the inbox is `halfmsg.outbox.inbox_rules`. One run at a time is out for
the key; several runs of a member, lanes and places are M6. Effects and inbox rows are one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from halfmsg.coordinator import policies
from halfmsg.outbox import inbox_rules
from halfmsg.outbox.inbox_rules import Claim

NUMBERS = (1, 2, 3)
POLICY = policies.RetryPolicy(max_attempts=2)


class Variant(NamedTuple):
    """As designed, unless a flag is changed."""

    inbox: Literal["rules", "id", "above_last", "next"] = "rules"  # R6
    run_max: int = 2
    given_back: bool = True  # R13: a nack gives back the later ones of its key in the hand
    in_order: bool = True  # R13: the hand is worked off and acked in order
    client_stops: bool = True  # R13, the client's half: after a failure it drops the later ones of the key that it holds
    named: Literal["since_ack", "twice", "never"] = "since_ack"  # R6; a coordinator that restarted may name every dead letter again
    filtered: frozenset[int] = frozenset()  # by tag, at the group
    replays: int = 0  # R18: seek to the start, generation + 1
    lease_ends: int = 3
    nacks: int = 1
    redrives: int = 1


class Copy(NamedTuple):
    """A delivery in a consumer's memory. `live`: its token is still the one of the hand."""

    number: int
    live: bool
    redriven: bool
    missed: tuple[int, ...]
    generation: int


class Item(NamedTuple):
    """What the group knows of one message: log (not handed out yet) | out | retry | done | dead."""

    status: str = "log"
    attempts: int = 0
    redriven: bool = False


class Inbox(NamedTuple):
    """One generation's rows, and what the handlers did: (number, whether the delivery was redriven)."""

    last: int = 0
    missed: frozenset[int] = frozenset()
    effects: tuple[tuple[int, bool], ...] = ()

    def has(self, number: int) -> bool:
        return any(number == done for done, _ in self.effects)


class Model(NamedTuple):
    items: tuple[Item, ...]
    holder: int = -1
    hand: tuple[int, ...] = ()  # open numbers of the run that is out
    alone: bool = False  # it had one message only
    copies: tuple[tuple[Copy, ...], tuple[Copy, ...]] = ((), ())
    acks: frozenset[int] = frozenset()  # on their way, with the live token
    passed: frozenset[int] = frozenset()  # dead-lettered since the key's last ack
    inboxes: tuple[Inbox, ...] = (Inbox(),)
    killed: bool = False  # dead-lettered because the inbox would not take its number
    lease_ends: int = 0
    nacks: int = 0
    redrives: int = 0


class Run:
    """The transitions of one variant."""

    def __init__(self, variant: Variant) -> None:
        self.v = variant
        self.initial = Model(items=tuple(Item("done") if number in variant.filtered else Item() for number in NUMBERS))

    def successors(self, s: Model) -> Iterable[tuple[str, Model]]:
        if not s.hand:
            for consumer in (0, 1):
                yield from self._fetch(s, consumer)
        for consumer in (0, 1):
            if s.copies[consumer] and not any(copy.live for copy in s.copies[consumer]):  # before that: as if its lease ended
                yield f"{name(consumer)} starts again", s._replace(copies=swap(s, consumer, ()))
            for place, copy in enumerate(s.copies[consumer]):
                if place and self.v.in_order:
                    continue
                yield from self._handle(s, consumer, copy)
        for number in s.acks:
            if number == s.hand[0] or not self.v.in_order:
                yield f"ack {number} arrives", self._settle(s, number, Item("done"))._replace(passed=s.passed - set(range(number)))
        if s.hand and s.lease_ends < self.v.lease_ends:
            yield "the lease ends", self._lease_end(s)
        for number in NUMBERS:
            if s.items[number - 1].status == "dead" and s.redrives < self.v.redrives:
                yield f"redrive {number}", put(s, number, Item("retry", 0, True))._replace(redrives=s.redrives + 1)
        if len(s.inboxes) <= self.v.replays:
            stale = stale_copies(s)._replace(items=self.initial.items, holder=-1, hand=(), acks=frozenset(), passed=frozenset())
            yield "seek to the start", stale._replace(inboxes=(*s.inboxes, Inbox()))

    def violations(self, s: Model) -> Iterable[str]:
        for generation, inbox in enumerate(s.inboxes):
            numbers = [number for number, _ in inbox.effects]
            if len(set(numbers)) < len(numbers):
                yield f"P6: an effect happened twice in generation {generation}"
            for place, (number, redriven) in enumerate(inbox.effects):
                if not redriven and any(number < before for before in numbers[:place]):
                    yield f"P7: effect {number} after effect {max(numbers[:place])}, and not by a redrive"
        for number in NUMBERS:
            if s.items[number - 1].status == "done" and number not in self.v.filtered and not s.inboxes[-1].has(number):
                yield f"P2: {number} was acked and its effect has not happened"
        if s.killed:
            yield "P2: a message that never failed is dead-lettered for its number"

    def settled(self, s: Model) -> bool:
        return all(item.status in ("done", "dead") for item in s.items)

    # ---- the coordinator

    def _fetch(self, s: Model, consumer: int) -> Iterable[tuple[str, Model]]:
        waiting = [number for number in NUMBERS if s.items[number - 1].status in ("log", "retry")]
        if not waiting or any(copy.live for copy in s.copies[consumer]):
            return
        first = s.items[waiting[0] - 1]
        run = tuple(waiting[: 1 if first.status == "retry" else self.v.run_max])
        dead = frozenset(number for number in NUMBERS if s.items[number - 1].status == "dead")
        for named in {"since_ack": {s.passed}, "twice": {s.passed, s.passed | dead}, "never": {frozenset[int]()}}[self.v.named]:
            copies = tuple(
                Copy(number, True, s.items[number - 1].redriven, tuple(sorted(n for n in named if n < number)), len(s.inboxes) - 1) for number in run
            )
            after = s
            for number in run:
                after = put(after, number, s.items[number - 1]._replace(status="out"))
            after = after._replace(holder=consumer, hand=run, alone=len(run) == 1, copies=swap(s, consumer, s.copies[consumer] + copies))
            yield f"{name(consumer)} is handed {run}, missed={sorted(named)}", after

    def _settle(self, s: Model, number: int, item: Item) -> Model:
        """`number` leaves the hand as `item`."""
        hand = tuple(other for other in s.hand if other != number)
        passed = s.passed | {number} if item.status == "dead" else s.passed
        s = put(s, number, item)._replace(hand=hand, acks=s.acks - {number}, passed=passed)
        return s if hand else stale_copies(s)._replace(holder=-1, alone=False)

    def _lease_end(self, s: Model) -> Model:
        s = stale_copies(s)._replace(lease_ends=s.lease_ends + 1)
        for number in s.hand:
            item = s.items[number - 1]
            s = self._settle(s, number, self._after(item, policies.after_lease_end(POLICY, alone=s.alone, attempts=item.attempts, now_ms=0)))
        return s

    def _after(self, item: Item, decided: policies.Again | policies.Dead) -> Item:
        return Item("dead" if isinstance(decided, policies.Dead) else "retry", decided.attempts, item.redriven)

    # ---- a consumer

    def _handle(self, s: Model, consumer: int, copy: Copy) -> Iterable[tuple[str, Model]]:
        who, number = f"{name(consumer)}{'' if copy.live else ' (lease over)'}", copy.number
        claim, after = self._claim(s, copy)
        if claim is None:
            after = self._nack(s, consumer, copy)
            yield f"{who}: the inbox refuses {number}", after._replace(killed=s.killed or after.items[number - 1].status == "dead")
            return
        after = drop(after, consumer, copy)
        yield f"{who}: {claim.value} {number}", after._replace(acks=s.acks | {number}) if copy.live else after
        if s.nacks < self.v.nacks:
            yield f"{who}: handler of {number} fails", self._nack(s, consumer, copy)._replace(nacks=s.nacks + 1)

    def _claim(self, s: Model, copy: Copy) -> tuple[Claim | None, Model]:
        """The handler's transaction: the inbox's answer (None: it will not take it) and the state after its commit."""
        inbox, number = s.inboxes[copy.generation], copy.number
        match self.v.inbox:
            case "rules":
                claim = inbox_rules.judge(last=inbox.last, number=number, redriven=copy.redriven, in_missed=number in inbox.missed)
            case "id":
                claim = Claim.DUPLICATE if inbox.has(number) else Claim.RUN
            case "above_last":
                claim = Claim.RUN if number > inbox.last else Claim.DUPLICATE
            case "next":
                if number > inbox.last + 1:
                    return None, s
                claim = Claim.RUN if number > inbox.last else Claim.DUPLICATE
        if claim is Claim.DUPLICATE:
            return claim, s
        missed = inbox.missed - {number}
        if claim is Claim.RUN:
            missed |= set(inbox_rules.newly_missed(last=inbox.last, number=number, named=copy.missed))
        inbox = Inbox(max(inbox.last, number), missed, (*inbox.effects, (number, copy.redriven)))
        return claim, s._replace(inboxes=(*s.inboxes[: copy.generation], inbox, *s.inboxes[copy.generation + 1 :]))

    def _nack(self, s: Model, consumer: int, copy: Copy) -> Model:
        s = drop(s, consumer, copy)
        if self.v.client_stops:
            kept = tuple(other for other in s.copies[consumer] if other.number <= copy.number or other.live is not copy.live)
            s = s._replace(copies=swap(s, consumer, kept))
        if not copy.live:
            return s
        later = [number for number in s.hand if number > copy.number and number not in s.acks] if self.v.given_back else []
        item = s.items[copy.number - 1]
        decided = policies.after_nack(POLICY, attempts=item.attempts, counts=True, delay_ms=None, now_ms=0)
        s = self._settle(s, copy.number, self._after(item, decided))
        for number in later:
            s = self._settle(s, number, s.items[number - 1]._replace(status="retry"))
        kept = tuple(other._replace(live=other.live and other.number not in later) for other in s.copies[consumer])
        return s._replace(copies=swap(s, consumer, kept))


def name(consumer: int) -> str:
    return "AB"[consumer]


def put(s: Model, number: int, item: Item) -> Model:
    return s._replace(items=(*s.items[: number - 1], item, *s.items[number:]))


def swap(s: Model, consumer: int, copies: tuple[Copy, ...]) -> tuple[tuple[Copy, ...], tuple[Copy, ...]]:
    return (copies, s.copies[1]) if consumer == 0 else (s.copies[0], copies)


def drop(s: Model, consumer: int, copy: Copy) -> Model:
    return s._replace(copies=swap(s, consumer, tuple(other for other in s.copies[consumer] if other != copy)))


def stale_copies(s: Model) -> Model:
    """Every token that is out is dead."""
    first, second = (tuple(copy._replace(live=False) for copy in copies) for copies in s.copies)
    return s._replace(copies=(first, second))
