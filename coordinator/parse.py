"""Wire values -> commands. Everything that can be refused without the store is refused here, on the loop, before the writer is asked."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
from msgspec import UNSET

from . import wire
from .digests import message_digest, transaction_digest
from .errors import Problem
from .ids import new_id, parse_id
from .messages import Content, Decision, ExtendMany, Fetch, Force, Kind, NewMessage, Park, Settle, SettleMany
from .service.groups import GroupWanted, Wanted
from .service.topics import TopicWanted

_encode_extra = msgspec.msgpack.Encoder().encode
_NOT_BUILT = ("delay_s", "deliver_at", "expires_in_s", "priority")


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)


def message(given: wire.MessageIn, index: int, *, packed: bool, topic: str | None = None) -> NewMessage:
    """`topic` from the path stands in for the one of the body."""
    topic = topic or given.topic
    for name in _NOT_BUILT:
        if getattr(given, name) is not UNSET:
            raise Problem("not_supported", f"{name} is known but not built yet; nothing was stored")
    key = _key(given.key)
    _check_attributes(given.attributes)
    content_type = given.content_type or wire.JSON_TYPE
    body = wire.body_of(given, packed=packed)
    digest = message_digest(topic=topic, key=key, tag=given.tag, content_type=content_type, body=body, attributes=given.attributes)
    extra = _encode_extra((content_type, given.attributes, given.traceparent))
    return NewMessage(index if given.index is None else given.index, topic, key, given.tag, extra, body, digest, given.sequence)


def _key(key: str | None) -> bytes | None:
    if key is None:
        return None
    try:
        raw = key.encode()
    except UnicodeEncodeError as error:
        raise Problem("bad_name", "a key is text of UTF-8 without lone surrogates") from error
    if not 1 <= len(raw) <= wire.MAX_KEY_BYTES:
        raise Problem("bad_name", f"a key has 1 to {wire.MAX_KEY_BYTES} bytes of UTF-8; this one has {len(raw)}")
    return raw


def _check_attributes(attributes: dict[str, str] | None) -> None:
    if not attributes:
        return
    if len(attributes) > wire.MAX_ATTRIBUTES:
        raise Problem("too_large", f"{len(attributes)} attributes; {wire.MAX_ATTRIBUTES} are allowed")
    for name, value in attributes.items():
        if not 1 <= len(name.encode()) <= wire.MAX_ATTRIBUTE_NAME_BYTES or len(value.encode()) > wire.MAX_ATTRIBUTE_VALUE_BYTES:
            raise Problem("too_large", f"attribute {name[:80]!r}: a name has 1 to 64 bytes, a value at most 1,024")


def content(given: Any, *, submit: bool, packed: bool, now_ms: int) -> Content:
    """Prepare or submit. The digest is computed from the content; one that was sent must be the same (R9)."""
    messages = tuple(message(each, index, packed=packed) for index, each in enumerate(given.messages))
    if len(messages) > 1:
        messages = _in_order(messages)
    size = sum(len(each.body) for each in messages)
    if size > wire.MAX_TRANSACTION_BYTES:
        raise Problem("too_large", f"{size} bytes of bodies; a transaction takes {wire.MAX_TRANSACTION_BYTES}")
    digest = transaction_digest(each.digest for each in messages)
    if given.digest is not None and given.digest != digest.hex():
        raise Problem("content_differs", f"the digest says {given.digest}, the content {digest.hex()}; nothing was stored")
    id = new_id(now_ms) if given.id is None else parse_id(given.id)
    source = None if given.source is None else bytes.fromhex(given.source)
    return Content(id, given.producer, source, given.mark, digest, messages, _ms(given.first_check_s), submit)


def _in_order(messages: tuple[NewMessage, ...]) -> tuple[NewMessage, ...]:
    ordered = tuple(sorted(messages, key=lambda each: each.index))
    if len({each.index for each in ordered}) != len(ordered):
        raise Problem("bad_request", "two messages have the same index")
    return ordered


def plain(given: wire.PlainSend, topic: str, *, now_ms: int) -> Content:
    if given.topic:
        raise Problem("bad_request", f"the path names the topic, {topic}: leave it out of the body - at `$.topic`")
    if given.sequence is not None or given.index is not None:
        raise Problem("bad_request", "a plain send has no sequence and no index")
    one = message(given, 0, packed=False, topic=topic)
    id = new_id(now_ms) if given.id is None else parse_id(given.id)
    return Content(id, None, None, None, transaction_digest((one.digest,)), (one,), None, True)


def decision(id: str, given: wire.CommitIn | wire.RollbackIn) -> Decision | Force:
    """A producer's word, or with `force` an operator's (R4)."""
    raw = parse_id(id)
    commit = isinstance(given, wire.CommitIn)
    numbers = tuple(given.numbers) if isinstance(given, wire.CommitIn) and given.numbers is not None else None
    if given.force:
        if not given.reason:
            raise Problem("bad_request", "a forced decision needs a reason; it goes to the audit")
        return Force(raw, commit, given.reason, numbers, given.if_state)
    source = None if given.source is None else bytes.fromhex(given.source)
    if isinstance(given, wire.CommitIn):
        digest = None if given.digest is None else bytes.fromhex(given.digest)
        return Decision(raw, True, given.producer, source, digest, numbers)
    return Decision(raw, False, given.producer, source, mark=given.mark, reason=given.reason)


def park(id: str, given: wire.ParkIn) -> Park:
    return Park(parse_id(id), given.reason, given.if_state)


def acks(group: str, given: wire.AckIn) -> SettleMany:
    return SettleMany(group, tuple(Settle(each.token, "ack") for each in given.deliveries))


def nacks(group: str, given: wire.NackIn) -> SettleMany:
    return SettleMany(group, tuple(Settle(n.token, "nack", n.reason, _ms(n.delay_s), n.counts) for n in given.deliveries))


def rejects(group: str, given: wire.RejectIn) -> SettleMany:
    return SettleMany(group, tuple(Settle(each.token, "reject", each.reason) for each in given.deliveries))


def extension(group: str, given: wire.ExtendIn) -> ExtendMany:
    return ExtendMany(group, tuple(each.token for each in given.deliveries), int(given.by_s * 1000))


def fetch(group: str, given: wire.FetchIn) -> Fetch:
    inbox = None if given.inbox is None else bytes.fromhex(given.inbox)
    return Fetch(group, given.max, _ms(given.lease_s), given.member, inbox, may_be_lost=True)


def topic(name: str, given: wire.TopicIn) -> TopicWanted:
    kind = Kind[given.kind.upper()]
    return TopicWanted(name, kind, given.lanes, given.retention_s, given.max_message_bytes, given.max_backlog, given.allow_no_group)


def _start_at(text: str) -> Problem:
    try:
        msgspec.convert(text, datetime)
    except msgspec.ValidationError:
        return Problem("bad_request", f"start is earliest, latest or a time of RFC 3339, not {text[:80]!r} - at `$.start`")
    return Problem("not_supported", "start at a time is known but not built yet; use earliest or latest")


def group(name: str, given: wire.GroupIn) -> GroupWanted:
    if given.push is not UNSET or given.mode != "shared":
        raise Problem("not_supported", "push groups and broadcast are known but not built yet; nothing was stored")
    if given.start not in ("earliest", "latest"):
        raise _start_at(given.start)
    topics = tuple(Wanted(each.topic, each.tag, tuple((each.attributes or {}).items())) for each in given.topics)
    back = given.backoff
    return GroupWanted(
        name, topics, given.start, _ms(given.lease_s), given.max_attempts, _ms(back.first_s) if back else None, _ms(back.max_s) if back else None
    )
