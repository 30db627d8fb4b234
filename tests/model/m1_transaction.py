"""M1: the life of one transaction id between a producer, its database and the coordinator.

The network loses, delays, reorders and (once) duplicates. The local transaction holds the lock of its fence row until the
database has said what became of it; the process may die at any moment, and may stop listening while COMMIT is on its way. Every
decision of the coordinator is `halfmsg.coordinator.states.step`; every comparison of a watermark is the service's own. The mark of
the attempt is 0 and a watermark is 0 or 1, so `raised` and its like are numbers that may be compared. Purging is always on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from halfmsg.coordinator import mark_rules, states
from halfmsg.coordinator.states import Event, Outcome, State
from halfmsg.outbox import fence_rules

MARK = 0
ID, OTHER_ID = "T", "T2"
Message = tuple[str, ...]


class Variant(NamedTuple):
    """As designed, unless a flag is changed."""

    mode: Literal["half", "outbox", "auto"] = "auto"
    retries_same_id: bool = False  # after a local rollback the caller tries again with other content under this id (R9 forbids it)
    reports_before_retry: bool = False  # and says rollback for the first attempt before it does so
    digest_checked: bool = True  # R9
    row_has_own_id: bool = False  # against R2
    rows_carry_fence: bool = True  # R2
    conflicts_listed: bool = True  # R2
    unknown_commit_asks_fence: bool = True  # R1; otherwise an unanswered COMMIT is taken for a rollback
    source_checked: bool = True  # R7; a question may always reach another database
    fence_error_ends_transaction: bool = True  # R8
    committed_fence_by_age: bool = False  # against R3
    tombstone_by_age: bool = False  # against R3
    record_by_age: bool = False  # against R12
    used_up_means_rolled_back: bool = False  # against R4
    operator_forces: bool = False  # R4 allows it: recorded, an exception to P1, P2 and P5
    forced_excused: bool = True


class Local(NamedTuple):
    """A local transaction that is open in the producer's database."""

    content: str
    has_fence: bool
    has_row: bool
    commit_sent: bool = False


class Model(NamedTuple):
    phase: str = "idle"  # of the producer's process
    content: str = "A"
    local: Local | None = None
    fence: str = ""  # "", "R" (tombstone), or the content it was committed with
    row: tuple[str, str] | None = None  # content, queued | sent | refused
    business: str = ""  # the content that the local commit wrote
    denied: bool = False  # somebody said rolled_back on behalf of the producer
    net: frozenset[Message] = frozenset()
    duplicates: int = 1
    record: tuple[State, str] | None = None
    other_record: bool = False  # of OTHER_ID
    forced: bool = False
    listed: bool = False
    inbox: frozenset[str] = frozenset()
    effects: tuple[str, ...] = ()
    told: int = 0  # settled_told
    raised: int = 0  # purged_before
    forgotten: int = 0  # forgotten_before


