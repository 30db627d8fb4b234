"""M6: the fetch of PROTOCOL section 4 for an ordered topic: one lane, two keys, four messages, place + runs + retry rows.

Two members; one owns the lane while it keeps its leases. It may hold several runs, works each key off in order and different keys in
any. When a lease ends the lane is free and the other member may take it; the old one is a zombie then, whose handlers may still run
and whose acks are refused (so they are left out). Attempts are `halfmsg.coordinator.policies`, the guard row is
`halfmsg.outbox.inbox_rules`; the offset serves as the number. Redrive, replay and filters are M3.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from halfmsg.coordinator import policies
from halfmsg.outbox import inbox_rules
from halfmsg.outbox.inbox_rules import Claim

POLICY = policies.RetryPolicy(max_attempts=2)


class Variant(NamedTuple):
    """As designed, unless a flag is changed."""

    keys: str = "abab"  # of offsets 1, 2, ...
    guard_row: bool = True  # R13; otherwise an inbox by message id
    diverted: bool = True  # a message whose key has retry rows is not handed out
    given_back: Literal["hand", "run"] = "hand"  # the later ones of a key: in all runs of the member, or in the nacked run only
    expiry_ends: Literal["hand", "run"] = "hand"  # a lease that ends: all runs of the member in the lane, or that run only
    next_made_due: bool = True  # when the head of a key is settled
    in_flight_looked_at: bool = True  # and nothing of the key before that row is open in a run
    run_max: int = 2
    lease_ends: int = 1
    nacks: int = 1


class Out(NamedTuple):
    """A run in flight, by its open offsets. One that was retried is a run of one and carries its attempts."""

    member: int
    open: tuple[int, ...]
    alone: bool
    attempts: int = 0


class Retry(NamedTuple):
    off: int
    due: bool  # otherwise it waits behind its key
    attempts: int


class Copy(NamedTuple):
    """A delivery in a member's memory."""

    off: int
    live: bool
    missed: tuple[int, ...]


class Guard(NamedTuple):
    """A key's row in the inbox, and the offsets whose effect happened."""

    last: int = 0
    missed: frozenset[int] = frozenset()
    effects: tuple[int, ...] = ()


Copies = tuple[tuple[Copy, ...], tuple[Copy, ...]]


class Model(NamedTuple):
    next_off: int = 1
    owner: int = -1
    runs: tuple[Out, ...] = ()
    retry: tuple[Retry, ...] = ()
    done: frozenset[int] = frozenset()
    dead: frozenset[int] = frozenset()
    copies: Copies = ((), ())
    acks: frozenset[int] = frozenset()
    guards: tuple[Guard, Guard] = (Guard(), Guard())
    out_of_order: int = 0
    lease_ends: int = 0
    nacks: int = 0


