"""The fence (R1-R3, R8, R9, R16): the row that binds a message's fate to the local commit, and what can be read from it later.

All of these are steps without a colour. Those of a publish run inside the caller's transaction, on the caller's connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec import Struct

from halfmsg.txclient import Message, UsageError, transaction_digest

from .effects import Check, Rows, Sql, Steps
from .errors import AlreadyCommitted, Fenced, TransactionEnded
from .tables import META_NAMES, SCHEMA_VERSION, Tables

COMMITTED: Final = 1
ROLLED_BACK: Final = 2
QUEUED: Final = 1

_encode: Final = msgspec.msgpack.Encoder().encode


class Kept(Struct, frozen=True, array_like=True):
    """`halfmsg_out.meta`: what a message is besides topic, key, number and body."""

    digest: bytes
    content_type: str
    tag: str | None = None
    attributes: dict[str, str] | None = None


_decode_kept: Final = msgspec.msgpack.Decoder(Kept).decode


class Meta(Struct, frozen=True):
    """`halfmsg_meta`: which database this is, and below which mark it answers for nothing."""

    source: bytes
    incarnation: int
    purged_before: int


class Drawn(Struct, frozen=True):
    """One message as written: its index and number."""

    index: int
    message: Message
    sequence: int | None


class Attempt(Struct, frozen=True):
    """What one halfmsg transaction is called, chosen once (R3, R9)."""

    id: bytes
    mark: int | None
    """The newest coordinator time seen; None: `purged_before` as it is read."""
    stored: bool
    """A prepare with this id and digest was acknowledged, so the bodies need not be written here (R2)."""


def id_text(raw: bytes) -> str:
    return str(UUID(bytes=bytes(raw)))


def enter(tables: Tables, source: bytes | None) -> Steps[Meta]:
    """First statement of every publish: is a transaction open, is this our database, are our tables there?"""
    yield Check()
    return (yield from our_meta(tables, source))


def our_meta(tables: Tables, source: bytes | None) -> Steps[Meta]:
    """Raises UsageError(other_database) where the tables are not those of `source`."""
    meta = yield from read_meta(tables)
    if source is not None and meta.source != source:
        raise UsageError("other_database", "this connection belongs to another database than the Outbox; its messages would have no fence")
    return meta


def read_meta(tables: Tables) -> Steps[Meta]:
    """Raises UsageError(schema_missing): the text is the next command."""
    try:
        rows: Rows = yield tables.sql("meta")
    except Exception as error:
        if _is_missing_table(error):
            raise schema_missing(tables) from error
        raise
    found = {META_NAMES[row[0]]: (row[1], row[2]) for row in rows if row[0] >= 0}
    if "source" not in found or found["schema"][1] > SCHEMA_VERSION:
        raise schema_missing(tables)
    return Meta(bytes(found["source"][0]), found["source"][1], found["purged_before"][1])


def schema_missing(tables: Tables) -> UsageError:
    text = f"the tables {tables.prefix}* are not there or of another version; run: {tables.install_command()}"
    return UsageError("schema_missing", text)


def _is_missing_table(error: Exception) -> bool:
    return "no such table" in str(error) or getattr(error, "sqlstate", None) == "42P01"


def draw(tables: Tables, messages: Sequence[Message], first_index: int = 0) -> Steps[list[Drawn]]:
    """A number for whatever has a key, from a counter row inside the local transaction: so numbers are in commit order (P7).

    Keys in sorted order, within a key in the order given, so that two services cannot deadlock on them (R21).
    """
    numbers: list[int | None] = [None] * len(messages)
    for at in sorted(range(len(messages)), key=lambda at: (messages[at].topic, messages[at].key or "", at)):
        key = messages[at].key
        if key is not None:
            rows: Rows = yield tables.sql("draw", messages[at].topic, key.encode())
            numbers[at] = int(rows[0][0])
    return [Drawn(first_index + at, message, number) for at, (message, number) in enumerate(zip(messages, numbers, strict=True))]


def write_out(tables: Tables, attempt: Attempt, drawn: Iterable[Drawn]) -> Steps[None]:
    """One row a message, written at once: a savepoint undoes row and number together (R16)."""
    for each in drawn:
        message = each.message
        kept = _encode(Kept(message.digest(), message.content_type, message.tag, message.attributes))
        key = None if message.key is None else message.key.encode()
        body = None if attempt.stored else message.body
        yield tables.sql("out_put", attempt.id, each.index, message.topic, key, each.sequence, kept, body)


def lay(tables: Tables, attempt: Attempt, meta: Meta, digest: bytes | None, *, in_block: bool) -> Steps[None]:
    """The fence row. Raises Fenced (a tombstone is there, or the mark is too old) or AlreadyCommitted (our own row is).

    In a block the transaction stays open then: its end is the block's, and what goes beside this must not find none, and commit by itself.
    """
    mark = meta.purged_before if attempt.mark is None else attempt.mark
    unsent = None if attempt.stored else QUEUED
    try:
        rows: Rows = yield tables.sql("fence_in_block" if in_block else "fence", attempt.id, digest, mark, unsent, mark)
    except Exception as error:
        if type(error).__name__ != "IntegrityError":
            raise
        raise (yield from _why(tables, attempt)) from error  # SQLite: the transaction is gone already, this reads after it
    if not rows:
        raise (yield from _why(tables, attempt))


def _why(tables: Tables, attempt: Attempt) -> Steps[Exception]:
    rows: Rows = yield tables.sql("verdict", attempt.id)
    if rows and rows[0][0] == COMMITTED:
        return AlreadyCommitted()
    return Fenced() if rows else Fenced("the attempt is older than what this database still answers for; run it anew")


def publish(tables: Tables, attempt: Attempt, messages: Sequence[Message], source: bytes | None, *, in_block: bool = False) -> Steps[list[Drawn]]:
    """Everything of one halfmsg transaction at once: fence, numbers, rows. One row, one fate (R16)."""
    meta = yield from enter(tables, source)
    # First, since the id decides whether this is a repeat; and from here on its lock says `running` to a check-back.
    yield from lay(tables, attempt, meta, transaction_digest([message.digest() for message in messages]), in_block=in_block)
    drawn = yield from draw(tables, messages)
    yield from write_out(tables, attempt, drawn)
    return drawn


def add(tables: Tables, attempt: Attempt, messages: Sequence[Message], first_index: int, source: bytes | None) -> Steps[tuple[Meta, list[Drawn]]]:
    """More messages of a block. Its fence is laid with the first of them, so that no commit has rows without it, whoever commits; what
    it stands for (its digest) is written when the block ends (`close`). Raises TransactionEnded where it was committed inside the block
    and has been handed over since (`close_left`): what came now would be sent by nobody.
    """
    meta = yield from enter(tables, source)
    held: Rows = yield tables.sql("hold", attempt.id)  # none: this is the first, or a savepoint took the first ones with it
    if not held:
        try:
            yield from lay(tables, attempt, meta, None, in_block=True)
        except AlreadyCommitted as error:
            raise TransactionEnded() from error
    drawn = yield from draw(tables, messages, first_index)
    yield from write_out(tables, attempt, drawn)
    return meta, drawn


def close(tables: Tables, attempt: Attempt, source: bytes | None) -> Steps[None]:
    """What the fence of a block stands for: the rows that survived to its end, rows, never memory (R16).

    `source`: where its messages were written. Looked for in other tables (a search path that was set since), none would be left.
    """
    meta = yield from our_meta(tables, source)
    rows: Rows = yield tables.sql("numbers_of", attempt.id)
    if rows:
        digest = _digest_of(row[2] for row in rows)
        laid: Rows = yield tables.sql("close_fence", digest, attempt.id)
        if not laid:
            yield from lay(tables, attempt, meta, digest, in_block=True)


def _digest_of(kept: Iterable[bytes]) -> bytes:
    return transaction_digest([_decode_kept(each).digest for each in kept])


# --- afterwards, on the library's own connection -----------------------------------------------------------------------------


class Fate(Struct, frozen=True):
    """What the fence says: `verdict` None: there is no row."""

    verdict: int | None
    digest: bytes = b""
    numbers: tuple[int | None, ...] = ()


def read_fate(tables: Tables, id: bytes) -> Steps[Fate]:
    """Final where a row is there (a stale replica is harmless). Committed comes with digest and numbers (R5)."""
    rows: Rows = yield tables.sql("verdict", id)
    if not rows:
        return Fate(None)
    if rows[0][0] != COMMITTED:
        return Fate(ROLLED_BACK)
    numbered: Rows = yield tables.sql("numbers_of", id)
    numbers: list[int | None] = [None] * (1 + max((row[0] for row in numbered), default=-1))
    for index, sequence, _ in numbered:
        numbers[index] = sequence
    if rows[0][1] is not None:
        return Fate(COMMITTED, bytes(rows[0][1]), tuple(numbers))
    try:  # its block was committed inside, and is not closed yet
        return Fate(COMMITTED, _digest_of(row[2] for row in numbered), tuple(numbers))
    except (msgspec.MsgspecError, ValueError, TypeError):
        return Fate(None)  # damaged: nothing is said of it, and of the others all the same


def lay_tombstone(tables: Tables, id: bytes, mark: int) -> Steps[Fate]:
    """Rule where nothing is there, in a transaction of its own: afterwards a late local commit is impossible (P5).

    None: the mark is below `purged_before`, so an absent row proves nothing (R3). A lock wait raises the driver's error: `running`.
    """
    yield tables.sql("tombstone", id, mark, mark)
    return (yield from read_fate(tables, id))


class Unsent(Struct, frozen=True):
    """One row set that the relay has to hand over."""

    id: bytes
    digest: bytes | None
    """None: of a block that was committed inside, until `close_left`."""
    mark: int
    rows: tuple[tuple[Any, ...], ...]

    def messages(self) -> list[dict[str, Any]]:
        return [_wire_of(row) for row in self.rows]

    @property
    def body_bytes(self) -> int:
        """Of a damaged row too: whatever stands there."""
        return sum(len(row[5]) for row in self.rows if isinstance(row[5], bytes))


def _wire_of(row: tuple[Any, ...]) -> dict[str, Any]:
    index, topic, key, sequence, meta, body = row
    kept = _decode_kept(meta)
    wire: dict[str, Any] = {"topic": topic, "index": index, "content_type": kept.content_type, "data": bytes(body or b"")}
    optional = {"key": None if key is None else bytes(key).decode(), "sequence": sequence, "tag": kept.tag, "attributes": kept.attributes}
    return wire | {name: value for name, value in optional.items() if value is not None}


FIRST: Final = (-1, b"")
DAMAGED: Final = (0, "", None, None, b"", None)
"""In place of rows that the driver cannot even read: no message, as `Unsent.messages` says."""


def is_damage(error: Exception) -> bool:
    """Of this one row set, and for ever; SQLite's driver says so of a text that is none."""
    return isinstance(error, msgspec.MsgspecError | ValueError | TypeError) or "Could not decode to UTF-8" in str(error)


