"""The write-ahead log as bytes: how far SQLite will read it, and whether acknowledged commits stand behind that point.

SQLite reads a WAL up to the first frame whose checksum is wrong and says nothing about the rest. Behind a crash that is right: what is
torn was never acknowledged. Behind damage it drops commits that were, and where their pages had reached the main file already, it even
mixes old pages with new ones. So the coordinator looks first. Two witnesses: frames of the same life of the log beyond the bad one, and
the `-shm` file, which survives `kill -9` and says how many frames were committed (it is written after their fsync, so it never says too
many). Read before SQLite opens the file: a recovery writes the `-shm` anew. https://sqlite.org/fileformat2.html#walformat
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from pathlib import Path
from typing import Final

from msgspec import Struct

HEADER: Final = 32
FRAME: Final = 24
SECTOR: Final = 512
"""What a disk writes as a whole, at the least."""
_MAGICS: Final = {0x377F0682: "<", 0x377F0683: ">"}
_WORD: Final = 0xFFFFFFFF
_SHM_HEADER: Final = struct.Struct("=IIIBBHII8s8s8s")
_SHM_VERSION: Final = 3_007_000


class Shm(Struct, frozen=True):
    """What the WAL's index says: frames that were committed, and how many of them the main file has."""

    frames: int
    salts: bytes
    backfilled: int


class Wal(Struct, frozen=True):
    """`committed`: frames that SQLite will read. `damage`: one sentence, None where nothing acknowledged is missing.

    `torn`: frames behind the end, as a power cut leaves them, and no `-shm` says that they were not the last commit.
    """

    committed: int = 0
    pages: frozenset[int] = frozenset()
    damage: str | None = None
    torn: int = 0


