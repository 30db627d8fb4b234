"""Values <-> msgpack and JSON, as the client sends and reads them: alone knows the field names of the wire (API §6).

The coordinator has its own schema; golden files bind the two. Requests carry nothing it does not know; members of an answer that are
not known here are ignored, and so are frames of an unknown type. An operation's body is always bytes under `data`: JSON's two ways to
say them are made here and nowhere else.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from ._body import JSON_TYPE, is_bare_json
from ._delivery import Delivery, Fields
from .errors import TransportError

MAX_ITEMS: Final = 1_000  # operations of a frame, deliveries of an operation, messages of a transaction


class _Sent(Struct, omit_defaults=True, kw_only=True):
    pass


class M(_Sent):
    """One message."""

    topic: str
    key: str | None = None
    tag: str | None = None
    attributes: Mapping[str, str] | None = None
    content_type: str | None = None
    data: bytes = b""
    traceparent: str | None = None
    index: int | None = None
    sequence: int | None = None
    delay_s: float | None = None
    deliver_at: str | None = None
    expires_in_s: float | None = None
    priority: int | None = None


class _Content(_Sent):
    id: str
    messages: Sequence[M]
    producer: str | None = None
    source: str | None = None
    mark: int | None = None
    digest: str | None = None
    first_check_s: float | None = None


class Prepare(_Content, tag_field="op", tag="prepare"):
    pass


class Submit(_Content, tag_field="op", tag="submit"):
    """Without `producer` it is a plain send."""


class Commit(_Sent, tag_field="op", tag="commit"):
    id: str
    digest: str | None = None
    numbers: Sequence[int | None] | None = None
    source: str | None = None
    producer: str | None = None


class Rollback(_Sent, tag_field="op", tag="rollback"):
    id: str
    producer: str | None = None
    source: str | None = None
    mark: int | None = None
    reason: str | None = None


class Item(_Sent):
    """One delivery of an ack, nack, reject or extend."""

    token: str
    reason: str | None = None
    delay_s: float | None = None
    counts: bool = True


class _Hands(_Sent):
    group: str
    deliveries: Sequence[Item]


class Ack(_Hands, tag_field="op", tag="ack"):
    pass


class Nack(_Hands, tag_field="op", tag="nack"):
    pass


class Reject(_Hands, tag_field="op", tag="reject"):
    pass


class Extend(_Hands, tag_field="op", tag="extend"):
    by_s: float


class _Frame(_Sent, tag_field="type"):
    pass


class Hello(_Frame, tag="hello"):
    client: str
    version: str = ""
    producers: Sequence[Mapping[str, Any]] = ()


class Ops(_Frame, tag="ops"):
    n: int
    ops: Sequence[Raw]


class Subscribe(_Frame, tag="subscribe"):
    group: str
    credits: int
    lease_s: float
    member: str
    inbox: str | None = None
    holding: Sequence[str] = ()


class Unsubscribe(_Frame, tag="unsubscribe"):
    group: str
    member: str
    holding: Sequence[str] = ()


class Credit(_Frame, tag="credit"):
    group: str
    add: int


class Verdicts(_Frame, tag="verdicts"):
    n: int
    source: Any = None
    verdicts: Any = None
    holders: Any = None


class Beat(_Frame, tag="beat"):
    producers: Sequence[Mapping[str, Any]] = ()


# --- what is read ----------------------------------------------------------------------------------------------------------


class Result(Struct):
    ok: Any = None
    error: dict[str, Any] | None = None


class _Read(Struct, tag_field="type", kw_only=True):
    pass


class Welcome(_Read, tag="hello"):
    time: int | None = None
    limits: dict[str, Any] = {}
    connection: Any = None
    server: Any = None
    refused: list[dict[str, Any]] = []


class Results(_Read, tag="results"):
    n: int
    results: list[Result]
    time: int | None = None


class Deliver(_Read, tag="deliver"):
    group: str
    deliveries: list[Raw]
    member: str | None = None


class Revoke(_Read, tag="revoke"):
    group: str
    tokens: list[str] = []


class Check(_Read, tag="check"):
    n: int
    producer: str = ""
    source: str | None = None
    attempt: int | None = None
    transactions: list[dict[str, Any]] = []
    holders: list[dict[str, Any]] | None = None


class ServerBeat(_Read, tag="beat"):
    time: int | None = None
    settled_before: dict[str, int] = {}


class GoAway(_Read, tag="go_away"):
    reconnect_after_s: float = 1.0


class Problem(_Read, tag="error"):
    error: dict[str, Any] = {}
    group: str | None = None


Read = Welcome | Results | Deliver | Revoke | Check | ServerBeat | GoAway | Problem


class Msgpack:
    """The default codec: bodies travel as they are."""

    protocol: Final = "halfmsg.v1.msgpack"
    binary: Final = True
    encode = staticmethod(msgspec.msgpack.Encoder().encode)

    def __init__(self) -> None:
        self._frames: msgspec.msgpack.Decoder[Read] = msgspec.msgpack.Decoder(Read)
        self._delivery = msgspec.msgpack.Decoder(Delivery)

    def op(self, op: object) -> Raw:
        return Raw(self.encode(op))

    def frame(self, data: bytes) -> Read | None:
        return _frame(self._frames, msgspec.msgpack.decode, data)

    def deliveries(self, raw: Sequence[Raw], group: str) -> list[Delivery]:
        return [_of_group(self._delivery.decode(one), group) for one in raw]


class _WithBody(Fields, frozen=True, kw_only=True):
    data: Raw | UnsetType = UNSET
    data_base64: str | UnsetType = UNSET


class Json:
    """For people who read along, for HTTP, and for proxies that pass text only."""

    protocol: Final = "halfmsg.v1.json"
    binary: Final = False
    encode = staticmethod(msgspec.json.Encoder().encode)

    def __init__(self) -> None:
        self._frames: msgspec.json.Decoder[Read] = msgspec.json.Decoder(Read)
        self._with_body = msgspec.json.Decoder(_WithBody)

    def op(self, op: object) -> Raw:
        return Raw(self.encode(_spelled(op)))

    def frame(self, data: bytes) -> Read | None:
        return _frame(self._frames, msgspec.json.decode, data)

    def deliveries(self, raw: Sequence[Raw], group: str) -> list[Delivery]:
        return [_of_group(self._one(one), group) for one in raw]

    def _one(self, raw: Raw) -> Delivery:
        read = self._with_body.decode(raw)
        body = base64.b64decode(read.data_base64) if isinstance(read.data_base64, str) else b"" if read.data is UNSET else bytes(read.data)
        return Delivery(body=body, **{name: getattr(read, name) for name in Fields.__struct_fields__})


Codec = Msgpack | Json


class Deliveries(Struct):
    """The answer to a fetch."""

    deliveries: list[Raw]


def _frame(decoder: Any, generic: Any, data: bytes) -> Read | None:
    """A frame; None for a type that a newer coordinator may send. Raises TransportError(protocol) for what is no frame at all."""
    try:
        return decoder.decode(data)  # type: ignore[no-any-return]
    except (msgspec.MsgspecError, ValueError) as error:
        try:
            kind = generic(data).get("type")
        except (msgspec.MsgspecError, ValueError, AttributeError):
            kind = None
        if isinstance(kind, str) and kind not in {one.__struct_config__.tag for one in Read.__args__}:
            return None
        raise TransportError("protocol", f"the coordinator sent a frame that is not understood: {error}; are both of the same version?") from error


def _of_group(delivery: Delivery, group: str) -> Delivery:
    if not delivery.group:  # on the stream the frame names the group, not each delivery
        msgspec.structs.force_setattr(delivery, "group", group)
    return delivery


def _spelled(op: object) -> Any:
    """An operation for JSON: each message's bytes as raw JSON where they are one bare value, else as base64."""
    plain = msgspec.to_builtins(op, builtin_types=(bytes,))
    for message in plain.get("messages", ()):
        body = message.pop("data", b"")
        if is_bare_json(message.get("content_type") or JSON_TYPE, body):
            message["data"] = Raw(body)
        else:
            message["data_base64"] = base64.b64encode(body).decode()
    return plain
