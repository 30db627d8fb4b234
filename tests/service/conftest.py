"""A store and a world on it; see tests/support."""

import pytest

from halfmsg.coordinator.messages import Kind
from tests.support.factories import World
from tests.support.fixtures import clock, store, world

__all__ = ["clock", "store", "world"]


@pytest.fixture
def plain(world: World) -> World:
    world.topic()
    world.group()
    return world


@pytest.fixture
def seq(world: World) -> World:
    world.topic("seq", Kind.SEQUENCE, lanes=1)
    world.group("g", "seq")
    return world
