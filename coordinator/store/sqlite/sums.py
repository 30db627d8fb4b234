"""A checksum of each page of the main file, in `FILE-sums` beside it: SQLite has none, and one flipped bit can be a decision.

The main file changes in checkpoints alone, and the one writer makes them. So each checkpoint is followed, before anything else is
written, by the sums of the pages that stood in the log. A crash between the two leaves those pages in the log, where they have
checksums of SQLite's own and hide what the main file has: at start a page is judged by its sum only if the log does not have it.
That also makes a torn write of this file harmless. It is no part of the data: without it the file is checked by SQLite and trusted.

Only what a checkpoint changed is in memory (P9): a store of 100 GB has 100 MB of sums.
"""

from __future__ import annotations

import array
import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Final

from . import wal

log = logging.getLogger("halfmsg.store")

_MAGIC: Final = b"halfmsg sums 1\n\0"
_HEAD: Final = struct.Struct("=16sI12x")
_CHUNK_PAGES: Final = 1_024
_GIVEN_UP: Final = -1
_NEVER_WRITTEN: Final = 0
"""A page that was taken and freed again may never be in a log: the file has zeros there, or ends before it; its sum is a hole, too. So
zeros in both files, where a disk lost both after it said that they were written, are not seen."""


def sums_path(path: Path) -> Path:
    return path.with_name(path.name + "-sums")


def page_size(path: Path) -> int | None:
    """As the main file's header says; None where that is not a page size."""
    with path.open("rb") as file:
        head = file.read(18)
    size = int.from_bytes(head[16:18], "big")
    size = 65_536 if size == 1 else size
    return size if len(head) == 18 and size in {512 << n for n in range(8)} else None


def of_file(path: Path, size: int) -> array.array[int]:
    """Reads the whole file, outside SQLite: only while no connection of this process is open."""
    found = array.array("I")
    with path.open("rb") as file:
        while chunk := file.read(size * _CHUNK_PAGES):
            view = memoryview(chunk)
            found.extend(zlib.crc32(view[at : at + size]) for at in range(0, len(chunk), size))
    return found


def load(path: Path) -> tuple[int, array.array[int]] | None:
    """(page size, sums) as stored; None where there is no such file, or it is none of ours."""
    try:
        data = sums_path(path).read_bytes()
    except OSError:
        return None
    if len(data) < _HEAD.size or (len(data) - _HEAD.size) % 4 or data[:16] != _MAGIC:
        return None
    found = array.array("I")
    found.frombytes(data[_HEAD.size :])
    return _HEAD.unpack(data[: _HEAD.size])[1], found


def are_kept(path: Path) -> bool:
    """Have sums been kept of a file with pages?"""
    known = load(path)
    return known is not None and len(known[1]) > 0


def wrong_pages(path: Path, log_pages: frozenset[int]) -> list[int] | None:
    """Numbers of the pages that are not as the coordinator wrote them; None: there are no sums to judge by."""
    known = load(path)
    if known is None or not path.exists():
        return None
    size, stored = known
    found = of_file(path, size)
    if found == stored and path.stat().st_size % size == 0:
        return []
    hole = zlib.crc32(bytes(size))
    pairs = enumerate(zip_longest(found, stored, fillvalue=hole), 1)
    return [page for page, (is_, was) in pairs if is_ not in (was, hole if was == _NEVER_WRITTEN else was) and page not in log_pages]


def _runs(changed: dict[int, int]) -> Iterator[tuple[int, array.array[int]]]:
    """(first page, sums) of each row of neighbours."""
    first, found = 0, array.array("I")
    for page in sorted(changed):
        if page != first + len(found):
            if found:
                yield first, found
            first, found = page, array.array("I")
        found.append(changed[page])
    if found:
        yield first, found


