"""Small acts of an operator at a real coordinator: each answer says what is so, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from halfmsg.coordinator.app import Coordinator, banner
from tests.support import serving
from tests.support.serving import Served

from .standing import DECIDED, OPEN


async def test_check_of_another_producers_transaction_says_whose_it_is(standing: Served) -> None:
    """It is not asked about under the wrong name, and not passed over either."""
    for name in ("nobody", "billing"):
        await standing.call("PUT", "/v1/producers/billing", {})
        status, told = await standing.call("POST", f"/v1/producers/{name}/check", {"ids": [OPEN]})
        assert status == 200
        assert told["items"] == [
            {"id": OPEN, "verdict": "no_answer", "detail": f"not asked: it is of producer orders. Ask: halfmsg check orders {OPEN}"}
        ]


async def test_check_of_a_decided_transaction_says_where_to_look(standing: Served) -> None:
    _, told = await standing.call("POST", "/v1/producers/orders/check", {"ids": [DECIDED]})
    assert told["code"] == "state_changed" and told["detail"].endswith(f"See: halfmsg tx show {DECIDED}")


@pytest.mark.parametrize("topic", ["plain", "other"])
async def test_plain_send_with_a_topic_in_its_body_is_told_to_leave_it_out(standing: Served, topic: str) -> None:
    """The path names it; that of the body could only be the same, or a mistake."""
    status, told = await standing.call("POST", "/v1/topics/plain/messages", {"data": 1, "topic": topic})
    assert (status, told["code"]) == (400, "bad_request")
    assert told["detail"] == "the path names the topic, plain: leave it out of the body - at `$.topic`"


async def test_removals_that_are_refused_say_what_comes_first(standing: Served) -> None:
    """Each with a command."""
    for path, command in (
        ("/v1/topics/plain", "halfmsg group rm g --reason WHY"),
        ("/v1/groups/g", "halfmsg group show g"),
        ("/v1/producers/orders", "halfmsg tx ls --producer orders"),
    ):
        status, told = await standing.call("DELETE", path + "?reason=r")
        assert status == 409 and told["detail"].endswith(command)


async def test_banner_says_that_a_store_is_new(tmp_path: Path) -> None:
    """A coordinator that was started in the wrong folder has nobody's messages."""
    for word in ("(new, SQLite", "(SQLite"):
        one: Coordinator = await serving.started(serving.settings(tmp_path))
        assert word in dict(banner(one))["Store"]
        await one.stop()
