"""Digests (R9): bytes out are bytes in, and an id names one content. blake2b with 16 bytes over length-prefixed fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b

_ABSENT = b"\xff\xff\xff\xff"
_FOUR_ABSENT = _ABSENT * 4  # delay, deliver_at, expiry, priority: known, not built


def _field(value: bytes | None) -> bytes:
    return _ABSENT if value is None else len(value).to_bytes(4, "big") + value


def message_digest(*, topic: str, key: bytes | None, tag: str | None, content_type: str, body: bytes, attributes: Mapping[str, str] | None) -> bytes:
    """16 bytes over topic, key, tag, content type, the four times, body, then attributes sorted by name. Trace and numbers are outside."""
    hashed = blake2b(digest_size=16)
    head = _field(topic.encode()) + _field(key) + _field(None if tag is None else tag.encode()) + _field(content_type.encode())
    hashed.update(head + _FOUR_ABSENT + _field(body))
    if attributes:
        for name in sorted(attributes):
            hashed.update(_field(name.encode()) + _field(attributes[name].encode()))
    return hashed.digest()


def transaction_digest(digests: Iterable[bytes]) -> bytes:
    """16 bytes over its messages' digests in order of index."""
    return blake2b(b"".join(digests), digest_size=16).digest()


def lane_of(key: bytes, lanes: int) -> int:
    """First 8 bytes of blake2b(key), big-endian, mod lanes: fixed for the life of a topic."""
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "big") % lanes