class PageSums:
    """Kept by the writer. `stored` None: begin with none, as for a new file. `kept`: they stand in FILE-sums, and were not computed."""

    def __init__(self, path: Path, stored: tuple[int, array.array[int]] | None, *, kept: bool, sync: bool) -> None:
        self._path, self._sync = path, sync
        self._size, computed = stored if stored is not None else (0, array.array("I"))
        self._unsaved = None if kept else computed
        self._salts, self._seen = b"", 0
        self._wal: int | None = None
        self._file: int | None = None

    def is_due(self, frames: int) -> bool:
        """Has the log so many frames? Two small reads. Who cannot read it says yes: a checkpoint needs no sums."""
        try:
            return self._has(frames)
        except OSError as error:
            self._cannot(error)
            return True

    def _has(self, frames: int) -> bool:
        fd = self._log()
        if fd is None:
            return False
        head = os.pread(fd, wal.HEADER, 0)
        size = int.from_bytes(head[8:12], "big")
        frame = os.pread(fd, wal.FRAME, wal.HEADER + (frames - 1) * (wal.FRAME + size))
        return len(frame) == wal.FRAME and frame[8:16] == head[16:24]

    def update(self, frames: int, moved: int) -> None:
        """Take the sums of the first `frames` frames of the log, of which the checkpoint moved so many. An error costs the sums, not the store."""
        self._or_give_up(lambda: self._update(frames, moved))

    def save(self) -> None:
        """All of them: what was computed from a file that had none. An error costs the sums, not the store."""
        if self._size > 0 and self._unsaved is not None:
            self._or_give_up(lambda: self._store({}))

    def _or_give_up(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            self._cannot(error)

    def _cannot(self, error: OSError) -> None:
        if self._size != _GIVEN_UP:
            log.warning("page sums cannot be kept and are given up until the next start: %s", error)
        self.give_up()

    def _update(self, frames: int, moved: int) -> None:
        fd = self._log()
        if fd is None or frames <= 0 or self._size == _GIVEN_UP:
            return
        head = wal.read(fd, wal.HEADER, 0)
        size = int.from_bytes(head[8:12], "big")
        if self._size not in (0, size):
            raise OSError(f"the log has pages of {size} bytes, the file of {self._size}")
        self._size = size
        if head[16:24] != self._salts:
            self._salts, self._seen = head[16:24], 0
        changed = self._take(fd, frames)
        self._seen = max(self._seen, frames)
        if changed:
            if moved < frames and self._sync:  # a reader is in the way: with NORMAL what it leaves in the log is not durable, and sums come after
                os.fdatasync(fd)
            self._store(changed)

    def _take(self, fd: int, frames: int) -> dict[int, int]:
        """Sum by page, of the frames that were not seen yet; the last frame of a page counts."""
        step = wal.FRAME + self._size
        changed: dict[int, int] = {}
        for first in range(self._seen, frames, 256):
            data = memoryview(wal.read(fd, step * min(256, frames - first), wal.HEADER + first * step))
            for at in range(0, len(data), step):
                changed[int.from_bytes(data[at : at + 4], "big")] = zlib.crc32(data[at + wal.FRAME : at + step])
        return changed

    def _store(self, changed: dict[int, int]) -> None:
        """A new file gets its head last: a crash on the way leaves no sums, not wrong ones."""
        if self._file is None:
            if self._unsaved is not None:
                sums_path(self._path).unlink(missing_ok=True)
            self._file = os.open(sums_path(self._path), os.O_WRONLY | os.O_CREAT, 0o600)
        if self._unsaved:
            self._write(self._unsaved.tobytes(), _HEAD.size)
        for first, found in _runs(changed):
            self._write(found.tobytes(), _HEAD.size + 4 * (first - 1))
        self._make_durable()
        if self._unsaved is not None:
            self._write(_HEAD.pack(_MAGIC, self._size), 0)
            self._make_durable()
            self._unsaved = None

    def _write(self, data: bytes, at: int) -> None:
        fd = self._file
        if fd is None or os.pwrite(fd, data, at) != len(data):
            raise OSError(f"{sums_path(self._path)} took only a part of {len(data)} bytes")

    def _make_durable(self) -> None:
        if self._sync and self._file is not None:
            os.fdatasync(self._file)

    def _log(self) -> int | None:
        """The log as bytes, opened once: SQLite keeps no locks on it, so closing it is harmless."""
        if self._wal is None:
            try:
                self._wal = os.open(wal.wal_path(self._path), os.O_RDONLY)
            except FileNotFoundError:
                return None
        return self._wal

    def give_up(self) -> None:
        """The next start checks the file by SQLite, and begins anew."""
        self._size = _GIVEN_UP
        self.close()
        path = sums_path(self._path)
        emptied = self._empty(path)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            if not emptied:
                log.error("%s is out of date and cannot be removed: %s. Remove it, or the next start takes the store for damaged", path, error)

    def _empty(self, path: Path) -> bool:
        """Before its name goes: a power cut may bring a name back, and an empty file is none."""
        try:
            fd = os.open(path, os.O_WRONLY)
        except OSError:
            return False
        try:
            os.ftruncate(fd, 0)
            if self._sync:
                os.fsync(fd)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    def close(self) -> None:
        for fd in (self._wal, self._file):
            if fd is not None:
                os.close(fd)
        self._wal = self._file = None
