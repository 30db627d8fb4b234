"""Transaction ids: UUIDs as 16 bytes inside, as text on the wire. Their time is never read (P10)."""

from __future__ import annotations

import os
import re

from .errors import Problem

_UUID = re.compile(r"[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}")


def parse_id(text: str) -> bytes:
    if _UUID.fullmatch(text) is None:
        raise Problem("bad_request", f"{text!r} is not a transaction's id, which is a UUID")
    return bytes.fromhex(text.replace("-", ""))


def format_id(raw: bytes) -> str:
    h = raw.hex()
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def message_id(tx_id: bytes, index: int) -> str:
    return f"{format_id(tx_id)}-{index}"


def parse_message_id(text: str) -> tuple[bytes, int]:
    head, _, index = text.rpartition("-")
    if not head or not (index.isascii() and index.isdigit()) or len(index) > 4:
        raise Problem("bad_request", f"{text!r} is not a message id (UUID-INDEX)")
    return parse_id(head), int(index)


def new_id(now_ms: int) -> bytes:
    """UUIDv7 (RFC 9562): ascending ids keep index inserts local."""
    raw = bytearray(now_ms.to_bytes(6, "big") + os.urandom(10))
    raw[6] = 0x70 | raw[6] & 0x0F
    raw[8] = 0x80 | raw[8] & 0x3F
    return bytes(raw)