def read_rows(tables: Tables, id: bytes) -> Steps[Rows]:
    """A row set to look at: what cannot even be read is one row, `DAMAGED`."""
    try:
        rows: Rows = yield tables.sql("out_of", bytes(id))
    except Exception as error:
        if not is_damage(error):
            raise
        return [DAMAGED]
    return rows


def read_unsent(tables: Tables, limit: int, bytes_max: int, after: tuple[int, bytes] = FIRST) -> Steps[list[Unsent]]:
    """The oldest unsent row sets after `(mark, id)`, up to a number and a size of bodies."""
    found: list[Unsent] = []
    size = 0
    heads: Rows = yield tables.sql("unsent", *after, limit)
    for id, digest, mark in heads:
        rows = yield from read_rows(tables, id)
        found.append(Unsent(bytes(id), None if digest is None else bytes(digest), mark, tuple(rows)))
        size += found[-1].body_bytes
        if size >= bytes_max:
            break
    return found


def close_left(tables: Tables, left: Unsent) -> Steps[Unsent | None]:
    """Close what its block did not, in a transaction of its own: from here on nothing more comes to it (`add`), so what is handed over is
    all of it. None: somebody else has. Raises the driver's error where the block is still at it, and msgspec's where a row is damaged.
    """
    if tables.dialect == "postgresql":
        yield tables.sql("lock_wait")
    held: Rows = yield tables.sql("hold", left.id)
    if not held:
        return None
    rows: Rows = yield tables.sql("out_of", left.id)
    digest = digest_of(rows)
    yield tables.sql("close_fence", digest, left.id)
    return Unsent(left.id, digest, left.mark, tuple(rows))


def digest_of(rows: Iterable[tuple[Any, ...]]) -> bytes:
    """Of a row set as `out_of` gives it."""
    return _digest_of(row[4] for row in rows)


def all_of(effects: Iterable[Sql]) -> Steps[None]:
    for effect in effects:  # noqa: UP028 - a plain iterator cannot be sent results
        yield effect
