"""What the coordinator knows of a transaction: frozen snapshots, made from the wire's T."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec

State = Literal["prepared", "committed", "rolled_back", "parked"]


class MessageState(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one message: its place in the log once released, or why it is held or dead."""

    id: str
    topic: str
    key: str | None = None
    sequence: int | None = None
    lane: int | None = None
    offset: int | None = None
    held: str | None = None
    dead: str | None = None


class Transaction(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of one transaction at the coordinator; a repeat of a call answers the state of now. Without producer: a plain send."""

    id: str
    state: State
    producer: str | None = None
    attempts: int = 0
    digest: str = ""
    prepared_at: datetime
    decided_at: datetime | None = None
    decided_by: str | None = None
    reason: str | None = None
    messages: tuple[MessageState, ...] = ()

    @property
    def message_ids(self) -> Sequence[str]:
        return [message.id for message in self.messages]


def transaction_of(stored: Mapping[str, Any]) -> Transaction:
    """T as a value; members that are not known here are ignored (API §6)."""
    return msgspec.convert(stored, Transaction)