def wal_path(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def read(fd: int, size: int, at: int) -> bytes:
    """All of it, whatever pieces the system gives. Raises OSError where the file ends before."""
    parts = []
    while size > 0:
        part = os.pread(fd, size, at)
        if not part:
            raise OSError(errno.EIO, f"the log ends {size} bytes too early")
        parts.append(part)
        size, at = size - len(part), at + len(part)
    return b"".join(parts)


def checksum(data: bytes | memoryview, order: str, s0: int = 0, s1: int = 0) -> tuple[int, int]:
    for x, y in struct.iter_unpack(order + "II", data):
        s0 = (s0 + x + s1) & _WORD
        s1 = (s1 + y + s0) & _WORD
    return s0, s1


def read_shm(path: Path) -> Shm | None:
    """None where there is none, or it is not whole. Only while no connection of this process is open: closing a file drops its locks."""
    try:
        data = path.with_name(path.name + "-shm").read_bytes()[:136]
    except FileNotFoundError:
        return None
    if len(data) < 100 or data[:48] != data[48:96]:
        return None
    version, _, _, is_init, _, _, frames, _, _, salts, sums = _SHM_HEADER.unpack(data[:48])
    native = "<" if sys.byteorder == "little" else ">"
    if version != _SHM_VERSION or not is_init or struct.pack("=II", *checksum(data[:40], native)) != sums:
        return None
    return Shm(frames, salts, int(struct.unpack("=I", data[96:100])[0]))


def inspect(path: Path, *, synced: bool = True) -> Wal:
    """Look at the log beside `path`, which nobody is writing. Costs about 0.1 ms a frame, and only after a crash is there one.

    `synced`: each commit was on the disk before it was acknowledged (`synchronous=FULL`). Else a power cut may take any of the last ones,
    as was agreed to, and frames behind the end are no damage.
    """
    shm = read_shm(path)
    try:
        fd = os.open(wal_path(path), os.O_RDONLY)
    except FileNotFoundError:
        return _without_log(path, shm)
    try:
        size = os.fstat(fd).st_size
        found = _without_log(path, shm) if size == 0 else _inspect(fd, size, path, shm, synced)
        if found.damage is None and found.committed and (not path.exists() or path.stat().st_size == 0):  # SQLite would drop the log (P3)
            return Wal(damage=f"{path} is missing or empty, and {wal_path(path)} holds {found.committed} pages of acknowledged commits")
        return found
    finally:
        os.close(fd)


def _without_log(path: Path, shm: Shm | None) -> Wal:
    if shm is not None and shm.frames > shm.backfilled and path.exists():
        return Wal(damage=f"{wal_path(path)} is missing or empty, and held {shm.frames - shm.backfilled} pages of acknowledged commits")
    return Wal()


class _Scan:
    """One walk over the frames of one life of the log (its salts)."""

    def __init__(self, fd: int, size: int, head: bytes) -> None:
        self.fd, self.order, self.salts = fd, _MAGICS[int.from_bytes(head[:4], "big")], head[16:24]
        self.page = int.from_bytes(head[8:12], "big")
        self.frames = (size - HEADER) // (FRAME + self.page)
        self.sums = struct.unpack(">II", head[24:32])
        self.committed = self.valid = 0
        self.pages: set[int] = set()
        self.beyond: list[tuple[int, bool]] = []
        """(frame, ends a commit) of this life beyond the first bad frame."""

    def walk(self) -> None:
        good, fresh, before = True, set(), b""
        for number in range(1, self.frames + 1):
            head, last = read(self.fd, FRAME, self._at(number)), before
            before = head
            page, commits = struct.unpack(">II", head[:8])
            ours = head[8:16] == self.salts
            if good and ours and page and self._follows(number, head):
                self.valid = number
                fresh.add(page)
                if commits:
                    self.committed, self.pages, fresh = number, self.pages | fresh, set()
                continue
            good = False
            if ours:
                self.beyond.append((number, bool(commits) and self._is_whole(number, head, last)))

    def _at(self, number: int) -> int:
        return HEADER + (number - 1) * (FRAME + self.page)

    def _follows(self, number: int, head: bytes) -> bool:
        if (sums := self._sums(number, head, self.sums)) is None:
            return False
        self.sums = sums
        return True

    def _is_whole(self, number: int, head: bytes, before: bytes) -> bool:
        """Is the mark of a commit of the frame's own life? Where a sector of the disk ends between it and the salts, a power cut may leave
        another life's before them: then only if its checksum follows from the frame before."""
        if self._at(number) % SECTOR + 8 != SECTOR:
            return True
        return len(before) == FRAME and self._sums(number, head, struct.unpack(">II", before[16:24])) is not None

    def _sums(self, number: int, head: bytes, start: tuple[int, int]) -> tuple[int, int] | None:
        """Those of this frame behind `start`; None where they are not what it says."""
        body = read(self.fd, self.page, self._at(number) + FRAME)
        sums = checksum(body, self.order, *checksum(head[:8], self.order, *start))
        return sums if struct.pack(">II", *sums) == head[16:24] else None


def _inspect(fd: int, size: int, path: Path, shm: Shm | None, synced: bool) -> Wal:
    head = read(fd, min(size, HEADER), 0)
    if not _header_is_sound(head):
        if size <= HEADER + FRAME:
            return Wal()  # a crash while it was made; nothing was in it
        return Wal(damage=f"the header of {wal_path(path)} is damaged: SQLite would drop the whole log ({size} bytes)")
    scan = _Scan(fd, size, head)
    scan.walk()
    witnessed = shm is not None and shm.salts == scan.salts
    torn = 0 if witnessed else len(scan.beyond) + scan.valid - scan.committed
    return Wal(scan.committed, frozenset(scan.pages), _damage(scan, path, shm, synced), torn)


def _header_is_sound(head: bytes) -> bool:
    if len(head) < HEADER:
        return False
    magic, version, page, _ = struct.unpack(">IIII", head[:16])
    if magic not in _MAGICS or version != _SHM_VERSION or page not in {512 << n for n in range(8)}:
        return False
    return struct.pack(">II", *checksum(head[:24], _MAGICS[magic])) == head[24:32]


def _damage(scan: _Scan, path: Path, shm: Shm | None, synced: bool) -> str | None:
    where = f"{wal_path(path)} is damaged at frame {scan.valid + 1}"
    commits = sum(ends for _, ends in scan.beyond)
    if shm is not None and shm.salts == scan.salts and shm.frames > scan.committed:
        return f"{where}: {shm.frames - scan.committed} pages of acknowledged commits stand there or behind it"
    if shm is not None and shm.frames > shm.backfilled and _older(scan.salts, shm.salts):
        return f"{wal_path(path)} is older than what was committed last: {shm.frames} pages of acknowledged commits are missing"
    first_end = next((number for number, ends in scan.beyond if ends), None)
    if synced and first_end is not None and scan.beyond[-1][0] > first_end:
        return f"{where}, and {commits} commits stand there or behind it"
    return None


def _older(salts: bytes, than: bytes) -> bool:
    """The first salt is raised by one each time that the log begins anew."""
    return 0 < (int.from_bytes(than[:4], "big") - int.from_bytes(salts[:4], "big")) & _WORD < 1 << 31
