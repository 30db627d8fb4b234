"""The values that travel between wire, service and store: commands in, views out. No I/O, no field names of the wire."""

from __future__ import annotations

from enum import IntEnum, StrEnum

from msgspec import Struct

from .states import State


class Kind(IntEnum):
    """A topic's kind, as stored. Only `sequence` keeps the order of local commits (R10)."""

    UNORDERED = 0
    SEQUENCE = 1
    ARRIVAL = 2

    @property
    def word(self) -> str:
        return self.name.lower()


class By(IntEnum):
    """Who decided a transaction, as stored."""

    PRODUCER = 1
    CHECK_BACK = 2
    OPERATOR = 3

    @property
    def word(self) -> str:
        return ("producer", "check_back", "operator")[self - 1]


class Reason(IntEnum):
    """Why a message is a dead letter, as stored."""

    ATTEMPTS = 1
    REJECTED = 2
    NUMBER_TAKEN = 3
    LATE_AFTER_SKIP = 4
    CORRUPT = 5

    @property
    def word(self) -> str:
        return self.name.lower()


class Verdict(StrEnum):
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    RUNNING = "running"
    UNKNOWN = "unknown"
    NO_ANSWER = "no_answer"


# --- commands --------------------------------------------------------------------------------------------------------------


class NewMessage(Struct, frozen=True):
    index: int
    topic: str
    key: bytes | None
    tag: str | None
    extra: bytes
    """msgpack of [content type, attributes or None, traceparent or None]."""
    body: bytes
    digest: bytes
    sequence: int | None


class Content(Struct, frozen=True):
    """Prepare and submit: `submit` says which. `producer` None is a plain send."""

    id: bytes
    producer: str | None
    source: bytes | None
    mark: int | None
    digest: bytes
    messages: tuple[NewMessage, ...]
    first_check_ms: int | None
    submit: bool


class Decision(Struct, frozen=True):
    """Commit or rollback, said by the producer. `numbers` by index, None where the message has none."""

    id: bytes
    commit: bool
    producer: str | None
    source: bytes | None
    digest: bytes | None = None
    numbers: tuple[int | None, ...] | None = None
    mark: int | None = None
    reason: str | None = None


class Force(Struct, frozen=True):
    """An operator's decision over a parked transaction (R4)."""

    id: bytes
    commit: bool
    reason: str
    numbers: tuple[int | None, ...] | None = None
    if_state: str | None = None


class Park(Struct, frozen=True):
    id: bytes
    reason: str
    if_state: str | None = None


class Settle(Struct, frozen=True):
    """One delivery of an ack, nack or reject. `what`: "ack" | "nack" | "reject"."""

    token: str
    what: str
    reason: str = ""
    delay_ms: int | None = None
    counts: bool = True


class SettleMany(Struct, frozen=True):
    group: str
    items: tuple[Settle, ...]


class ExtendMany(Struct, frozen=True):
    group: str
    tokens: tuple[str, ...]
    by_ms: int


class Fetch(Struct, frozen=True):
    """`may_be_lost`: nobody says later what of the answer arrived, as a stream's member does when it joins again."""

    group: str
    count: int
    lease_ms: int | None
    member: str | None
    inbox: bytes | None
    may_be_lost: bool = False


# --- rows that functions reason about --------------------------------------------------------------------------------------


class Topic(Struct, frozen=True):
    id: int
    name: str
    kind: Kind
    lanes: int
    retention_s: float | None
    max_message_bytes: int
    max_backlog: int
    allow_no_group: bool


class Source(Struct, frozen=True):
    """A producer: one database under one name (R7). `db_id` is None until a library's hello binds one."""

    id: int
    name: str
    db_id: bytes | None
    incarnation: int
    frozen: bool
    settled_told: int
    forgotten_before: int
    check_url: str | None
    dialect: str
    secret: str | None
    said_hello: bool

    @property
    def can_be_asked(self) -> bool:
        return self.said_hello or self.check_url is not None


