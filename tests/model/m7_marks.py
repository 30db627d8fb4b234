"""M7: the marks and watermarks of R3 and R12, for one id beside which other records may be purged at any time.

The coordinator's clock runs from 0 to 3. An attempt takes its mark once: any time up to the newest that its client may have seen. A
message may be delayed for ever (so none is lost), and one may come twice. Mode is auto: a prepare that was given up arrives late, a
local transaction that began before a purge ends after it, and sees the watermark as it was when it began (as PostgreSQL shows it).
All comparisons are the service's own pure functions; decisions are `states.step`. M5 is the variant whose record has another mark.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from halfmsg.coordinator import mark_rules, states
from halfmsg.coordinator.states import Event, State
from halfmsg.outbox import fence_rules

CLOCK_MAX = 3
MARGIN = 0  # nothing of this coordinator is uncommitted, so none is needed: the tightest case


class Variant(NamedTuple):
    """As designed, unless a flag is changed. The first five are the five comparisons of R3 and R12."""

    local_compares: bool = True  # (1)
    responder_compares: bool = True  # (2)
    purge_compares: bool = True  # (3)
    stale_compared: bool = True  # (4)
    forgotten_compared: bool = True  # (5)
    open_waited_for: bool = True  # deletion and report wait for local transactions that were open at the raise
    unsent_kept: bool = True  # (3) never unsent ones
    one_mark: bool = True  # otherwise the record's mark is the coordinator's time of arrival (M5)


class Local(NamedTuple):
    """An open local transaction: the watermark it sees, and its fence row once inserted."""

    seen: int
    unsent: bool
    inserted: bool = False
    older_than_raise: bool = False


class Fence(NamedTuple):
    committed: bool
    mark: int
    unsent: bool = False


class Model(NamedTuple):
    clock: int = 0
    phase: str = "new"  # of the attempt: new | asked | acked | given_up | open | over
    mark: int = -1
    local: Local | None = None
    fence: Fence | None = None
    business: bool = False
    denied: bool = False
    said: frozenset[str] = frozenset()  # on the way for ever: prepare, submit, question
    answers: frozenset[str] = frozenset()
    arrived: frozenset[str] = frozenset()
    duplicates: int = 1
    record: tuple[State, int] | None = None
    asked_mark: int = -1  # of the question on its way
    listed: bool = False
    releases: int = 0
    settled_told: int = 0
    heard: int = 0  # the newest settled_before that reached the producer
    purged_before: int = 0
    cycle_before: int = 0  # purged_before of the last finished cycle
    clean_before: int = 0  # on its way to the coordinator
    forgotten_before: int = 0


class Run:
    """The transitions of one variant."""

    def __init__(self, variant: Variant) -> None:
        self.v = variant

    def successors(self, s: Model) -> Iterable[tuple[str, Model]]:
        if s.clock < CLOCK_MAX:
            yield f"clock {s.clock + 1}", s._replace(clock=s.clock + 1)
        yield from self._producer(s)
        yield from self._watermarks(s)
        if s.record and not states.is_decided(s.record[0]) and ("question" not in s.said or "question" in s.arrived):
            yield "question sent", say(s, "question")._replace(asked_mark=s.record[1], arrived=s.arrived - {"question"})
        for message in s.said:
            if message not in s.arrived:
                yield from self._arrives(message, s._replace(arrived=s.arrived | {message}), message)
            elif s.duplicates and message != "question":
                yield from self._arrives(f"copy of {message}", s._replace(duplicates=0), message)
        for answer in s.answers:
            event = Event.VERDICT_COMMITTED if answer == "committed" else Event.VERDICT_ROLLED_BACK
            yield f"answer {answer}", self._step(s._replace(answers=s.answers - {answer}), event)

    def violations(self, s: Model) -> Iterable[str]:
        if s.denied and s.business:
            yield "P5: rolled_back was said and the local transaction has committed"
        if s.releases > 1:
            yield "P6: delivered again, as if it were new"
        if s.releases and not s.business:
            yield "P1: delivered without a local commit"
        if s.listed and s.business:
            yield "P2: a correct row was refused"

    def settled(self, s: Model) -> bool:
        return not s.business or s.releases > 0

    # ---- the producer

    def _producer(self, s: Model) -> Iterable[tuple[str, Model]]:
        match s.phase:
            case "new":
                for mark in range(s.purged_before, s.clock + 1):  # the newest time seen since start, or purged_before at start
                    yield f"prepare sent, mark {mark}", say(s._replace(phase="asked", mark=mark), "prepare")
            case "asked":
                if "stale" in s.said:
                    yield "prepare refused: stale_mark", s._replace(phase="given_up")
                elif "prepare" in s.arrived and "refused" not in s.said:
                    yield "prepare acknowledged", s._replace(phase="acked")
                yield "prepare given up", s._replace(phase="given_up")
            case "acked" | "given_up":
                yield "BEGIN", s._replace(phase="open", local=Local(s.purged_before, unsent=s.phase == "given_up"))
            case "open" if s.local and s.local.inserted:
                done = s._replace(phase="over", local=None, business=True, fence=Fence(True, s.mark, s.local.unsent))
                yield "COMMIT", done
                if not s.local.unsent:
                    yield "COMMIT, and commit said", say(done, "commit")
                yield "ROLLBACK", s._replace(phase="over", local=None)
            case "open" if s.local:
                fenced_out = self.v.local_compares and not fence_rules.may_commit(s.mark, s.local.seen)
                if s.fence or fenced_out:
                    yield "fenced out", s._replace(phase="over", local=None)
                else:
                    yield "fence inserted", s._replace(local=s.local._replace(inserted=True))
        if s.fence and s.fence.unsent and "submit" not in s.said:
            yield "relay submits", say(s, "submit")
        if s.fence and s.fence.unsent and "submitted" in s.said:
            yield "submit acknowledged", s._replace(fence=s.fence._replace(unsent=False))

    # ---- the coordinator

    def _step(self, s: Model, event: Event) -> Model:
        before = s.record[0] if s.record else None
        after = states.step(before, event).to
        if after is None:
            return s
        mark = s.record[1] if s.record else (s.mark if self.v.one_mark else s.clock)
        new = after is State.COMMITTED and before is not State.COMMITTED
        return s._replace(record=(after, mark), releases=s.releases + new)

    def _arrives(self, name: str, s: Model, message: str) -> Iterable[tuple[str, Model]]:
        forgotten = s.record is None and self.v.forgotten_compared and mark_rules.is_forgotten(s.mark, s.forgotten_before)
        stale = s.record is None and self.v.stale_compared and mark_rules.is_stale(s.mark, s.settled_told)
        match message:
            case "prepare" if forgotten:
                yield f"{name}: forgotten", say(s, "refused")
            case "prepare" if stale:
                yield f"{name}: stale_mark", say(s, "stale")
            case "prepare":
                yield name, self._step(s, Event.PREPARE)
            case "commit":
                yield name, self._step(s, Event.COMMIT)
            case "submit" if forgotten:
                yield f"{name}: forgotten, listed", s._replace(listed=s.fence is not None and s.fence.unsent)
            case "submit":
                yield name, say(self._step(s, Event.SUBMIT), "submitted")
            case "question":
                yield name, self._question(s)

    def _question(self, s: Model) -> Model:
        if s.local and s.local.inserted:
            return s  # running
        if s.fence is None and self.v.responder_compares and not fence_rules.may_lay(s.asked_mark, s.purged_before):
            return s  # no_answer (purged)
        fence = s.fence or Fence(False, s.asked_mark)
        verdict = "committed" if fence.committed else "rolled_back"
        return s._replace(fence=fence, denied=s.denied or not fence.committed, answers=s.answers | {verdict})

    # ---- the watermarks

    def _watermarks(self, s: Model) -> Iterable[tuple[str, Model]]:
        decided = s.record is not None and states.is_decided(s.record[0])
        told = mark_rules.settled_before([s.record[1]] if s.record and not decided else [], s.clock, MARGIN)
        if told > s.settled_told:
            yield f"settled_told {told}", s._replace(settled_told=told)
        if s.heard < s.settled_told:
            yield f"the producer hears {s.settled_told}", s._replace(heard=s.settled_told)
        finished = not (s.local and s.local.older_than_raise and self.v.open_waited_for)
        if s.purged_before < s.heard and s.cycle_before == s.purged_before:
            local = s.local._replace(older_than_raise=True) if s.local else None
            yield f"purged_before {s.heard}", s._replace(purged_before=s.heard, local=local)
        if finished and s.fence and self._deletes(s.fence, s.purged_before):
            yield "fence row deleted", s._replace(fence=None)
        if finished and s.cycle_before < s.purged_before:
            yield "cycle finished", s._replace(cycle_before=s.purged_before)
        clean = min(s.cycle_before, s.fence.mark if s.fence and s.fence.unsent else s.cycle_before)
        if clean > s.clean_before:
            yield f"clean_before {clean} reported", s._replace(clean_before=clean)
        if s.forgotten_before < s.clean_before:
            yield f"forgotten_before {s.clean_before}", s._replace(forgotten_before=s.clean_before)
        if s.record and mark_rules.may_purge(s.record[1], s.forgotten_before, decided):
            yield "record deleted", s._replace(record=None)

    def _deletes(self, fence: Fence, purged_before: int) -> bool:
        sent = not fence.unsent or not self.v.unsent_kept
        return fence_rules.may_delete(fence.mark, purged_before, sent) if self.v.purge_compares else sent


def say(s: Model, message: str) -> Model:
    return s._replace(said=s.said | {message})