class Run:
    """The transitions of one variant."""

    def __init__(self, variant: Variant) -> None:
        self.v = variant
        self.end = len(variant.keys) + 1

    def key(self, off: int) -> str:
        return self.v.keys[off - 1]

    def successors(self, s: Model) -> Iterable[tuple[str, Model]]:
        if s.owner < 0:
            for member in (0, 1) if s.next_off > 1 else (0,):  # they differ by name only
                yield f"{name(member)} takes the lane", s._replace(owner=member)
        else:
            yield from self._fetch(s, s.owner)
        for member in (0, 1):
            yield from self._works(s, member)
        for off in s.acks:
            if not any(self.key(other) == self.key(off) and other < off for run in s.runs for other in run.open):  # R13
                yield f"ack {off} arrives", self._settled(self._close(s, off)[0], off)._replace(done=s.done | {off})
        if s.lease_ends < self.v.lease_ends:
            for run in s.runs:
                yield f"the lease of {name(run.member)}'s run {run.open} ends", self._lease_end(s, run)

    def violations(self, s: Model) -> Iterable[str]:
        for off in range(1, self.end):
            places = [run.open for run in s.runs if off in run.open] + [row for row in s.retry if row.off == off]
            if len(places) + (off in s.done) + (off in s.dead) + (off >= s.next_off) != 1:
                yield f"P2: {off} is not in exactly one of run, retry, settled, beyond the place"
            if off in s.done and off not in s.guards[self._row(off)].effects:
                yield f"P2: {off} was acked and its effect has not happened"
        for guard in s.guards:
            if len(set(guard.effects)) < len(guard.effects):
                yield "P6: an effect happened twice"
            if any(first > then for first, then in zip(guard.effects, guard.effects[1:], strict=False)):
                yield f"P7: effects of one key in the order {guard.effects}"
        if s.out_of_order:
            yield f"order: a valid delivery of {s.out_of_order} came after a later one, and the guard had to refuse it"

    def settled(self, s: Model) -> bool:
        return s.next_off == self.end and not s.runs and not s.retry

    def _row(self, off: int) -> int:
        return 0 if self.key(off) == "a" else 1

    # ---- the coordinator

    def _fetch(self, s: Model, member: int) -> Iterable[tuple[str, Model]]:
        for row in s.retry:
            if row.due:
                after = s._replace(retry=tuple(other for other in s.retry if other is not row))
                yield f"{name(member)} is handed {row.off} again", self._hand(after, Out(member, (row.off,), True, row.attempts))
        if s.next_off < self.end:
            run, retry = [], list(s.retry)
            offs = range(s.next_off, min(s.next_off + self.v.run_max, self.end))
            for off in offs:
                if self.v.diverted and any(self.key(row.off) == self.key(off) for row in retry):
                    retry.append(Retry(off, False, 0))
                else:
                    run.append(off)
            after = s._replace(next_off=offs[-1] + 1, retry=tuple(retry))
            if run:
                after = self._hand(after, Out(member, tuple(run), len(run) == 1))
            yield f"{name(member)} is handed {tuple(run)} of {tuple(offs)}", after

    def _hand(self, s: Model, run: Out) -> Model:
        copies = tuple(Copy(off, True, tuple(sorted(n for n in s.dead if n < off and self.key(n) == self.key(off)))) for off in run.open)
        return s._replace(runs=tuple(sorted((*s.runs, run))), copies=swap(s.copies, run.member, s.copies[run.member] + copies))

    def _close(self, s: Model, off: int) -> tuple[Model, Out]:
        """Take `off` out of its run; the token dies with it."""
        run = next(run for run in s.runs if off in run.open)
        rest = run._replace(open=tuple(other for other in run.open if other != off))
        runs = tuple(sorted(rest if other is run else other for other in s.runs if other is not run or rest.open))
        copies = swap(s.copies, run.member, tuple(copy._replace(live=copy.live and copy.off != off) for copy in s.copies[run.member]))
        return s._replace(runs=runs, copies=copies, acks=s.acks - {off}), run

    def _settled(self, s: Model, off: int) -> Model:
        """The head of a key is acked or dead: its next waiting row is due."""
        waiting = [row.off for row in s.retry if self.key(row.off) == self.key(off)]
        if not waiting or not self.v.next_made_due:
            return s
        open_offs = [other for run in s.runs for other in run.open if self.key(other) == self.key(off)]
        if self.v.in_flight_looked_at and any(other < min(waiting) for other in open_offs):
            return s
        return s._replace(retry=tuple(row._replace(due=row.due or row.off == min(waiting)) for row in s.retry))

    def _again(self, s: Model, off: int, decided: policies.Again | policies.Dead, *, head: bool) -> Model:
        if isinstance(decided, policies.Dead):
            return self._settled(s._replace(dead=s.dead | {off}), off)
        return s._replace(retry=tuple(sorted((*s.retry, Retry(off, head, decided.attempts)))))

    def _lease_end(self, s: Model, ended: Out) -> Model:
        s = s._replace(owner=-1, lease_ends=s.lease_ends + 1)
        hand = [run for run in s.runs if run.member == ended.member] if self.v.expiry_ends == "hand" else [ended]
        for off, run in sorted((off, out) for out in hand for off in out.open):
            key = self.key(off)
            s, _ = self._close(s, off)
            head = not any(self.key(row.off) == key and row.off < off for row in s.retry)
            charged = run.alone and run == ended  # R24
            s = self._again(s, off, policies.after_lease_end(POLICY, alone=charged, attempts=run.attempts, now_ms=0), head=head)
        return s

    def _nack(self, s: Model, off: int) -> Model:
        member = next(run.member for run in s.runs if off in run.open)
        mine = [run.open for run in s.runs if run.member == member and (self.v.given_back == "hand" or off in run.open)]
        later = sorted(other for opened in mine for other in opened if other > off and self.key(other) == self.key(off))
        s, run = self._close(s, off)
        for other in later:
            s, other_run = self._close(s, other)
            s = self._again(s, other, policies.Again(0, other_run.attempts), head=False)
        return self._again(s, off, policies.after_nack(POLICY, attempts=run.attempts, counts=True, delay_ms=None, now_ms=0), head=True)

    # ---- a member

    def _works(self, s: Model, member: int) -> Iterable[tuple[str, Model]]:
        mine = s.copies[member]
        if any(not copy.live for copy in mine):
            yield f"{name(member)} learns that leases are over", s._replace(copies=swap(s.copies, member, tuple(c for c in mine if c.live)))
        for place, copy in enumerate(mine):
            key = self.key(copy.off)
            if any(self.key(before.off) == key for before in mine[:place]):
                continue
            rest = tuple(other for other in mine if other is not copy)
            after = self._handled(s._replace(copies=swap(s.copies, member, rest)), copy)
            who = f"{name(member)}{'' if copy.live else ' (lease over)'}"
            yield f"{who} handles {copy.off}", after
            if s.nacks < self.v.nacks:
                kept = tuple(other for other in rest if not self._dropped_with(copy, other))  # the client's half of R13
                failed = s._replace(copies=swap(s.copies, member, kept), nacks=s.nacks + 1)
                yield f"{who} fails on {copy.off}", self._nack(failed, copy.off) if copy.live else failed

    def _dropped_with(self, failed: Copy, other: Copy) -> bool:
        later = self.key(other.off) == self.key(failed.off) and other.off > failed.off
        return later and other.live == failed.live and self.v.given_back == "hand"

    def _handled(self, s: Model, copy: Copy) -> Model:
        guard, off = s.guards[self._row(copy.off)], copy.off
        if self.v.guard_row:
            claim = inbox_rules.judge(last=guard.last, number=off, redriven=False, in_missed=off in guard.missed)
        else:
            claim = Claim.DUPLICATE if off in guard.effects else Claim.RUN
        if claim is Claim.RUN:
            missed = guard.missed.union(inbox_rules.newly_missed(last=guard.last, number=off, named=copy.missed))
            changed = Guard(max(off, guard.last), missed, (*guard.effects, off))
            s = s._replace(guards=(changed, s.guards[1]) if self._row(off) == 0 else (s.guards[0], changed))
        elif copy.live and off not in guard.effects:
            s = s._replace(out_of_order=off)
        return s._replace(acks=s.acks | {off}) if copy.live else s


def name(member: int) -> str:
    return "AB"[member]


def swap(copies: Copies, member: int, mine: tuple[Copy, ...]) -> Copies:
    return (mine, copies[1]) if member == 0 else (copies[0], mine)
