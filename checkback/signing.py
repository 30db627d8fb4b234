"""Standard Webhooks 1.0.0 signatures (v1, HMAC-SHA256) over question and answer. Pure: the time comes in.

Own code, because the reference library raises `ValueError` and `UnicodeDecodeError` on malformed input, which turns an
attack into a 500; it is the oracle of the tests instead.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence

TOLERANCE_S = 300
HEADER_CHARS_MAX = 4096
ID = "webhook-id"
TIMESTAMP = "webhook-timestamp"
SIGNATURE = "webhook-signature"


def check_secrets(secrets: str | Sequence[str] | None) -> tuple[str, ...]:
    """The secrets as a tuple, newest first; a single one may come bare, None means unsigned.

    Errors: ValueError for a secret that is not base64 of 24 to 64 bytes; the text never shows it.
    """
    given = (secrets,) if isinstance(secrets, str) else tuple(secrets or ())
    for secret in given:
        _key(secret)
    return given


def sign(secrets: Sequence[str], message_id: str, now_s: float, body: bytes) -> dict[str, str]:
    """The three headers for a body, signed with every secret: two while one is being rotated. Without secrets: no headers."""
    if not secrets:
        return {}
    timestamp = str(int(now_s))
    signatures = (b"v1," + _mac(_key(secret), message_id, timestamp, body) for secret in secrets)
    return {ID: message_id, TIMESTAMP: timestamp, SIGNATURE: b" ".join(signatures).decode("ascii")}


def verify(secrets: Sequence[str], headers: Mapping[str, str], body: bytes, now_s: float) -> bool:
    """Whether any secret made any of the signatures, within the tolerance either way. Malformed anything is False, never an error."""
    message_id, timestamp, signature = (header(headers, name) for name in (ID, TIMESTAMP, SIGNATURE))
    if not message_id or not timestamp or not _is_fresh(timestamp, now_s) or max(map(len, (message_id, signature))) > HEADER_CHARS_MAX:
        return False
    given = [part[3:].encode("utf-8", "replace") for part in signature.split(" ") if part.startswith("v1,")]
    matched = False
    for secret in secrets:
        try:
            expected = _mac(_key(secret), message_id, timestamp, body)
        except ValueError:
            continue
        for mac in given:
            matched |= hmac.compare_digest(mac, expected)
    return matched


def header(headers: Mapping[str, str], name: str) -> str:
    """A header by its lower-case name, however the framework spells it; empty if absent."""
    return next((value for key, value in headers.items() if key.lower() == name), "")


def _is_fresh(timestamp: str, now_s: float) -> bool:
    # isdigit alone would let "٣" and "²" through
    whole = timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12
    return whole and abs(int(timestamp) - now_s) <= TOLERANCE_S


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix("whsec_").encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        key = b""
    if not 24 <= len(key) <= 64:
        made = "`halfmsg producer set NAME --check-url URL` shows a new producer's, once"
        raise ValueError(f"a check secret is whsec_ and the base64 of 24 to 64 random bytes; {made}")
    return key


def _mac(key: bytes, message_id: str, timestamp: str, body: bytes) -> bytes:
    signed = f"{message_id}.{timestamp}.".encode("utf-8", "replace") + body
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest())
