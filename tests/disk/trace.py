"""What the shim wrote down, record by record: the calls on the store's files and the answers, in the order in which they happened."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

_HEAD: Final = struct.Struct("<BcHIQ")


class Kind(IntEnum):
    CREATE = 1
    WRITE = 2
    SYNC = 3
    TRUNCATE = 4
    UNLINK = 5
    SEND = 6
    FAULT = 7


@dataclass(frozen=True, slots=True)
class Record:
    """`file`: d database, w WAL, j journal, c page sums, s shm, l lock, f folder. `at`: offset of a write, size of a truncate, number of a fault."""

    kind: Kind
    file: str
    port: int
    bytes: int
    at: int
    data: bytes


def read(log: Path, *, data: bool) -> Iterator[Record]:
    """`data`: were the bytes of writes kept? A record that is cut off at the end (its process was killed) ends it."""
    if not log.exists():
        return
    text = log.read_bytes()
    place = 0
    while place + _HEAD.size <= len(text):
        kind, file, port, size, at = _HEAD.unpack_from(text, place)
        place += _HEAD.size
        kept = size if kind in (Kind.SEND, Kind.FAULT) or (kind == Kind.WRITE and data) else 0
        if place + kept > len(text):
            return
        yield Record(Kind(kind), file.decode().strip("\0"), port, size, at, text[place : place + kept])
        place += kept


def faults(log: Path) -> list[Record]:
    return [record for record in read(log, data=False) if record.kind is Kind.FAULT]
