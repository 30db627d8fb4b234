"""What must never change while a store lives."""

from __future__ import annotations

import pytest

from halfmsg.coordinator.digests import lane_of


@pytest.mark.parametrize(("key", "lanes", "lane"), [(b"k", 64, 35), (b"order-1", 64, 61), ("ä".encode(), 7, 0), (b"", 64, 52), (b"k", 1, 0)])
def test_p7_lane_of_a_key_is_the_same_for_ever(key: bytes, lanes: int, lane: int) -> None:
    """In every process and every version: a key that changed its lane would be two orders."""
    assert lane_of(key, lanes) == lane
