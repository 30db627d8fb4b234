"""What tests say to the coordinator of the fixture `standing`, and spoil."""

from __future__ import annotations

from typing import Any

ID = "018f0000-0000-7000-8000-0000000000%02d"
DECIDED, OPEN = ID % 1, ID % 2
POST = "/v1/transactions"
M = {"topic": "plain", "data": 1}


def tx(**more: Any) -> dict[str, Any]:
    return {"producer": "orders", "messages": [M]} | more


def message(**more: Any) -> dict[str, Any]:
    return tx(messages=[M | more])


def deep(levels: int) -> bytes:
    return b'{"producer":"orders","messages":[{"topic":"plain","data":' + b"[" * levels + b"]" * levels + b"}]}"