class Run:
    """The transitions of one variant."""

    def __init__(self, variant: Variant) -> None:
        self.v = variant

    def successors(self, s: Model) -> Iterable[tuple[str, Model]]:
        yield from self._producer(s)
        yield from self._database(s)
        yield from self._relay(s)
        yield from self._coordinator(s)
        yield from self._purge(s)
        for message in s.net:
            without = s._replace(net=s.net - {message})
            name = " ".join(message)
            yield f"lost: {name}", without
            yield from self._arrives(name, without, message)
            if s.duplicates:
                yield from self._arrives(f"copy of {name}", s._replace(duplicates=0), message)

    def violations(self, s: Model) -> Iterable[str]:
        excused = s.forced and self.v.forced_excused
        if any(effect != s.business for effect in s.effects) and not excused:
            yield "P1: delivered, though the local transaction has not committed this content"
        if s.denied and s.business and not excused:
            yield "P5: rolled_back was said and the local transaction has committed"
        if len(s.effects) > 1:
            yield "P6: the effect of one event happened twice"

    def settled(self, s: Model) -> bool:
        return not s.business or s.business in s.effects or s.listed or s.forced

    # ---- the producer's process

    def _producer(self, s: Model) -> Iterable[tuple[str, Model]]:
        v, phase = self.v, s.phase
        if phase in ("over", "dead"):
            return
        yield "the process dies", s._replace(phase="dead")
        if phase == "idle":
            if v.mode == "outbox":
                yield "publish inside", s._replace(phase="rows")
            else:
                yield "prepare sent", send(s._replace(phase="asked"), "prepare", s.content)
        elif phase == "asked":
            yield "prepare given up", s._replace(phase="rows" if v.mode == "auto" else "rolled")
        elif phase in ("half", "rows"):
            yield self._begin(s)
        elif phase == "open" and s.local:
            yield "COMMIT sent", s._replace(phase="sent", local=s.local._replace(commit_sent=True))
            yield "ROLLBACK acknowledged", s._replace(phase="rolled", local=None)
        elif phase == "sent":
            yield "COMMIT acknowledged", self._committed(s)._replace(phase="committed")
            yield "COMMIT refused by the database", s._replace(phase="rolled", local=None)
            yield "answer to COMMIT lost", s._replace(phase="unknown")
        elif phase == "unknown" and not v.unknown_commit_asks_fence:
            yield "takes it for a rollback", s._replace(phase="rolled")
        elif phase == "unknown" and not (s.local and s.local.has_fence):  # else it waits for the row's lock
            after, verdict, _ = self._ask_fence(s)
            yield f"own fence says {verdict}", after._replace(phase={"committed": "committed", "rolled_back": "rolled"}.get(verdict, "over"))
        elif phase == "committed":
            yield "commit said", send(s._replace(phase="over"), "commit", s.content)
        elif phase == "rolled":
            if v.retries_same_id and s.content == "A":
                retry = s._replace(phase="idle", content="B")
                yield "again, with other content", send(retry, "rollback") if self.v.reports_before_retry else retry
            else:
                yield "rollback said", send(s._replace(phase="over"), "rollback")

    def _begin(self, s: Model) -> tuple[str, Model]:
        as_rows = s.phase == "rows"
        if as_rows and not self.v.rows_carry_fence:
            return "BEGIN, row without fence", s._replace(phase="open", local=Local(s.content, False, True))
        if s.fence == "R" or not fence_rules.may_commit(MARK, s.raised):
            if self.v.fence_error_ends_transaction:
                return "BEGIN, fenced out", s._replace(phase="rolled")
            return "BEGIN, fenced out, error swallowed", s._replace(phase="open", local=Local(s.content, False, False))
        if s.fence:
            return "BEGIN, AlreadyCommitted", s._replace(phase="over")
        return "BEGIN, fence", s._replace(phase="open", local=Local(s.content, True, as_rows))

    def _database(self, s: Model) -> Iterable[tuple[str, Model]]:
        if s.local and s.phase in ("unknown", "rolled", "over", "dead"):
            yield "database aborts", s._replace(local=None)
            if s.local.commit_sent:
                yield "database commits", self._committed(s)

    def _committed(self, s: Model) -> Model:
        assert s.local
        row = (s.local.content, "queued") if s.local.has_row else s.row
        return s._replace(business=s.local.content, fence=s.local.content if s.local.has_fence else s.fence, row=row, local=None)

    def _ask_fence(self, s: Model) -> tuple[Model, str, str]:
        """The producer's word, made final: read the fence, or lay a tombstone."""
        if s.local and s.local.has_fence:
            return s, "running", ""
        if s.fence not in ("", "R"):
            return s, "committed", s.fence
        if s.fence == "R" or fence_rules.may_lay(MARK, s.raised):
            return s._replace(fence="R", denied=True), "rolled_back", ""
        return s, "no_answer", ""

    def _relay(self, s: Model) -> Iterable[tuple[str, Model]]:
        if s.row and s.row[1] == "queued":
            yield "relay submits", send(s, "submit", s.row[0], OTHER_ID if self.v.row_has_own_id else ID)

    # ---- the coordinator

    def _coordinator(self, s: Model) -> Iterable[tuple[str, Model]]:
        if s.record is None or states.is_decided(s.record[0]):
            return
        yield "question sent", send(s, "question")
        yield "parked", self._said(s, Event.PARK)[0]
        if self.v.used_up_means_rolled_back:
            yield "checks used up", self._said(s, Event.VERDICT_ROLLED_BACK)[0]
        if self.v.operator_forces and s.record[0] is State.PARKED:
            yield "operator forces commit", self._said(s, Event.FORCE_COMMIT)[0]._replace(forced=True)
            yield "operator forces rollback", self._said(s, Event.FORCE_ROLLBACK)[0]._replace(forced=True)

    def _said(self, s: Model, event: Event, content: str = "") -> tuple[Model, Outcome]:
        before = s.record[0] if s.record else None
        step = states.step(before, event)
        if step.to is None:
            return s, step.outcome
        stored = s.record[1] if s.record else content
        s = s._replace(record=(step.to, stored), listed=s.listed or (step.listed and self.v.conflicts_listed))
        if step.to is State.COMMITTED and before is not State.COMMITTED:
            s = released(s, ID, stored)
        return s, step.outcome

    def _same(self, s: Model, content: str) -> bool:
        return s.record is None or s.record[1] == content or not self.v.digest_checked

    def _arrives(self, name: str, s: Model, message: Message) -> Iterable[tuple[str, Model]]:
        kind, *rest = message
        match kind:
            case "prepare":
                content = rest[0]
                if s.record is None and (mark_rules.is_stale(MARK, s.told) or mark_rules.is_forgotten(MARK, s.forgotten)):
                    yield name, send(s, "prepared", content, "stale")
                    return
                s, outcome = self._said(s, Event.PREPARE if self._same(s, content) else Event.DIFFERS, content)
                assert s.record
                yield name, send(s, "prepared", content, s.record[0].word if outcome is Outcome.OK else outcome.value)
            case "prepared" if s.phase == "asked" and rest[0] == s.content:
                yield name, s._replace(phase=self._after_prepare(rest[1]))
            case "commit":
                yield name, self._said(s, Event.COMMIT if self._same(s, rest[0]) else Event.COMMIT_INCOMPLETE)[0]
            case "rollback":
                yield name, self._said(s, Event.ROLLBACK)[0]
            case "submit" if rest[1] == OTHER_ID:
                s = s if s.other_record else released(s._replace(other_record=True), OTHER_ID, rest[0])
                yield name, send(s, "submitted", Outcome.OK.value)
            case "submit":
                if s.record is None and mark_rules.is_forgotten(MARK, s.forgotten):
                    yield name, send(s, "submitted", "forgotten")
                    return
                s, outcome = self._said(s, Event.SUBMIT if self._same(s, rest[0]) else Event.DIFFERS, rest[0])
                yield name, send(s, "submitted", outcome.value)
            case "submitted" if s.row and s.row[1] == "queued":
                if rest[0] == Outcome.OK.value:
                    yield name, s._replace(row=(s.row[0], "sent"))
                elif self.v.conflicts_listed:
                    yield name, s._replace(row=(s.row[0], "refused"), listed=True)
                else:
                    yield name, s._replace(row=None)
            case "question":
                after, verdict, content = self._ask_fence(s)
                if verdict in ("committed", "rolled_back"):
                    yield name, send(after, "answer", verdict, content)
                if not self.v.source_checked:
                    yield f"{name} (at another database)", send(s._replace(denied=True), "answer", "rolled_back", "")
            case "answer" if rest[0] == "rolled_back":
                yield name, self._said(s, Event.VERDICT_ROLLED_BACK)[0]
            case "answer":
                yield name, self._said(s, Event.VERDICT_COMMITTED if self._same(s, rest[1]) else Event.VERDICT_INCOMPLETE)[0]

    def _after_prepare(self, answer: str) -> str:
        if answer == "stale":
            return "rows" if self.v.mode == "auto" else "over"  # R23
        return {"prepared": "half", "parked": "unknown"}.get(answer, "over")  # R26

    # ---- purging

    def _purge(self, s: Model) -> Iterable[tuple[str, Model]]:
        v, decided = self.v, s.record is not None and states.is_decided(s.record[0])
        undecided = [MARK] if s.record and not decided else []
        queued = s.row is not None and s.row[1] != "sent"
        if not s.told and mark_rules.settled_before(undecided, 1, 0) == 1:
            yield "settled_before told", s._replace(told=1)
        if s.told and not s.raised and not s.local:  # an open local transaction is waited for: M7
            yield "purged_before raised", s._replace(raised=1)
        if s.raised and not s.forgotten and not queued:
            yield "clean_before reported", s._replace(forgotten=1)
        if s.fence and fence_rules.may_delete(MARK, s.raised, not queued):
            yield "fence row deleted", s._replace(fence="")
        if s.fence == "R" and v.tombstone_by_age:
            yield "tombstone deleted by age", s._replace(fence="")
        if s.fence not in ("", "R") and not queued and v.committed_fence_by_age:
            yield "fence row deleted by age", s._replace(fence="")
        if s.record and (mark_rules.may_purge(MARK, s.forgotten, decided) or (v.record_by_age and decided)):
            yield "record deleted", s._replace(record=None)
        if s.inbox:
            yield "inbox row deleted by age", s._replace(inbox=frozenset())


def send(s: Model, *message: str) -> Model:
    return s._replace(net=s.net | {message})


def released(s: Model, identity: str, content: str) -> Model:
    """Delivered at once: what a group does with it is M3."""
    if identity in s.inbox:
        return s
    return s._replace(inbox=s.inbox | {identity}, effects=(*s.effects, content))
