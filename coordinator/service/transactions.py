"""Prepare, submit, commit, rollback: what a producer says about its transaction."""

from __future__ import annotations

from .. import mark_rules
from ..digests import transaction_digest
from ..errors import Problem
from ..ids import format_id
from ..messages import By, Content, Decision, Kind, MessagePlace, NewMessage, Source, Topic, TransactionView, Tx
from ..states import Event, Outcome, State, Step, step
from ..store import failpoints
from ..store.base import StoreTx
from . import producers, topics
from .release import Ready, release_all

Heads = list[tuple[int, int, int | None]]
"""(m, topic id, key id) of a transaction's messages, read once for judging and releasing."""

PLAIN = 0
"""`tx.source` of a plain send: nobody is ever asked about it."""


def store_content(tx: StoreTx, now: int, command: Content) -> TransactionView | Problem:
    """Prepare or submit (prepare if absent, and commit). A repeat answers the state of now (R26)."""
    known = tx.find(command.id)
    if known is not None:
        return _repeat(tx, now, command, known)
    source = _source(tx, now, command)
    placed = [(message, _topic_for(tx, message, plain=source is None)) for message in command.messages]
    _check_door(tx, command, source)
    if command.submit:
        _check_numbers(placed)
    mark = now if command.mark is None else command.mark
    stored = _insert(tx, now, command, source, mark)
    rows = _store_messages(tx, stored, source, placed, hold_open=not command.submit)
    for message, topic in placed:
        tx.emit(("stored", topic.name, len(message.body)))
    if not command.submit:
        tx.emit(("prepared", stored.source, placed[0][1].name))
        return _view(tx, stored, _unreleased(rows), created=True)
    places = release_all(tx, now, stored, [Ready(m, topic, okey, message.key, message.sequence) for message, topic, okey, m in rows])
    return _view(tx, stored, places, created=True)


def _source(tx: StoreTx, now: int, command: Content) -> Source | None:
    if command.producer is None:
        return None
    source = producers.of(tx, command.producer, command.source)
    if not command.submit and not source.can_be_asked:
        raise Problem("no_way_to_ask", f"producer {source.name} has no check_url and has never said hello on a stream; nothing was stored")
    if command.mark is not None:
        if mark_rules.is_forgotten(command.mark, source.forgotten_before):
            raise Problem("forgotten", f"mark {command.mark} is older than what is remembered of {source.name}; take a new id")
        if not command.submit and mark_rules.is_stale(command.mark, source.settled_told):
            raise Problem("stale_mark", f"mark {command.mark} is older than {source.settled_told}, told to {source.name}", time=now)
    return source


def _topic_for(tx: StoreTx, message: NewMessage, *, plain: bool) -> Topic:
    topic = topics.for_message(tx, message, plain=plain)
    if topic.kind is Kind.UNORDERED and message.key is not None:
        raise Problem("combination_refused", f"topic {topic.name} is unordered, and a key means order: leave the key out")
    if topic.kind is Kind.SEQUENCE and plain:
        raise Problem("combination_refused", f"topic {topic.name} keeps the order of local commits: publish through an outbox, not by a plain send")
    if topic.kind is not Kind.UNORDERED and message.key is None:
        raise Problem("combination_refused", f"topic {topic.name} is ordered ({topic.kind.word}): a message needs a key")
    if topic.kind is Kind.ARRIVAL and not plain:
        raise Problem("combination_refused", f"topic {topic.name} is in order of arrival: it takes plain sends only")
    if len(message.body) > topic.max_message_bytes:
        raise Problem("too_large", f"a body of {len(message.body)} bytes; topic {topic.name} takes {topic.max_message_bytes}")
    return topic


