"""What topics, groups and producers have in common."""

from __future__ import annotations

from msgspec import Struct


class Removal(Struct, frozen=True):
    """Of a topic, group or producer by an operator; the reason goes to the audit."""

    name: str
    reason: str = ""
