"""A message's body as bytes: bytes go as they are, everything else is JSON. What JSON cannot say faithfully is refused, never bent."""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from .errors import UsageError

JSON_TYPE: Final = "application/json"
BYTES_TYPE: Final = "application/octet-stream"
_WHITE: Final = b" \t\r\n"


def encode_body(body: object, content_type: str | None = None) -> tuple[bytes, str]:
    """The bytes and their content type. Raises UsageError: body_not_encodable; combination_refused for JSON under another type's name."""
    if isinstance(body, (bytes, bytearray, memoryview)):
        return bytes(body), content_type or BYTES_TYPE
    if content_type is not None and not _is_json(content_type):
        text = f"content_type {content_type!r} needs a body of bytes, but it is a {type(body).__name__}, which goes as JSON; encode it yourself"
        raise UsageError("combination_refused", text)
    return _encode_json(body), content_type or JSON_TYPE


def is_bare_json(content_type: str, body: bytes) -> bool:
    """May this body stand as raw `data` in JSON? Only one JSON value with no white space around it, so that bytes out are bytes in (P8)."""
    if content_type != JSON_TYPE or not body or body[:1] in _WHITE or body[-1:] in _WHITE:
        return False
    try:
        msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return True


def _is_json(content_type: str) -> bool:
    bare = content_type.partition(";")[0].strip().lower()
    return bare == JSON_TYPE or bare.endswith("+json")


def _encode_json(body: object) -> bytes:
    dump = getattr(body, "model_dump_json", None)  # pydantic by its shape, so that it need not be installed
    try:
        encoded = dump().encode() if callable(dump) else msgspec.json.encode(body, enc_hook=_foreign)
        # msgspec and pydantic write NaN as null. Without a null in the bytes there was none, so the slow look is rare.
        lost = b"null" in encoded and _has_nan(_builtins(body))
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        text = f"a {type(body).__name__} does not become JSON: {error}; hand in bytes, or a dict, dataclass, msgspec.Struct or pydantic model"
        raise UsageError("body_not_encodable", text) from error
    if lost:
        raise UsageError("body_not_encodable", "the body has a NaN or an infinity, which JSON cannot say; send null or a string on purpose")
    return encoded


def _builtins(body: object) -> Any:
    return msgspec.to_builtins(body, enc_hook=_foreign, str_keys=True)


def _foreign(value: object) -> Any:
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump()
    raise TypeError(f"objects of type {type(value).__name__} are not supported")


def _has_nan(value: object) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(map(_has_nan, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_has_nan, value))
