"""A store and a world on it; see tests/support."""

from tests.support.fixtures import clock, store, world

__all__ = ["clock", "store", "world"]