class Tx(Struct, frozen=True):
    """A transaction's row; bodies stand elsewhere (R30)."""

    n: int
    id: bytes
    source: int
    state: State
    digest: bytes
    msgs: int
    mark: int
    first_at: int
    decided_at: int | None
    decided_by: By | None
    attempts: int
    next_check: int | None
    reason: str | None


class Group(Struct, frozen=True):
    """One group on one topic (a group with three topics has three of these)."""

    id: int
    name: str
    topic: int
    generation: int
    tag: str | None
    attributes: tuple[tuple[str, str], ...]
    lease_ms: int
    max_attempts: int | None
    backoff_first_ms: int
    backoff_max_ms: int
    paused: bool
    inbox: bytes | None
    start: str

    @property
    def filters(self) -> bool:
        return self.tag is not None or bool(self.attributes)


class Key(Struct, frozen=True):
    id: int
    next_seq: int
    stopped: bool
    draining: bool


class Place(Struct, frozen=True):
    lane: int
    next_off: int
    owner: str | None
    token: int
    until: int


class Flight(Struct, frozen=True):
    """A run of offsets handed out together, with its lease. `alone`: it carries the attempts of one retried message (R24)."""

    grp: int
    lane: int
    lo: int
    hi: int
    token: int
    member: str
    until: int
    done: int
    attempts: int
    first_out: int
    lo_at: int
    error: str | None
    redriven: bool

    def open_offsets(self) -> list[int]:
        return [self.lo + i for i in range(self.hi - self.lo + 1) if not self.done >> i & 1]


class Restored(Struct, frozen=True):
    """Of a store that was made from a backup. Numbers of `arrival` topics below `arrival_floor` may have been given out before."""

    at: int = 0
    backup_at: int = 0
    n: int = 0
    """The last transaction that was in the backup."""
    arrival_floor: int = 0
    doubt_before: int = 0
    """What has an older mark may have been a dead letter between the backup and the loss."""
    generation: int = 0
    """A group that needs a new generation gets one from here on: those below may have been given out before."""


class Full(Struct, frozen=True):
    """Numbers of topics that take no content, and of groups that are handed nothing new."""

    topics: frozenset[int] = frozenset()
    groups: frozenset[int] = frozenset()


class Retry(Struct, frozen=True):
    lane: int
    off: int
    due: int | None
    okey: int | None
    attempts: int
    first_out: int
    error: str | None
    redriven: bool


class Logged(Struct, frozen=True):
    """A released message as a consumer may get it: log row + message row + its transaction's id."""

    off: int
    m: int
    seq: int | None
    at: int
    okey: int | None
    key: bytes | None
    tag: str | None
    extra: bytes
    body: bytes
    digest: bytes
    tx_id: bytes
    source: int
    incarnation: int
    by: int
    mark: int
    state: int
    first_at: int


# --- views out -------------------------------------------------------------------------------------------------------------


class MessagePlace(Struct, frozen=True):
    """Where one message of a decided transaction stands."""

    index: int
    topic: str
    key: bytes | None = None
    sequence: int | None = None
    lane: int | None = None
    offset: int | None = None
    held: str | None = None
    dead: str | None = None


class TransactionView(Struct, frozen=True):
    tx: Tx
    producer: str | None
    messages: tuple[MessagePlace, ...] = ()
    created: bool = False


class Delivery(Struct, frozen=True):
    row: Logged
    topic: str
    lane: int
    group: str
    generation: int
    attempt: int
    age_ms: int
    token: str
    lease_until: int
    producer: str | None
    source: str | None
    missed: tuple[int, ...]
    redriven: bool


class ItemResult(Struct, frozen=True):
    """One item of an ack, nack, reject or extend: what it gave, or the code and detail of its refusal."""

    error: tuple[str, str] | None = None
    given_back: tuple[str, ...] = ()
    lease_until: int | None = None
