"""JSON and msgpack <-> values: alone knows field names and size limits of the wire (API §6).

One vocabulary of operations stands in three envelopes: a resource call, an item of `POST /v1/batch`, an item of a stream's `ops`
frame. The structs here are their one schema, and `/openapi.json` is generated from them. Unknown request fields are refused:
a misspelt option that is ignored would be a silent strip. Fields of what is not built yet are known and answered `not_supported`.
Server and client share no code; tests/contract/golden binds the two.
"""

from __future__ import annotations

import base64
import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from .errors import Problem

MAX_FRAME_BYTES = 8 * 1024 * 1024
MAX_TRANSACTION_BYTES = 4 * 1024 * 1024
MAX_MESSAGES = 1_000
MAX_BATCH_OPS = 1_000
MAX_DELIVERIES = 1_000
MAX_KEY_BYTES = 256
MAX_ATTRIBUTES = 32
MAX_ATTRIBUTE_NAME_BYTES = 64
MAX_ATTRIBUTE_VALUE_BYTES = 1_024
MAX_REASON_CHARS = 1_024
JSON_TYPE = "application/json"

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$(?!\n)"
NAME_TEXT = NAME[1:].partition("$")[0]
HEX32 = r"^[0-9a-f]{32}$(?!\n)"

Name = Annotated[str, Meta(pattern=NAME)]
TxId = Annotated[str, Meta(min_length=32, max_length=36)]
Hex32 = Annotated[str, Meta(pattern=HEX32)]
Millis = Annotated[int, Meta(ge=0, lt=2**53)]
Seconds = Annotated[float, Meta(ge=0, le=10 * 365 * 86_400)]
WaitSeconds = Annotated[float, Meta(ge=0, le=30)]
Sequence = Annotated[int, Meta(ge=1, lt=2**53)]
Reason = Annotated[str, Meta(max_length=MAX_REASON_CHARS)]
Numbers = Annotated[list[Sequence | None], Meta(max_length=1_024)]
Text = Annotated[str, Meta(max_length=256)]
State = Literal["prepared", "committed", "rolled_back", "parked"]


