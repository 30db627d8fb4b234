"""Values -> wire. The inverse of `parse.py`; what a reader sees is decided here and nowhere else."""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from . import wire
from .clock import rfc3339
from .errors import Problem
from .ids import format_id, message_id
from .messages import By, Delivery, Group, ItemResult, Logged, MessagePlace, Source, Topic, TransactionView
from .service.fetching import decode_extra


def transaction(view: TransactionView) -> wire.TransactionOut:
    tx = view.tx
    return wire.TransactionOut(
        id=format_id(tx.id),
        state=tx.state.word,
        digest=tx.digest.hex(),
        prepared_at=rfc3339(tx.first_at),
        attempts=tx.attempts,
        producer=view.producer,
        decided_at=None if tx.decided_at is None else rfc3339(tx.decided_at),
        decided_by=None if tx.decided_by is None else tx.decided_by.word,
        reason=tx.reason,
        next_check_at=None if tx.next_check is None else rfc3339(tx.next_check),
        messages=[place(tx.id, each) for each in view.messages],
    )


def place(tx_id: bytes, each: MessagePlace) -> wire.MessageState:
    return wire.MessageState(
        id=message_id(tx_id, each.index),
        topic=each.topic,
        key=None if each.key is None else each.key.decode(),
        sequence=each.sequence,
        lane=each.lane,
        offset=each.offset,
        held=each.held,
        dead=each.dead,
    )


def content(out: wire.DeliveryOut, row: Logged, *, packed: bool) -> wire.DeliveryOut:
    """Fill in body, content type, attributes and trace of a stored message."""
    content_type, attributes, traceparent = decode_extra(row.extra)
    out.content_type, out.attributes, out.traceparent = content_type, attributes, traceparent
    if packed:
        out.data = row.body
    elif wire.is_bare_json(content_type, row.body):
        out.data = msgspec.Raw(row.body)
    else:
        out.data_base64 = base64.b64encode(row.body).decode()
    return out


def logged(row: Logged, topic: str, lane: int, producer: str | None, *, packed: bool = False) -> wire.DeliveryOut:
    """A released message as anybody may look at it: no token, no lease."""
    out = wire.DeliveryOut(
        id=message_id(row.tx_id, row.m & 1023),
        transaction_id=format_id(row.tx_id),
        topic=topic,
        lane=lane,
        offset=row.off,
        time=rfc3339(row.at),
        key=None if row.key is None else row.key.decode(),
        sequence=row.seq,
        tag=row.tag,
        producer=producer,
        forced=row.by == By.OPERATOR,
    )
    return content(out, row, packed=packed)


def delivery(given: Delivery, *, packed: bool) -> wire.DeliveryOut:
    out = logged(given.row, given.topic, given.lane, given.producer, packed=packed)
    out.group, out.token, out.lease_until = given.group, given.token, rfc3339(given.lease_until)
    out.generation, out.attempt, out.age_s = given.generation, given.attempt, given.age_ms / 1000
    out.source, out.redriven = given.source, given.redriven
    out.missed = list(given.missed) or None
    return out


def deliveries(given: list[Delivery], *, packed: bool) -> list[wire.DeliveryOut]:
    return [delivery(each, packed=packed) for each in given]


def items(results: list[ItemResult]) -> dict[str, Any]:
    return {"results": [item(each) for each in results]}


_OK: dict[str, Any] = {"ok": {}}


def item(result: ItemResult) -> dict[str, Any]:
    if result.error is not None:
        return {"error": problem(Problem(*result.error))}
    if result.given_back:
        return {"ok": {"given_back": list(result.given_back)}}
    return _OK if result.lease_until is None else {"ok": {"lease_until": rfc3339(result.lease_until)}}


def problem(error: Problem, request_id: str | None = None) -> dict[str, Any]:
    body = error.body()
    if isinstance(view := body.get("transaction"), TransactionView):
        body["transaction"] = transaction(view)
    if request_id is not None:
        body["request_id"] = request_id
    return body


def topic(each: Topic, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "name": each.name,
        "kind": each.kind.word,
        "lanes": each.lanes,
        "retention_s": each.retention_s,
        "max_message_bytes": each.max_message_bytes,
        "max_backlog": each.max_backlog,
        "allow_no_group": each.allow_no_group,
    } | (extra or {})


def group(groups: list[Group], topics: dict[int, str], extra: dict[str, Any] | None = None) -> dict[str, Any]:
    first = groups[0]
    subscriptions = []
    for each in groups:
        entry: dict[str, Any] = {"topic": topics[each.topic]}
        if each.tag is not None:
            entry["tag"] = each.tag
        if each.attributes:
            entry["attributes"] = dict(each.attributes)
        subscriptions.append(entry)
    return {
        "name": first.name,
        "topics": subscriptions,
        "mode": "shared",
        "start": first.start,
        "lease_s": first.lease_ms / 1000,
        "max_attempts": first.max_attempts,
        "backoff": {"first_s": first.backoff_first_ms / 1000, "max_s": first.backoff_max_ms / 1000},
        "generation": max(each.generation for each in groups),
        "paused": first.paused,
        "inbox": next((each.inbox.hex() for each in groups if each.inbox is not None), None),
    } | (extra or {})


def producer(each: Source, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "name": each.name,
        "source": None if each.db_id is None else each.db_id.hex(),
        "incarnation": each.incarnation,
        "frozen": each.frozen,
        "check_url": each.check_url,
        "dialect": each.dialect,
        "said_hello": each.said_hello,
    } | (extra or {})
