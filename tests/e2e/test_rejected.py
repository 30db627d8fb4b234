"""`halfmsg_requests_rejected_total` counts what is refused, whichever face refuses it."""

from __future__ import annotations

from tests.support.serving import Served, heard, say

from .standing import ID, tx


def _counted(coordinator: Served, code: str) -> float:
    return coordinator.coordinator.metrics.registry.get_sample_value("halfmsg_requests_rejected_total", {"code": code}) or 0


WRONG = [
    {"op": "commit", "id": ID % 9, "digest": "00" * 16},  # the store refuses it
    {"op": "prepare", **tx(producer=None)},  # refused before the store is asked
    {"op": "submit", **tx(id=ID % 8)},
]


async def test_operations_of_a_batch_and_of_a_stream_count_as_calls_do(standing: Served) -> None:
    """Producers and consumers of the library never make a single call: an alert on calls alone would never fire."""
    ws = await standing.stream()
    await say(ws, {"type": "ops", "n": 1, "ops": WRONG})
    got = (await heard(ws))["results"]
    assert [sorted(each) for each in got] == [["error"], ["error"], ["ok"]]
    assert (_counted(standing, "transaction_not_found"), _counted(standing, "bad_request")) == (1, 1)
    await standing.call("POST", "/v1/batch", {"ops": WRONG})
    await standing.call("POST", f"/v1/transactions/{ID % 9}/commit", {"digest": "00" * 16})
    assert (_counted(standing, "transaction_not_found"), _counted(standing, "bad_request")) == (3, 2)
    await ws.close()


async def test_hello_subscription_and_frame_that_are_refused_count(standing: Served) -> None:
    """What a stream refuses without an operation."""
    ws = await standing.stream()
    await say(ws, {"type": "hello", "client": "test", "producers": [{"name": "nobody", "source": "ab" * 16}]})
    assert [each["code"] for each in (await heard(ws))["refused"]] == ["producer_not_found"]
    await say(ws, {"type": "subscribe", "group": "nobody", "member": "m", "credits": 1})
    assert (await heard(ws))["error"]["code"] == "group_not_found"
    await say(ws, {"type": "nonsense"})
    assert (await heard(ws))["error"]["code"] == "bad_request"
    assert [_counted(standing, code) for code in ("producer_not_found", "group_not_found", "bad_request")] == [1, 1, 1]
    await ws.close()