class _Strict(Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    pass


# --- what is sent in -------------------------------------------------------------------------------------------------------


class MessageIn(_Strict, kw_only=True):
    """M: one message as handed in. `data` (raw JSON, kept byte for byte) or `data_base64`; in msgpack always `data`, as bin."""

    topic: Name
    key: str | None = None
    tag: Name | None = None
    attributes: dict[str, str] | None = None
    content_type: Annotated[str, Meta(max_length=128)] | None = None
    data: msgspec.Raw | UnsetType = UNSET
    data_base64: str | UnsetType = UNSET
    traceparent: Annotated[str, Meta(max_length=64)] | None = None
    index: Annotated[int, Meta(ge=0, lt=1_024)] | None = None
    sequence: Sequence | None = None
    delay_s: float | UnsetType = UNSET
    deliver_at: str | UnsetType = UNSET
    expires_in_s: float | UnsetType = UNSET
    priority: int | UnsetType = UNSET


class _Content(_Strict, kw_only=True):
    id: TxId | None = None
    producer: Name | None = None
    source: Hex32 | None = None
    mark: Millis | None = None
    digest: Hex32 | None = None
    messages: Annotated[list[MessageIn], Meta(min_length=1, max_length=MAX_MESSAGES)]
    first_check_s: Annotated[float, Meta(ge=0, le=86_400)] | None = None


class TransactionIn(_Content, kw_only=True):
    """`POST /v1/transactions`. `state: committed` is a submit: prepare if absent, and commit."""

    state: Literal["prepared", "committed"] = "prepared"


class Prepare(_Content, tag_field="op", tag="prepare", kw_only=True):
    pass


class Submit(_Content, tag_field="op", tag="submit", kw_only=True):
    """Without `producer` it is a plain send: nobody is ever asked about it."""


class CommitIn(_Strict, kw_only=True):
    digest: Hex32 | None = None
    numbers: Numbers | None = None
    source: Hex32 | None = None
    producer: Name | None = None
    force: bool = False
    reason: Reason | None = None
    if_state: State | None = None


class Commit(CommitIn, tag_field="op", tag="commit", kw_only=True):
    id: TxId


class RollbackIn(_Strict, kw_only=True):
    producer: Name | None = None
    source: Hex32 | None = None
    mark: Millis | None = None
    reason: Reason | None = None
    force: bool = False
    if_state: State | None = None


class Rollback(RollbackIn, tag_field="op", tag="rollback", kw_only=True):
    id: TxId


class ParkIn(_Strict, kw_only=True):
    reason: Annotated[str, Meta(min_length=1, max_length=MAX_REASON_CHARS)]
    if_state: State | None = None


class Token(_Strict, kw_only=True):
    token: Annotated[str, Meta(max_length=96)]


class Nacked(Token, kw_only=True):
    reason: Reason = ""
    delay_s: Annotated[float, Meta(ge=0, le=86_400)] | None = None
    counts: bool = True


class Rejected(Token, kw_only=True):
    reason: Reason


class AckIn(_Strict, kw_only=True):
    deliveries: Annotated[list[Token], Meta(min_length=1, max_length=MAX_DELIVERIES)]


class NackIn(_Strict, kw_only=True):
    deliveries: Annotated[list[Nacked], Meta(min_length=1, max_length=MAX_DELIVERIES)]


class RejectIn(_Strict, kw_only=True):
    deliveries: Annotated[list[Rejected], Meta(min_length=1, max_length=MAX_DELIVERIES)]


class ExtendIn(_Strict, kw_only=True):
    deliveries: Annotated[list[Token], Meta(min_length=1, max_length=MAX_DELIVERIES)]
    by_s: Annotated[float, Meta(gt=0, le=3_600)]


class Ack(AckIn, tag_field="op", tag="ack", kw_only=True):
    group: Name


class Nack(NackIn, tag_field="op", tag="nack", kw_only=True):
    group: Name


class Reject(RejectIn, tag_field="op", tag="reject", kw_only=True):
    group: Name


class Extend(ExtendIn, tag_field="op", tag="extend", kw_only=True):
    group: Name


Op = Prepare | Submit | Commit | Rollback | Ack | Nack | Reject | Extend


class BatchIn(_Strict, kw_only=True):
    ops: Annotated[list[Op], Meta(min_length=1, max_length=MAX_BATCH_OPS)]


class FetchIn(_Strict, kw_only=True):
    max: Annotated[int, Meta(ge=1, le=MAX_DELIVERIES)] = 100
    wait_s: WaitSeconds = 0.0
    lease_s: Annotated[float, Meta(ge=0.05, le=3_600)] | None = None
    member: Text | None = None
    inbox: Hex32 | None = None


class PlainSend(MessageIn, kw_only=True):
    """`POST /v1/topics/{topic}/messages`: M without its topic (the path has it) and with the transaction's id."""

    topic: Text = ""
    """For a clear answer alone (parse.py)."""
    id: TxId | None = None


class TopicIn(_Strict, kw_only=True):
    kind: Literal["unordered", "sequence", "arrival"]
    lanes: Annotated[int, Meta(ge=1, le=1_024)] | None = None
    retention_s: Seconds | None = None
    max_message_bytes: Annotated[int, Meta(ge=1, le=16 * 1024 * 1024)] | None = None
    max_backlog: Annotated[int, Meta(ge=1)] | None = None
    allow_no_group: bool = False


class Subscription(_Strict, kw_only=True):
    topic: Name
    tag: Name | None = None
    attributes: dict[str, str] | None = None


class Backoff(_Strict, kw_only=True):
    first_s: Annotated[float, Meta(gt=0, le=86_400)] = 1.0
    max_s: Annotated[float, Meta(gt=0, le=86_400)] = 600.0


class PushIn(_Strict, kw_only=True):
    url: str


class GroupIn(_Strict, kw_only=True):
    topics: Annotated[list[Subscription], Meta(min_length=1, max_length=64)]
    mode: Literal["shared", "broadcast"] = "shared"
    start: str = "earliest"
    lease_s: Annotated[float, Meta(ge=0.05, le=3_600)] | None = None
    max_attempts: Annotated[int, Meta(ge=1, le=1000000)] | UnsetType | None = UNSET
    backoff: Backoff | None = None
    push: PushIn | UnsetType = UNSET


class ProducerIn(_Strict, kw_only=True):
    check_url: Annotated[str, Meta(max_length=2_048)] | None = None
    dialect: Literal["halfmsg", "dtm"] = "halfmsg"
    limits: dict[str, Any] | UnsetType = UNSET


class CheckIn(_Strict, kw_only=True):
    ids: Annotated[list[TxId], Meta(max_length=50)] | None = None


# --- what is sent out ------------------------------------------------------------------------------------------------------


class MessageState(Struct, omit_defaults=True, kw_only=True):
    id: str
    topic: str
    key: str | None = None
    sequence: int | None = None
    lane: int | None = None
    offset: int | None = None
    held: str | None = None
    dead: str | None = None


class HistoryEntry(Struct, omit_defaults=True, kw_only=True):
    at: str
    what: str
    detail: str | None = None


class TransactionOut(Struct, omit_defaults=True, kw_only=True):
    """T: what the coordinator knows of a transaction now."""

    id: str
    state: str
    digest: str
    prepared_at: str
    attempts: int
    producer: str | None = None
    decided_at: str | None = None
    decided_by: str | None = None
    reason: str | None = None
    next_check_at: str | None = None
    messages: list[MessageState] = []
    history: list[HistoryEntry] | None = None


class DeliveryOut(Struct, omit_defaults=True, kw_only=True):
    """D: a message in a consumer's hand."""

    id: str
    transaction_id: str
    topic: str
    lane: int
    offset: int
    time: str
    group: str | None = None
    token: str | None = None
    lease_until: str | None = None
    generation: int = 1
    attempt: int = 1
    age_s: float = 0.0
    key: str | None = None
    sequence: int | None = None
    tag: str | None = None
    attributes: dict[str, str] | None = None
    content_type: str = JSON_TYPE
    data: msgspec.Raw | bytes | UnsetType = UNSET
    data_base64: str | UnsetType = UNSET
    traceparent: str | None = None
    producer: str | None = None
    source: str | None = None
    missed: list[int] | None = None
    redriven: bool = False
    forced: bool = False


class DeliveriesOut(Struct):
    deliveries: list[DeliveryOut]


# --- stream frames ---------------------------------------------------------------------------------------------------------


class ProducerHello(_Strict, kw_only=True):
    name: Name
    source: Hex32 | None = None


class ProducerBeat(_Strict, kw_only=True):
    name: Name
    source: Hex32 | None = None
    beats: Annotated[list[str], Meta(max_length=16)] | None = None
    clean_before: Millis | None = None


class _Frame(_Strict, tag_field="type", kw_only=True):
    pass


class HelloFrame(_Frame, tag="hello", kw_only=True):
    """First frame of a client, and again whenever its producers change; the last one stands."""

    client: Text
    version: Text = ""
    producers: Annotated[list[ProducerHello], Meta(max_length=64)] = []


class OpsFrame(_Frame, tag="ops", kw_only=True):
    n: int
    ops: Annotated[list[Op], Meta(min_length=1, max_length=MAX_BATCH_OPS)]


class SubscribeFrame(_Frame, tag="subscribe", kw_only=True):
    group: Name
    credits: Annotated[int, Meta(ge=0, le=10_000)]
    lease_s: Annotated[float, Meta(ge=0.05, le=3_600)] | None = None
    member: Text
    inbox: Hex32 | None = None
    holding: Annotated[list[Annotated[str, Meta(max_length=96)]], Meta(max_length=10_000)] = []


class UnsubscribeFrame(_Frame, tag="unsubscribe", kw_only=True):
    group: Name
    member: Text | None = None
    holding: Annotated[list[Annotated[str, Meta(max_length=96)]], Meta(max_length=10_000)] | None = None


class CreditFrame(_Frame, tag="credit", kw_only=True):
    group: Name
    add: Annotated[int, Meta(ge=1, le=10_000)]


class VerdictsFrame(_Frame, tag="verdicts", kw_only=True):
    """Read leniently: what an answer means is judged by halfmsg.checkback.verdict, where a bad one is `no_answer`."""

    n: int
    source: Any = None
    verdicts: Any = None
    holders: Any = None


class BeatFrame(_Frame, tag="beat", kw_only=True):
    producers: Annotated[list[ProducerBeat], Meta(max_length=64)] = []


ClientFrame = HelloFrame | OpsFrame | SubscribeFrame | UnsubscribeFrame | CreditFrame | VerdictsFrame | BeatFrame

# --- decode ----------------------------------------------------------------------------------------------------------------

_UNKNOWN_FIELD = re.compile(r"unknown field `([^`]*)`")
_NAME_PATHS = re.compile(r"matching regex")


def problem_of(error: msgspec.MsgspecError | ValueError) -> Problem:
    """The text of a decode error has the JSON path; the code is chosen from what is wrong."""
    text = str(error)
    if _UNKNOWN_FIELD.search(text):
        return Problem("unknown_field", text)
    if _NAME_PATHS.search(text):
        return Problem("bad_name", f"{text}; a name is {NAME_TEXT}, an id of a source or a digest 32 hex digits")
    if "length <=" in text or ("length >=" in text and "messages" in text):
        return Problem("too_large" if "<=" in text else "bad_request", text)
    return Problem("bad_request", text)


def decode_json(data: bytes, kind: Any) -> Any:
    """Raises `Problem` (bad_request, unknown_field, bad_name, too_large); a NaN, a lone surrogate, a second value are bad_request."""
    try:
        return _json_decoder(kind).decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise problem_of(error if isinstance(error, ValueError) else ValueError(str(error))) from error


def decode_msgpack(data: bytes, kind: Any) -> Any:
    try:
        return _msgpack_decoder(kind).decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise problem_of(error if isinstance(error, ValueError) else ValueError(str(error))) from error


_json_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}
_msgpack_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


