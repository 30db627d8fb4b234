"""Crash images: what a disk may hold after the power went at one moment of a recorded run.

The model, per file: everything before the last sync *of that file* is durable; of the rest (writes and truncates) any part may have
reached the disk, in any order, and a write in sectors of 512 bytes. Creating and removing a name is journalled metadata: any later sync
commits it, without it either may be. (Without that rule a removed journal would come back, which no journalling file system does.) The
shared memory of `-shm` and the lock are not part of an image.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.disk.trace import Kind, Record

SECTOR: Final = 512
NAMES: Final = {"d": "", "w": "-wal", "j": "-journal", "c": "-sums"}
WAYS: Final = ("dropped", "kept", "prefix", "subset", "shuffled", "torn")
"""What becomes of unsynced calls: none, all (as after kill -9), the first ones, any of them, any in another order, any sectors of any."""

Call = tuple[int, bytes | None]
"""A write (offset, bytes) or a truncate (size, None)."""


@dataclass(slots=True)
class _File:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[Call] = field(default_factory=list)


def _apply(content: bytearray, call: Call) -> None:
    at, data = call
    if data is None:
        del content[at:]
        content.extend(bytes(max(0, at - len(content))))
        return
    content.extend(bytes(max(0, at + len(data) - len(content))))
    content[at : at + len(data)] = data


class Disk:
    """The store's files as the records say, up to one of them."""

    def __init__(self) -> None:
        self._now: dict[str, _File] = {}
        self._names: list[dict[str, _File]] = [{}]
        """Each state of the folder that may be on the disk; the first is durable."""

    def take(self, record: Record) -> None:
        if record.kind is Kind.SYNC:
            self._synced(record.file)
        elif record.file not in NAMES:
            return
        elif record.kind is Kind.CREATE:
            self._renamed({**self._now, record.file: _File()})
        elif record.kind is Kind.UNLINK:
            self._renamed({name: file for name, file in self._now.items() if name != record.file})
        elif record.kind is Kind.WRITE:
            self._now[record.file].pending.append((record.at, record.data))
        elif record.kind is Kind.TRUNCATE:
            self._now[record.file].pending.append((record.at, None))

    def _renamed(self, now: dict[str, _File]) -> None:
        self._now = now
        self._names.append(now)

    def _synced(self, name: str) -> None:
        self._names = [self._now]
        file = self._now.get(name)
        if file is not None:
            for call in file.pending:
                _apply(file.durable, call)
            file.pending.clear()

    def image(self, way: str, chance: random.Random) -> dict[str, bytes]:
        """One disk that may be found after a power cut at this moment: name -> content."""
        names = {"dropped": self._names[0], "kept": self._now}.get(way) or chance.choice(self._names)
        return {name: _content(file, way, chance) for name, file in names.items()}


def _content(file: _File, way: str, chance: random.Random) -> bytes:
    content = bytearray(file.durable)
    for call in _reached(file.pending, way, chance):
        _apply(content, call)
    return bytes(content)


def _reached(pending: list[Call], way: str, chance: random.Random) -> Iterable[Call]:
    if way == "dropped":
        return ()
    if way == "kept":
        return pending
    if way == "prefix":
        return pending[: chance.randrange(len(pending) + 1)]
    share = chance.choice((0.1, 0.5, 0.9))
    some = [call for call in pending if chance.random() < share]
    if way == "shuffled":
        chance.shuffle(some)
    return _sectors(some, chance) if way == "torn" else some


def _sectors(calls: list[Call], chance: random.Random) -> Iterator[Call]:
    """Of each write the sectors that arrived. Offsets need not be aligned: a sector is one of the disk's."""
    for at, data in calls:
        if data is None or chance.random() < 0.5:
            yield at, data
            continue
        start = at
        while start < at + len(data):
            end = min((start // SECTOR + 1) * SECTOR, at + len(data))
            if chance.random() < 0.5:
                yield start, data[start - at : end - at]
            start = end


def write(image: dict[str, bytes], store: Path) -> None:
    for file, suffix in NAMES.items():
        path = store.with_name(store.name + suffix)
        if file in image:
            path.write_bytes(image[file])
        else:
            path.unlink(missing_ok=True)
    store.with_name(store.name + "-shm").unlink(missing_ok=True)