def _check_door(tx: StoreTx, command: Content, source: Source | None) -> None:
    """Capacity is taken at the door, for prepare and submit alone (R20)."""
    env = tx.env
    if env.storage_low:
        limit = f"storage.free_bytes_min is {env.settings.storage.free_bytes_min}"
        raise Problem("storage_full", f"the disk of {env.settings.store} has {env.free_bytes} bytes free, and {limit}; nothing was stored")
    for message in command.messages:
        topic = tx.topic(message.topic)
        if topic is None:
            continue
        if topic.id in env.full.topics:
            behind = f"a group of topic {topic.name} has {topic.max_backlog} messages to take or to try again, the topic's max_backlog"
            raise Problem("backlog_full", f"{behind}; nothing was stored. Which group: halfmsg group ls")
        if not topic.allow_no_group and not tx.groups_of_topic(topic.id):
            raise Problem("no_group", f"topic {topic.name} has no consumer group yet; nothing was stored")
    if source is not None and not command.submit and tx.open_count(source.id) >= env.settings.producer.max_in_doubt:
        raise Problem(
            "too_many_in_doubt", f"{source.name} has {env.settings.producer.max_in_doubt} half messages in doubt; is its check-back broken?"
        )


def _check_numbers(placed: list[tuple[NewMessage, Topic]]) -> None:
    for message, topic in placed:
        if topic.kind is Kind.SEQUENCE and message.sequence is None:
            raise Problem("incomplete_decision", f"message {message.index} of a sequence topic needs its number to be submitted")


def _insert(tx: StoreTx, now: int, command: Content, source: Source | None, mark: int) -> Tx:
    state = State.COMMITTED if command.submit else State.PREPARED
    first_check = int(tx.env.settings.check.first_delay_s * 1000) if command.first_check_ms is None else command.first_check_ms
    row = Tx(
        0, command.id, PLAIN if source is None else source.id, state, command.digest, len(command.messages), mark, now,
        now if command.submit else None, By.PRODUCER if command.submit else None, 0, None if command.submit else now + first_check, None,
    )  # fmt: skip
    stored = tx.insert(row)
    if stored is None:
        raise Problem("state_changed", f"transaction {format_id(command.id)} was stored meanwhile; repeat the call")
    return stored


def _store_messages(
    tx: StoreTx, stored: Tx, source: Source | None, placed: list[tuple[NewMessage, Topic]], *, hold_open: bool
) -> list[tuple[NewMessage, Topic, int | None, int]]:
    rows = [(message, topic, _key_id(tx, topic, source, message), (stored.n << 10) + message.index) for message, topic in placed]
    tx.insert_messages(stored.n, ((message, topic.id, okey) for message, topic, okey, _ in rows))
    if hold_open:
        for _, _, okey, _ in rows:
            if okey is not None:
                tx.open_key(okey, stored.n)
        failpoints.hit("prepared")
    return rows


def _key_id(tx: StoreTx, topic: Topic, source: Source | None, message: NewMessage) -> int | None:
    if message.key is None:
        return None
    ordered_by = (source.id, source.incarnation) if source is not None and topic.kind is Kind.SEQUENCE else (PLAIN, 0)
    return tx.key_id(topic.id, *ordered_by, message.key)


def _repeat(tx: StoreTx, now: int, command: Content, known: Tx) -> TransactionView | Problem:
    _check_sayer(tx, known, command.producer, command.source)
    if known.digest and known.digest != command.digest:
        return refuse(tx, now, known, step(known.state, Event.DIFFERS), said="other content", said_by="producer")
    if not command.submit:
        return _view(tx, known, places_of(tx, known))
    numbers: list[int | None] = [None] * (1 + max(m.index for m in command.messages))
    for message in command.messages:
        numbers[message.index] = message.sequence
    return _decide(tx, now, known, Decision(command.id, True, command.producer, command.source, command.digest, tuple(numbers)), said="submit")


def decide(tx: StoreTx, now: int, command: Decision) -> TransactionView | Problem:
    """Commit or rollback by the producer. The first decision wins; the same again is a success (P4)."""
    known = tx.find(command.id)
    if known is None:
        return _decide_unknown(tx, now, command)
    _check_sayer(tx, known, command.producer, command.source)
    return _decide(tx, now, known, command, said="commit" if command.commit else "rollback")


