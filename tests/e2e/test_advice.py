"""What a refusal advises fits what was asked for."""

from __future__ import annotations

import pytest

from tests.support.serving import Served, heard, say

from .standing import OPEN, tx


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/v1/topics/new/messages", {"data": 1}, "unordered"),
        ("/v1/topics/new/messages", {"data": 1, "key": "k"}, "arrival"),
        ("/v1/transactions", tx(messages=[{"topic": "new", "data": 1, "key": "k"}]), "sequence"),
    ],
)
async def test_missing_topic_is_advised_with_the_kind_that_fits_the_message(standing: Served, path: str, body: object, kind: str) -> None:
    """With another kind the next attempt would be refused too."""
    _, told = await standing.call("POST", path, body)
    assert told["detail"].endswith(f"make it with: halfmsg topic create new --kind {kind}")
    assert (await standing.call("PUT", "/v1/topics/new", {"kind": kind, "allow_no_group": True}))[0] == 201
    assert (await standing.call("POST", path, body))[0] == 201


async def test_topic_of_the_coordinators_own_is_not_advised_to_be_made(standing: Served) -> None:
    """Its creation would be refused."""
    for path in ("/v1/topics/halfmsg.x/messages", "/v1/topics/halfmsg.x"):
        status, told = await standing.call("POST" if "messages" in path else "GET", path, {"data": 1} if "messages" in path else None)
        assert (status, told["code"]) == (404, "topic_not_found")
        assert "take another name" in told["detail"] and "create" not in told["detail"]


async def test_wrong_source_says_whether_another_database_was_named_or_none(dev: Served) -> None:
    """Who sends no `source` has no other database to look for."""
    ours, other = "ab" * 16, "cd" * 16
    assert (await dev.call("POST", "/v1/transactions", tx(state="committed", source=ours)))[0] == 201
    ws = await dev.stream(hello=False)
    await say(ws, {"type": "hello", "client": "test", "producers": [{"name": "orders", "source": ours}]})
    await heard(ws)
    half = tx(id=OPEN, source=ours)
    assert (await dev.call("POST", "/v1/transactions", half))[0] == 201
    for path, body in (("/v1/transactions", tx()), (f"/v1/transactions/{OPEN}/rollback", {"producer": "orders"})):
        for source, words in ((None, "this call names no source"), (other, f"{other} is another database")):
            status, told = await dev.call("POST", path, body | ({"source": source} if source else {}))
            assert (status, told["code"]) == (409, "wrong_source")
            assert f"producer orders is bound to the database {ours}; {words}" in told["detail"]
    await ws.close()
