"""The secret of check-backs over HTTP is told when it is drawn, and never again."""

from __future__ import annotations

from tests.support.serving import Served, heard, say

URL = {"check_url": "http://127.0.0.1:9/check"}


async def test_producer_that_a_hello_made_is_told_its_secret_when_it_is_first_put(dev: Served) -> None:
    """Else its questions are signed with what nobody knows, and each answer is a bad signature for ever."""
    ws = await dev.stream(hello=False)
    await say(ws, {"type": "hello", "client": "test", "producers": [{"name": "pay", "source": "ab" * 16}]})
    assert "refused" not in await heard(ws)
    status, first = await dev.call("PUT", "/v1/producers/pay", URL)
    assert (status, first["said_hello"], first["secret"][:6]) == (200, True, "whsec_")
    for method, body in (("PUT", URL), ("GET", None)):
        assert "secret" not in (await dev.call(method, "/v1/producers/pay", body))[1]
    stored = await dev.coordinator.engine.read(lambda tx: tx.source("pay"))
    assert stored.secret == first["secret"]


async def test_made_producer_is_told_its_secret_at_once(coordinator: Served) -> None:
    """And a URL that comes later draws no other."""
    status, first = await coordinator.call("PUT", "/v1/producers/pay", {})
    assert (status, first["secret"][:6]) == (201, "whsec_")
    assert "secret" not in (await coordinator.call("PUT", "/v1/producers/pay", URL))[1]
