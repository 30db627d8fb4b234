"""Digests (R9): what binds a decision to the content it was made for. Bytes here are a contract with the coordinator and the outbox."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b

DIGEST_BYTES = 16
_ABSENT = b"\xff\xff\xff\xff"


def message_digest(
    *,
    topic: str,
    key: str | None,
    tag: str | None,
    content_type: str,
    body: bytes,
    attributes: Mapping[str, str] | None = None,
    delay_ms: int | None = None,
    deliver_at_ms: int | None = None,
    expires_in_ms: int | None = None,
    priority: int | None = None,
) -> bytes:
    """16 bytes over all that a consumer will see, each part as length (4 bytes, big-endian) and bytes, an absent one as FFFFFFFF.

    Trace context, numbers and retry headers are outside it: they may differ between two sendings of the same message.
    """
    parts = [_text(topic), _text(key), _text(tag), _text(content_type)]
    parts += [_number(delay_ms), _number(deliver_at_ms), _number(expires_in_ms), _number(priority), _part(body)]
    if attributes:
        for name in sorted(attributes):
            parts += [_text(name), _text(attributes[name])]
    return blake2b(b"".join(parts), digest_size=DIGEST_BYTES).digest()


def transaction_digest(messages: Iterable[bytes]) -> bytes:
    """The same hash over the digests of its messages in order of index."""
    return blake2b(b"".join(messages), digest_size=DIGEST_BYTES).digest()


def _part(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _text(value: str | None) -> bytes:
    return _ABSENT if value is None else _part(value.encode())


def _number(value: int | None) -> bytes:
    return _ABSENT if value is None else _part(str(value).encode())
