"""One damaged transaction row: its neighbours are listed and decided, it is named, and nothing is decided by it or written over it."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest

from tests.support.serving import Served

from .standing import ID, POST, tx

SOUND, BROKEN = ID % 20, ID % 21


@pytest.fixture
def spoil(coordinator: Served) -> Any:
    """Sets columns of the damaged one behind the coordinator's back, as a flipped bit would."""

    def change(columns: str) -> None:
        with sqlite3.connect(coordinator.path) as db:
            db.execute(f"UPDATE tx SET {columns} WHERE id = ?", (bytes.fromhex(BROKEN.replace("-", "")),))

    return change


async def _half_messages(coordinator: Served, **message: Any) -> None:
    await coordinator.call("PUT", "/v1/topics/plain", {"kind": "unordered", "allow_no_group": True})
    await coordinator.call("PUT", "/v1/topics/seq", {"kind": "sequence", "allow_no_group": True})
    await coordinator.call("PUT", "/v1/producers/orders", {"check_url": "http://127.0.0.1:9/check"})
    for id in (SOUND, BROKEN):
        half = tx(id=id, messages=[{"topic": "plain", "data": 1} | message])
        assert (await coordinator.call("POST", POST, half))[0] == 201


@pytest.mark.parametrize("query", ["state=prepared", "state=committed", "", "order=newest", "topic=plain"])
async def test_list_goes_on_over_a_damaged_row_and_names_it(coordinator: Served, spoil: Any, query: str) -> None:
    """Whatever was asked for: nobody can say what a damaged one is."""
    await _half_messages(coordinator)
    spoil("state = 1")
    status, page = await coordinator.call("GET", f"{POST}?{query}")
    assert (status, page["damaged"]) == (200, [{"n": 2, "id": BROKEN}])
    assert [each["id"] for each in page["items"]] == ([] if "committed" in query else [SOUND])


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", f"{POST}/{BROKEN}", None),
        ("POST", f"{POST}/{BROKEN}/park", {"reason": "r"}),
        ("POST", f"{POST}/{BROKEN}/commit", {"force": True, "reason": "r"}),
        ("POST", f"{POST}/{BROKEN}/rollback", {"producer": "orders"}),
        ("POST", f"{POST}/{BROKEN}/check", None),
        ("POST", POST, tx(id=BROKEN)),
    ],
)
async def test_p5_nothing_is_decided_by_a_damaged_row_and_nothing_written_over_it(
    coordinator: Served, spoil: Any, caplog: pytest.LogCaptureFixture, method: str, path: str, body: Any
) -> None:
    """A typed answer with the next command, no traceback, and the store as it was."""
    await _half_messages(coordinator)
    spoil("state = 1")
    stored = coordinator.dump(without=("counter",))
    status, told = await coordinator.call(method, path, body)
    assert (status, told["code"]) == (500, "row_damaged")
    assert "halfmsg doctor" in told["detail"] and "number 2" in told["detail"]
    assert coordinator.dump(without=("counter",)) == stored
    assert not [record for record in caplog.records if record.exc_info]
    assert (await coordinator.call("POST", f"{POST}/{SOUND}/rollback", {"producer": "orders"}))[1]["state"] == "rolled_back"


async def test_key_with_a_damaged_transaction_is_still_shown(coordinator: Served, spoil: Any) -> None:
    """Keys are looked at each half second for their gaps: one row must not end that."""
    await _half_messages(coordinator, topic="seq", key="k")
    spoil("state = 1")
    status, found = await coordinator.call("GET", "/v1/topics/seq/keys/k")
    assert (status, found["items"][0]["undecided"], found["items"][0]["damaged"]) == (200, [SOUND], [2])