def _decide_unknown(tx: StoreTx, now: int, command: Decision) -> TransactionView:
    """Commit of an unknown id is never a success; rollback of one is stored, so that a late prepare meets it (R12)."""
    outcome = step(None, Event.COMMIT if command.commit else Event.ROLLBACK).outcome
    if outcome is Outcome.NOT_FOUND:
        raise Problem("transaction_not_found", f"no transaction {format_id(command.id)} here; nothing was stored")
    if command.producer is None:
        raise Problem("bad_request", "a rollback names its producer")
    source = producers.of(tx, command.producer, command.source)
    mark = now if command.mark is None else command.mark
    stored = tx.insert(Tx(0, command.id, source.id, State.ROLLED_BACK, b"", 0, mark, now, now, By.PRODUCER, 0, None, command.reason))
    if stored is None:
        raise Problem("state_changed", "the transaction was stored meanwhile; repeat the call")
    return _view(tx, stored, ())


def _decide(tx: StoreTx, now: int, known: Tx, command: Decision, *, said: str) -> TransactionView | Problem:
    heads = tx.message_heads(known.n) if command.commit else []
    event = _event(tx, known, command, heads)
    judged = step(known.state, event)
    if judged.outcome is not Outcome.OK:
        return refuse(tx, now, known, judged, said=said, said_by="producer")
    if judged.to is known.state:
        return _view(tx, known, places_of(tx, known))
    if command.commit:
        return commit_now(tx, now, known, command.numbers, By.PRODUCER, None, heads)
    return rollback_now(tx, now, known, By.PRODUCER, command.reason)


def _event(tx: StoreTx, known: Tx, command: Decision, heads: Heads) -> Event:
    if not command.commit:
        return Event.ROLLBACK
    complete = (not known.digest or command.digest == known.digest) and numbers_are_complete(tx, known, command.numbers, heads)
    return Event.COMMIT if complete else Event.COMMIT_INCOMPLETE


def numbers_are_complete(tx: StoreTx, known: Tx, numbers: tuple[int | None, ...] | None, heads: Heads) -> bool:
    """R5: each message of a sequence topic has its number; a decided one has the very number that was said first."""
    if known.state is State.ROLLED_BACK:
        return True
    for m, topic_id, _ in heads:
        if tx.topic_by_id(topic_id).kind is not Kind.SEQUENCE:
            continue
        index = m & 1023
        number = numbers[index] if numbers is not None and index < len(numbers) else None
        if number is None or (known.state is State.COMMITTED and number != _stored_number(tx, m)):
            return False
    return True


def _stored_number(tx: StoreTx, m: int) -> int | None:
    if (released := tx.where_is(m)) is not None:
        return released[3]
    if (held := tx.held_of_message(m)) is not None:
        return held[1]
    dead = tx.dead_of_message(m)
    return dead[0][3] if dead else None


def commit_now(tx: StoreTx, now: int, known: Tx, numbers: tuple[int | None, ...] | None, by: By, reason: str | None, heads: Heads) -> TransactionView:
    """From prepared or parked to committed, and release. The decision was judged before."""
    if not tx.decide(known, State.COMMITTED, now, by, reason):
        raise Problem("state_changed", "the transaction was decided meanwhile; repeat the call")
    ready = []
    for m, topic_id, okey in heads:
        key = None if okey is None else tx.key_name(okey)[3]
        index = m & 1023
        number = numbers[index] if numbers is not None and index < len(numbers) else None
        ready.append(Ready(m, tx.topic_by_id(topic_id), okey, key, number))
    places = release_all(tx, now, known, ready)
    _told(tx, known, by, State.COMMITTED, now)
    return _view(tx, _decided(known, State.COMMITTED, now, by, reason), places)


def rollback_now(tx: StoreTx, now: int, known: Tx, by: By, reason: str | None, *, keep_bodies: bool = False) -> TransactionView:
    """From prepared or parked to rolled back. The bodies go, but not after an operator's force (R4)."""
    if not tx.decide(known, State.ROLLED_BACK, now, by, reason):
        raise Problem("state_changed", "the transaction was decided meanwhile; repeat the call")
    for _, _, okey in tx.message_heads(known.n):
        if okey is not None:
            tx.close_key(okey, known.n)
    if not keep_bodies:
        tx.delete_messages(known.n)
    _told(tx, known, by, State.ROLLED_BACK, now)
    return _view(tx, _decided(known, State.ROLLED_BACK, now, by, reason), ())


