"""Looking at a topic page by page: everything is met, however far apart it stands, and a page is bounded."""

from __future__ import annotations

import pytest

from halfmsg.coordinator.messages import Kind
from halfmsg.coordinator.service import looking
from tests.support.factories import World


def pages(world: World, *, limit: int = 10, key: str | None = None) -> list[list[bytes]]:
    """The bodies of each page, until there is no next one."""
    found, at = [], 0
    while True:
        rows, _, following = looking.look(world.store.tx, looking.Window("t", 0, at, limit, key))
        found.append([row.body for row, _, _ in rows])
        if following is None:
            return found
        assert following > at
        at = following


def test_p2_key_whose_messages_are_far_apart_is_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page without one of the key is not the last page."""
    monkeypatch.setattr(looking, "LOOK_MAX", 20)
    monkeypatch.setattr(looking, "LOOK_STEP", 7)
    world.topic("t", Kind.ARRIVAL, lanes=1)
    for number in range(100):
        world.send("t", b"%d" % number, key="rare" if number in (5, 77, 78, 79) else "other")
    found = pages(world, limit=2, key="rare")
    assert [body for page in found for body in page] == [b"5", b"77", b"78", b"79"]
    assert max(map(len, found)) == 2


def test_every_message_is_on_one_page(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends a page: its count, the offsets looked at, or its bytes."""
    monkeypatch.setattr(looking, "LOOK_STEP", 3)
    world.topic("t")
    world.send_many(25, "t")
    for limit, bytes_max in ((1, 100), (10, 100), (100, 100), (10, 5)):
        monkeypatch.setattr(looking, "LOOK_BYTES_MAX", bytes_max)
        found = pages(world, limit=limit)
        assert [body for page in found for body in page] == [b"%d" % number for number in range(25)]
        assert max(len(page) for page in found) == min(limit, 25 if bytes_max == 100 else 5)