def _json_decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    decoder = _json_decoders.get(kind)
    if decoder is None:
        decoder = _json_decoders[kind] = msgspec.json.Decoder(kind)
    return decoder


def _msgpack_decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    decoder = _msgpack_decoders.get(kind)
    if decoder is None:
        decoder = _msgpack_decoders[kind] = msgspec.msgpack.Decoder(kind)
    return decoder


encode_json = msgspec.json.Encoder().encode
encode_msgpack = msgspec.msgpack.Encoder().encode


def body_of(message: MessageIn, *, packed: bool) -> bytes:
    """The body's bytes: `data` as it came (raw JSON, or a msgpack bin), or decoded `data_base64`; none is an empty body."""
    if message.data is not UNSET and message.data_base64 is not UNSET:
        raise Problem("bad_request", "data and data_base64 are two ways of the same thing; send one - at `$.messages[...]`")
    if message.data is not UNSET:
        raw = bytes(message.data)
        if not packed:
            return raw
        try:
            return msgspec.msgpack.decode(raw, type=bytes)
        except msgspec.MsgspecError as error:
            raise Problem("bad_request", "in msgpack `data` is the body as bin") from error
    if message.data_base64 is not UNSET:
        try:
            return base64.b64decode(message.data_base64, validate=True)
        except ValueError as error:
            raise Problem("bad_request", f"data_base64 is not base64: {error}") from error
    return b""


def is_bare_json(content_type: str, body: bytes) -> bool:
    """May this body stand as raw `data`? Only one JSON value with no white space around it, so that bytes out are bytes in (P8)."""
    if content_type != JSON_TYPE or not body or body[:1] in b" \t\r\n" or body[-1:] in b" \t\r\n":
        return False
    try:
        msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return True
