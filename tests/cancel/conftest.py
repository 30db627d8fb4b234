"""The coordinator in this process, on the real clock, over a file of the test."""

from __future__ import annotations

from tests.clocks.conftest import folder

__all__ = ["folder"]
