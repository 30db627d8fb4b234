"""What a check-back brought, and what an operator decides (R4, R5, R15)."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from ..errors import Problem
from ..ids import format_id
from ..messages import By, Decision, Force, Park, Source, TransactionView, Tx, Verdict
from ..states import Event, Outcome, State, step
from ..store.base import StoreTx
from . import topics, transactions

PARK_AGE = "older than check.max_age_s"


class ClaimDue(Struct, frozen=True):
    """How many may be asked of each producer now (source id -> count); claimed ones are not due again before `lease_ms`."""

    limits: Mapping[int, int]
    lease_ms: int


class Due(Struct, frozen=True):
    tx: Tx
    producer: Source
    topics: tuple[str, ...]


class Ruled(Struct, frozen=True):
    """The answer for one id. `next_check`: when to ask again if it stays undecided; `used_up`: this was the last attempt."""

    n: int
    verdict: Verdict
    digest: bytes | None
    numbers: tuple[int | None, ...] | None
    detail: str
    took_ms: int
    next_check: int
    used_up: bool
    too_old: bool


def claim_due(tx: StoreTx, now: int, command: ClaimDue) -> list[Due]:
    found: list[Due] = []
    for source_id, limit in command.limits.items():
        source = tx.source_by_id(source_id)
        for row in tx.claim_due(source_id, now, now + command.lease_ms, limit):
            found.append(Due(row, source, _topics(tx, row)))
    return found


def unclaim_all(tx: StoreTx, now: int, _: None) -> int:
    """At start: questions that the last process had under way are asked again now, not when their claims end."""
    return sum(tx.unclaim(source, now) for source in tx.sources_with_undecided())


def claim_parked(tx: StoreTx, now: int, command: ClaimDue) -> list[Due]:
    """Parked ones are still asked: once when the producer says hello, then daily (R4)."""
    found: list[Due] = []
    for source_id, limit in command.limits.items():
        source = tx.source_by_id(source_id)
        for row in tx.claim_parked(source_id, now, now + int(tx.env.settings.check.parked_interval_s * 1000), limit):
            found.append(Due(row, source, _topics(tx, row)))
    return found


def claim_one(tx: StoreTx, now: int, id: bytes) -> Due:
    """An operator asks now. Raises transaction_not_found, and state_changed for a decided one."""
    row = tx.find(id)
    if row is None:
        raise Problem("transaction_not_found", f"no transaction {format_id(id)} here")
    if row.state not in (State.PREPARED, State.PARKED):
        raise Problem("state_changed", f"the transaction is decided: {row.state.word}. See: halfmsg tx show {format_id(id)}")
    return Due(row, tx.source_by_id(row.source), _topics(tx, row))


def _topics(tx: StoreTx, row: Tx) -> tuple[str, ...]:
    return tuple(sorted({tx.topic_by_id(topic).name for _, topic, _ in tx.message_heads(row.n)}))


def apply_ruling(tx: StoreTx, now: int, ruled: Ruled) -> str:
    """One answer. Gives what became of it: committed, rolled_back, incomplete, parked, waiting or ignored."""
    known = tx.find_n(ruled.n)
    if known is None:
        return "ignored"
    heads = tx.message_heads(known.n)
    event = _event(tx, known, ruled, heads)
    judged = step(known.state, event)
    tx.note(known.n, now, f"check {ruled.verdict}", f"{ruled.detail} ({ruled.took_ms} ms)" if ruled.detail else f"{ruled.took_ms} ms")
    if judged.outcome is Outcome.IGNORED:
        if judged.listed:
            tx.add_conflict(known.id, known.state.word, str(ruled.verdict), "check_back", now)
        return "ignored"
    if judged.outcome is Outcome.INCOMPLETE:
        tx.add_conflict(known.id, known.state.word, "committed, incomplete or other content", "check_back", now)
        _again(tx, known, ruled, "incomplete answer")
        return "incomplete"
    if judged.to is State.COMMITTED:
        transactions.commit_now(tx, now, known, ruled.numbers, By.CHECK_BACK, None, heads)
        return "committed"
    if judged.to is State.ROLLED_BACK:
        transactions.rollback_now(tx, now, known, By.CHECK_BACK, None)
        return "rolled_back"
    return _undecided(tx, now, known, ruled, judged.to)


def _event(tx: StoreTx, known: Tx, ruled: Ruled, heads: transactions.Heads) -> Event:
    if ruled.verdict is Verdict.COMMITTED:
        decision = Decision(known.id, True, None, None, ruled.digest, ruled.numbers)
        complete = decision.digest == known.digest and transactions.numbers_are_complete(tx, known, ruled.numbers, heads)
        return Event.VERDICT_COMMITTED if complete else Event.VERDICT_INCOMPLETE
    if ruled.verdict is Verdict.ROLLED_BACK:
        return Event.VERDICT_ROLLED_BACK
    if ruled.verdict is Verdict.UNKNOWN:
        return Event.UNKNOWN_LAST if ruled.used_up else Event.UNKNOWN
    return Event.RUNNING if ruled.verdict is Verdict.RUNNING else Event.NO_ANSWER


def _undecided(tx: StoreTx, now: int, known: Tx, ruled: Ruled, to: State | None) -> str:
    parked_already = known.state is State.PARKED
    if not parked_already and (to is State.PARKED or ruled.too_old):
        why = f"asked {known.attempts + 1} times: unknown" if to is State.PARKED else PARK_AGE
        tx.park(known, now + int(tx.env.settings.check.parked_interval_s * 1000), f"{why}; last answer: {ruled.detail or ruled.verdict}")
        tx.note(known.n, now, "parked", why)
        tx.emit(("parked", known.source))
        return "parked"
    _again(tx, known, ruled, f"{ruled.verdict}{': ' + ruled.detail if ruled.detail else ''}")
    return "waiting"


def _again(tx: StoreTx, known: Tx, ruled: Ruled, reason: str) -> None:
    attempts = known.attempts + (ruled.verdict is Verdict.UNKNOWN)
    parked = known.state is State.PARKED
    next_check = (known.next_check or ruled.next_check) if parked else ruled.next_check
    tx.reschedule(known, attempts=attempts, next_check=next_check, reason=reason)


def park(tx: StoreTx, now: int, command: Park) -> TransactionView:
    known = _found(tx, command.id, command.if_state)
    judged = step(known.state, Event.PARK)
    if judged.outcome is not Outcome.OK:
        raise Problem(judged.outcome.value, f"the first decision stands: {known.state.word}")
    if known.state is State.PREPARED:
        tx.park(known, now + int(tx.env.settings.check.parked_interval_s * 1000), f"parked by operator: {command.reason}")
        tx.note(known.n, now, "parked", f"by operator: {command.reason}")
        tx.audit(now, "operator", "tx.park", format_id(known.id), command.reason, known.state.word, "parked")
    return transactions.show(tx, now, command.id)


def force(tx: StoreTx, now: int, command: Force) -> TransactionView | Problem:
    """An operator decides a parked one (R4): audited, flagged on each delivery, never a guess by the machine."""
    known = _found(tx, command.id, command.if_state)
    judged = step(known.state, Event.FORCE_COMMIT if command.commit else Event.FORCE_ROLLBACK)
    if judged.outcome is not Outcome.OK:
        return transactions.refuse(tx, now, known, judged, said="force", said_by="operator")
    heads = tx.message_heads(known.n)
    if command.commit and not transactions.numbers_are_complete(tx, known, command.numbers, heads):
        how = "give it by index with --numbers (JSON: numbers). For which number a key waits: halfmsg key show TOPIC KEY"
        raise Problem("incomplete_decision", f"an ordered message cannot be committed without its number; {how}")
    to = "committed" if command.commit else "rolled_back"
    tx.audit(now, "operator", f"tx.{'commit' if command.commit else 'rollback'}", format_id(known.id), command.reason, known.state.word, to)
    tx.note(known.n, now, to, f"forced by operator: {command.reason}")
    if command.commit:
        return transactions.commit_now(tx, now, known, command.numbers, By.OPERATOR, command.reason, heads)
    for topic in {topic for _, topic, _ in heads}:
        tx.put_counter(topics.kept(topic), 1)
    return transactions.rollback_now(tx, now, known, By.OPERATOR, command.reason, keep_bodies=True)


def _found(tx: StoreTx, id: bytes, if_state: str | None) -> Tx:
    known = tx.find(id)
    if known is None:
        raise Problem("transaction_not_found", f"no transaction {format_id(id)} here")
    if if_state is not None and known.state.word != if_state:
        raise Problem("state_changed", f"the transaction is {known.state.word}, not {if_state}. See: halfmsg tx show {format_id(id)}")
    return known