def _decided(known: Tx, state: State, now: int, by: By, reason: str | None) -> Tx:
    return Tx(known.n, known.id, known.source, state, known.digest, known.msgs, known.mark, known.first_at, now, by, known.attempts, None, reason)


def _told(tx: StoreTx, known: Tx, by: By, state: State, now: int) -> None:
    if known.source != PLAIN:
        tx.emit(("decided", known.source, state.word, by.word, now - known.first_at, known.attempts))


_DETAILS = {
    Outcome.DECIDED_OTHERWISE: "the first decision stands",
    Outcome.CONTENT_DIFFERS: "this id came with other content or other numbers before; an id names one attempt",
    Outcome.INCOMPLETE: "a commit needs the digest of the content and the number of each ordered message; the transaction stays undecided",
    Outcome.STATE_CHANGED: "the transaction is not parked; park it first: halfmsg tx park ID --reason WHY",
}


def refuse(tx: StoreTx, now: int, known: Tx, judged: Step, *, said: str, said_by: str) -> Problem:
    """The problem for an outcome of the table; to be *returned*, not raised, since a listed one is stored beside the refusal.

    Whatever a producer says against an operator's decision is listed too: nobody else could tell the operator (R4).
    """
    if judged.listed or (said_by == "producer" and known.decided_by is By.OPERATOR):
        tx.add_conflict(known.id, known.state.word, said, said_by, now)
    return _conflict(tx, known, judged.outcome.value, f"{_DETAILS[judged.outcome]}; it is {known.state.word}")


def _conflict(tx: StoreTx, known: Tx, code: str, detail: str) -> Problem:
    return Problem(code, detail, transaction=_view(tx, known, ()))


def _check_sayer(tx: StoreTx, known: Tx, producer: str | None, source: bytes | None) -> None:
    """Who may decide: the source that prepared, or an operator."""
    if known.source == PLAIN:
        return
    owner = tx.source_by_id(known.source)
    if producer is not None and producer != owner.name:
        raise Problem("wrong_source", f"the transaction belongs to producer {owner.name}")
    if owner.db_id is not None and source != owner.db_id:
        said = "this call names no source" if source is None else f"{source.hex()} is another database"
        raise Problem("wrong_source", f"producer {owner.name} is bound to the database {owner.db_id.hex()}; {said}")


def _unreleased(rows: list[tuple[NewMessage, Topic, int | None, int]]) -> tuple[MessagePlace, ...]:
    return tuple(MessagePlace(message.index, topic.name, message.key) for message, topic, _, _ in rows)


def places_of(tx: StoreTx, known: Tx) -> tuple[MessagePlace, ...]:
    """Where each message of a transaction stands now: by unique look-ups, a few a message."""
    return tuple(_place_of(tx, m, topic_id, okey) for m, topic_id, okey in tx.message_heads(known.n))


def _place_of(tx: StoreTx, m: int, topic_id: int, okey: int | None) -> MessagePlace:
    name = tx.topic_by_id(topic_id).name
    key = None if okey is None else tx.key_name(okey)[3]
    if (at := tx.where_is(m)) is not None:
        return MessagePlace(m & 1023, name, key, at[3], at[1], at[2])
    if (held := tx.held_of_message(m)) is not None:
        return MessagePlace(m & 1023, name, key, held[1], held="gap")
    dead = tx.dead_of_message(m)
    return MessagePlace(m & 1023, name, key, dead=dead[0][2].word if dead else None)


def _view(tx: StoreTx, known: Tx, places: tuple[MessagePlace, ...], *, created: bool = False) -> TransactionView:
    return TransactionView(known, None if known.source == PLAIN else tx.source_by_id(known.source).name, places, created)


def show(tx: StoreTx, now: int, id: bytes) -> TransactionView:
    known = tx.find(id)
    if known is None:
        raise Problem("transaction_not_found", f"no transaction {format_id(id)} here")
    return _view(tx, known, places_of(tx, known))


def content_digest(messages: tuple[NewMessage, ...]) -> bytes:
    return transaction_digest(message.digest for message in sorted(messages, key=lambda m: m.index))
