"""What transaction functions may know besides the store: settings, and what this process alone keeps in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, TypeVar

from .messages import Full
from .settings import Settings

T = TypeVar("T")
LANE_LOOK_MS: Final = 1_000
LANE_LOOK_FETCHES: Final = 16
TOPIC_STEP: Final = 0.6180339887498949
LANE_STEP: Final = 0.41421356237309515
"""Irrational, and so is one by the other: however the fetches of one member lie among all, they begin everywhere alike (Weyl, 1916)."""


class _Member:
    __slots__ = ("lease_ms", "renewed_at", "until")

    def __init__(self, lease_ms: int) -> None:
        self.lease_ms = lease_ms
        self.until = 0
        self.renewed_at = 0


class Members:
    """Who is alive in each ordered group: a member counts while it fetches, acks or extends within its lease. Rebuilt by use.

    The writer's thread alone changes it; `live` and `count` are asked by the reader's thread as well.
    """

    def __init__(self) -> None:
        self._groups: dict[int, dict[str, _Member]] = {}

    def seen(self, grp: int, member: str, now: int, lease_ms: int | None = None) -> bool:
        """Note a sign of life; True when the member is new here. Only a fetch, which names its lease, makes a member: an ack that comes
        after a restart may be under a name that will never fetch again, and its lanes would wait for it.
        """
        members = self._groups.setdefault(grp, {})
        known = members.get(member)
        if known is None and lease_ms is None:
            return False
        fresh = known is None or known.until <= now
        if known is None:
            known = members[member] = _Member(lease_ms or 30_000)
        if lease_ms is not None:
            known.lease_ms = lease_ms
        known.until = now + known.lease_ms
        if lease_ms is not None:
            self._forget_ended(members, now)
        return fresh

    def renewal(self, grp: int, member: str, now: int) -> int | None:
        """The time to renew this member's lanes to, once each third of its lease; else None."""
        known = self._groups.get(grp, {}).get(member)
        if known is None or now - known.renewed_at < known.lease_ms // 3:
            return None
        known.renewed_at = now
        return now + known.lease_ms

    def until(self, grp: int, member: str) -> int | None:
        """When it counts no longer, if it says nothing more."""
        known = self._groups.get(grp, {}).get(member)
        return None if known is None else known.until

    def left(self, grp: int, member: str) -> None:
        self._groups.get(grp, {}).pop(member, None)

    def live(self, grp: int, now: int) -> list[str]:
        members = self._groups.get(grp)
        return [name for name, member in members.copy().items() if member.until > now] if members else []

    @staticmethod
    def _forget_ended(members: dict[str, _Member], now: int) -> None:
        for name in [name for name, member in members.items() if member.until <= now]:
            del members[name]

    def count(self, grps: Iterable[int], now: int) -> int:
        return len({name for grp in grps for name in self.live(grp, now)})


class Turn(NamedTuple):
    """Where a fetch begins, each as a part of a whole round."""

    topic: float
    lane: float


def begun_at(part: float, these: list[T]) -> list[T]:
    """All of them, from that part of the round on."""
    first = int(part * len(these))
    return these[first:] + these[:first]


class Env:
    """Handed to every `Tx`. Nothing here is a promise: it is lost with the process and rebuilt."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.members = Members()
        self._turns = 0
        self._lanes_waiting: dict[tuple[int, int], tuple[int, int, bool]] = {}
        self.full = Full()
        """Topics and groups that were past a limit at the last look (loops.py)."""
        self.storage_low = False
        """Free disk was under the limit at the last look."""
        self.free_bytes: int | None = None
        """Free disk at the last look."""

    def lane_waits(self, at: tuple[int, int], now: int, look: Callable[[], bool]) -> bool:
        """What `look` found of a lane of a group, for a second or so many fetches: it counts up to 100,000 rows, and all that is written
        would wait for each of them.
        """
        looked_at, left, waits = self._lanes_waiting.get(at, (now, 0, False))
        if left <= 0 or now >= looked_at + LANE_LOOK_MS:
            looked_at, left, waits = now, LANE_LOOK_FETCHES, look()
        self._lanes_waiting[at] = looked_at, left - 1, waits
        return waits

    def turn(self) -> Turn:
        """Where the next fetch begins: none of the topics and lanes of a group is always the last. Whole steps would not do: members that
        ask by turns, or one whose every second fetch has no room, would meet every second lane alone.
        """
        self._turns += 1
        return Turn(self._turns * TOPIC_STEP % 1, self._turns * LANE_STEP % 1)
