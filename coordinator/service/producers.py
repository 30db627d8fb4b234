"""Producers: a name bound to one database (R7)."""

from __future__ import annotations

import base64
from collections.abc import Callable

from msgspec import Struct

from ..errors import Problem
from ..messages import Source
from ..store.base import StoreTx
from .naming import Removal


class Hello(Struct, frozen=True):
    """A library says on its stream that it answers for this producer."""

    name: str
    source: bytes | None


class Beat(Struct, frozen=True):
    name: str
    source: bytes | None
    beats: tuple[str, ...]


class ProducerWanted(Struct, frozen=True):
    name: str
    check_url: str | None
    dialect: str
    secret_bytes: Callable[[int], bytes]


def of(tx: StoreTx, name: str, db_id: bytes | None) -> Source:
    """The producer that speaks, bound to its database. Raises producer_not_found, wrong_source, source_frozen."""
    source = tx.source(name)
    if source is None:
        if not tx.env.settings.dev:
            raise Problem("producer_not_found", f"no producer {name} here; make it with: halfmsg producer set {name}")
        source = tx.add_source(name)
    if source.frozen:
        raise Problem("source_frozen", f"producer {name} is frozen: its database went back in time")
    if db_id == source.db_id:
        return source
    if db_id is None or source.db_id is not None:
        bound = f"producer {name} is bound to the database {source.db_id.hex() if source.db_id else None}"
        said = "this call names no source" if db_id is None else f"{db_id.hex()} is another database"
        raise Problem("wrong_source", f"{bound}; {said}. See: halfmsg producer show {name}")
    return _bind(tx, source, db_id)


def _bind(tx: StoreTx, source: Source, db_id: bytes) -> Source:
    other = tx.source_by_db(db_id)
    if other is not None:
        raise Problem("wrong_source", f"this database is already bound to producer {other.name}; one name a database")
    tx.put_counter(bound_at(source), tx.last_key())
    return tx.bind_source(source, db_id)


def bound_at(source: Source) -> str:
    """The counter of the last key that was known before its database was: inboxes know the numbers of such keys by the producer's name, for good."""
    return f"bound_key {source.id}"


def hello(tx: StoreTx, now: int, command: Hello) -> Source:
    """Bind, and note that there is a way to ask. With `--dev` it makes the producer."""
    source = of(tx, command.name, command.source)
    if not source.said_hello:
        source = tx.note_hello(source)
    tx.wake_parked(source.id, now)  # R4: a parked one is asked once when its source's responder is reachable again
    return source


def beat(tx: StoreTx, now: int, command: Beat) -> Source:
    """Beats are stored; judging them (R7) and telling settled_before (R3) come with purging, so nothing is deleted yet."""
    source = of(tx, command.name, command.source)
    tx.store_beats(source, command.beats)
    return source


def put(tx: StoreTx, now: int, wanted: ProducerWanted) -> tuple[Source, bool, str | None]:
    """(producer, was it made now, the secret if it was drawn now). A secret signs questions and answers, and is told once: when it is drawn.

    One that a hello made has none until it is put for the first time, and is told it then.
    """
    source = tx.source(wanted.name)
    made = source is None
    if source is None:
        source = tx.add_source(wanted.name)
    drawn = None if source.secret is not None else "whsec_" + base64.b64encode(wanted.secret_bytes(32)).decode()
    return tx.set_source(source, check_url=wanted.check_url, dialect=wanted.dialect, secret=drawn or source.secret), made, drawn


def get(tx: StoreTx, name: str) -> Source:
    source = tx.source(name)
    if source is None:
        raise Problem("producer_not_found", f"no producer {name} here")
    return source


def remove(tx: StoreTx, now: int, command: Removal) -> None:
    name = command.name
    source = get(tx, name)
    if tx.source_has_undecided(source.id):
        undecided = f"producer {name} has undecided transactions; nobody else could answer for them"
        raise Problem("state_changed", f"{undecided}. See: halfmsg tx ls --producer {name}")
    if source.db_id is not None:
        raise Problem("state_changed", f"producer {name} is bound to a database whose numbers go on; it cannot be removed")
    if tx.source_has_transactions(source.id):
        raise Problem("state_changed", f"producer {name} has transactions here; their messages and keys are known by it")
    tx.remove_source(source)
    tx.audit(now, "operator", "producer.rm", name, command.reason, None, None)
