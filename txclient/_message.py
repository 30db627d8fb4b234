"""What a service hands in: a message, checked with the coordinator's own limits before anything is sent or written (API §0.9)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final, TypedDict, Unpack
from uuid import UUID

from . import _wire
from ._body import encode_body
from ._digest import message_digest
from ._units import Seconds, seconds
from .errors import UsageError

MAX_KEY_BYTES: Final = 256
MAX_ATTRIBUTES: Final = 32
MAX_ATTRIBUTE_NAME_BYTES: Final = 64
MAX_ATTRIBUTE_VALUE_BYTES: Final = 1_024
MAX_CONTENT_TYPE_CHARS: Final = 128
MAX_BODY_BYTES: Final = 4 * 1024 * 1024  # of a whole transaction; a topic's own limit is lower and the coordinator's to know
MAX_MESSAGES: Final = 1_000
MAX_PRIORITY: Final = 9
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class MessageOptions(TypedDict, total=False):
    """Options of one message; `delay` or `deliver_at`, never both."""

    key: str
    tag: str
    attributes: Mapping[str, str]
    delay: Seconds
    deliver_at: datetime
    expires_in: Seconds
    priority: int
    content_type: str


_OPTIONS: Final = frozenset(MessageOptions.__annotations__)


class Message:
    """One message to hand in. The body is encoded here, once: what changes afterwards changes nothing (R9).

    Raises UsageError: bad_name, too_large, body_not_encodable, naive_datetime, combination_refused. Times are whole milliseconds.
    """

    __slots__ = ("_digest", "attributes", "body", "content_type", "delay_ms", "deliver_at", "expires_in_ms", "key", "priority", "tag", "topic")

    def __init__(self, topic: str, body: object, **options: Unpack[MessageOptions]) -> None:
        if options and not options.keys() <= _OPTIONS:
            raise TypeError(f"a message has no option {sorted(options.keys() - _OPTIONS)[0]!r}; there are {', '.join(sorted(_OPTIONS))}")
        self.topic = _topic(topic)
        self.key = _key(options.get("key"))
        self.body, self.content_type = encode_body(body, _content_type(options.get("content_type")))
        if len(self.body) > MAX_BODY_BYTES:
            raise UsageError("too_large", f"the body has {len(self.body)} bytes, at most {MAX_BODY_BYTES}; store it elsewhere and send its address")
        tag = options.get("tag")
        self.tag = None if tag is None else name_of(tag, "tag")
        self.attributes = _attributes(options.get("attributes"))
        self.delay_ms = _ms(options.get("delay"), "delay")
        self.deliver_at = _aware(options.get("deliver_at"))
        self.expires_in_ms = _ms(options.get("expires_in"), "expires_in")
        self.priority = _priority(options.get("priority"))
        self._digest: bytes | None = None
        if options:
            self._refuse_combinations()

    def _refuse_combinations(self) -> None:
        """R22, as far as it can be judged without knowing the topic's kind."""
        if self.delay_ms is not None and self.deliver_at is not None:
            raise UsageError("combination_refused", "delay and deliver_at are two ways of the same thing; give one")
        if self.key is not None and self.priority is not None:
            raise UsageError("combination_refused", "priority and key: what has a key goes in its order; drop one of the two")
        if self.expires_in_ms is not None and self.expires_in_ms <= (self.delay_ms or 0):
            raise UsageError("combination_refused", "expires_in must be longer than 0 and than delay, else nobody ever gets the message")

    def digest(self) -> bytes:
        """16 bytes that name the content (R9); computed once."""
        if self._digest is None:
            at = None if self.deliver_at is None else round(self.deliver_at.timestamp() * 1000)
            self._digest = message_digest(
                topic=self.topic, key=self.key, tag=self.tag, content_type=self.content_type, body=self.body, attributes=self.attributes,
                delay_ms=self.delay_ms, deliver_at_ms=at, expires_in_ms=self.expires_in_ms, priority=self.priority,
            )  # fmt: skip
        return self._digest

    def wire(self, *, index: int | None = None, sequence: int | None = None) -> _wire.M:
        """M of the wire; `sequence` only in a submit."""
        return _wire.M(
            topic=self.topic, key=self.key, tag=self.tag, attributes=self.attributes, content_type=self.content_type, data=self.body,
            index=index, sequence=sequence, delay_s=_s(self.delay_ms), expires_in_s=_s(self.expires_in_ms), priority=self.priority,
            deliver_at=None if self.deliver_at is None else self.deliver_at.isoformat(),
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"Message({self.topic!r}, {len(self.body)} bytes of {self.content_type}, key={self.key!r})"


def name_of(value: object, what: str) -> str:
    """A name of the wire (topic, group, producer, tag). Raises UsageError(bad_name)."""
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    raise UsageError("bad_name", f"{value!r} is no {what}: a letter or digit, then letters, digits, dot, underscore or hyphen, 128 in all")


def _topic(value: object) -> str:
    topic = name_of(value, "topic")
    if topic.startswith("halfmsg."):
        raise UsageError("bad_name", f"{topic!r}: topics halfmsg.* are the coordinator's own; choose another name")
    return topic


def _key(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, (int, UUID)) and not isinstance(value, bool):
        value = str(value)  # a primary key is what most people have; one spelling each, so the order is kept
    if not isinstance(value, str) or not value:
        raise UsageError("bad_name", f"{value!r} is no key: 1 to {MAX_KEY_BYTES} bytes of text")
    if _bytes(value, "key") > MAX_KEY_BYTES:
        raise UsageError("too_large", f"the key has {_bytes(value, 'key')} bytes of UTF-8, at most {MAX_KEY_BYTES}")
    return value


def _attributes(given: Mapping[str, str] | None) -> dict[str, str] | None:
    if not given:
        return None
    if len(given) > MAX_ATTRIBUTES:
        raise UsageError("too_large", f"{len(given)} attributes, at most {MAX_ATTRIBUTES}")
    for name, value in given.items():
        if not isinstance(name, str) or not name or not isinstance(value, str):
            raise UsageError("bad_name", f"attribute {name!r}={value!r}: names and values are text, and a name is not empty")
        if _bytes(name, "attribute") > MAX_ATTRIBUTE_NAME_BYTES or _bytes(value, "attribute") > MAX_ATTRIBUTE_VALUE_BYTES:
            limits = f"{MAX_ATTRIBUTE_NAME_BYTES} bytes of name, {MAX_ATTRIBUTE_VALUE_BYTES} of value"
            raise UsageError("too_large", f"attribute {name[:64]!r} passes a limit: {limits}")
    return dict(given)


def _bytes(text: str, what: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise UsageError("bad_name", f"the {what} {text!r} is not UTF-8: {error.reason}") from error


def _content_type(value: object) -> str | None:
    if value is None or (isinstance(value, str) and 0 < len(value) <= MAX_CONTENT_TYPE_CHARS and value.isprintable() and value.isascii()):
        return value
    raise UsageError("bad_name", f"{value!r} is no content type: 1 to {MAX_CONTENT_TYPE_CHARS} printable ASCII characters")


def _ms(value: Seconds | None, what: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, timedelta)):
        raise UsageError("bad_request", f"{what}={value!r} is not a duration: seconds or a timedelta")
    return round(seconds(value) * 1000)


def _s(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000


def _aware(value: object) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise UsageError("bad_request", f"deliver_at={value!r} is not a datetime")
    if value.utcoffset() is None:
        raise UsageError("naive_datetime", f"deliver_at={value.isoformat()} has no time zone; use datetime.now(UTC) + ...")
    return value


def _priority(value: object) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_PRIORITY):
        return value
    raise UsageError("bad_request", f"priority={value!r} is not a whole number from 0 to {MAX_PRIORITY}")
