"""What the tests of handing out and settling ask of a store, beside the world itself."""

from __future__ import annotations

from typing import Any

from halfmsg.coordinator.digests import lane_of
from tests.support.factories import World

LOST = "lease_lost"


def rows(world: World, sql: str, *args: Any) -> list[Any]:
    return world.store.tx.all(sql, *args)  # type: ignore[no-any-return]


def codes(results: list[Any]) -> list[str | None]:
    return [None if each.error is None else each.error[0] for each in results]


def key_in_lane(lane: int, lanes: int) -> str:
    return next(f"k{i}" for i in range(10_000) if lane_of(f"k{i}".encode(), lanes) == lane)


def dead_of(world: World, grp: str = "g") -> list[tuple[Any, ...]]:
    return rows(world, "SELECT reason, attempts, seq FROM dead WHERE grp = (SELECT id FROM grp WHERE name = ?) ORDER BY id", grp)
