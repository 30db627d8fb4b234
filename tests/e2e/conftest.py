"""A real coordinator; see tests/support."""

from tests.support.fixtures import clock, coordinator

__all__ = ["clock", "coordinator"]
