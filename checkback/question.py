"""The question as it travels, from the side that asks: plain dicts for JSON or MessagePack. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from .answers import Missing
from .ports import DueCheck

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def build(producer: str, source: str | None, checks: Sequence[DueCheck], missing: Sequence[Missing] = ()) -> dict[str, Any]:
    """One question about `checks`, all of one producer and source, and about who holds the `missing` numbers (R5)."""
    question: dict[str, Any] = {"type": "check", "producer": producer, "transactions": [_transaction(check) for check in checks]}
    if source is not None:
        question["source"] = source
    if missing:
        question["holders"] = [place._asdict() for place in missing]
    return question


def _transaction(check: DueCheck) -> dict[str, Any]:
    prepared_at = (EPOCH + timedelta(milliseconds=check.prepared_at_ms)).isoformat(timespec="milliseconds")
    return {
        "id": check.id,
        "mark": check.mark,
        "prepared_at": prepared_at.replace("+00:00", "Z"),
        "attempt": check.attempts + 1,
        "topics": list(check.topics),
    }
