"""Less free disk than `storage.free_bytes_min`: what is said, by whom, and how often (P9)."""

from __future__ import annotations

import shutil
from collections import namedtuple
from typing import Any

import pytest

from tests.support.serving import Served, eventually

Usage = namedtuple("Usage", "total used free")
SEND = {"messages": [{"topic": "plain", "data": 1}], "state": "committed"}


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What the machine says of its disk."""
    free = {"bytes": 2**40}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**41, 0, free["bytes"]))
    return free


async def test_p9_low_disk_is_told_with_its_figures_and_once(disk: dict[str, int], standing: Served, caplog: pytest.LogCaptureFixture) -> None:
    """The refusal names path, free bytes and limit; the log has a line at the beginning and one at the end; readyz says which part."""

    async def stored() -> Any:
        status, answer = await standing.call("POST", "/v1/transactions", SEND)
        return answer if status == 507 else status

    async def verbose() -> str:
        async with standing.session.get(standing.url + "/readyz?verbose") as answer:
            assert answer.status == 200  # acks and decisions still go through
            return await answer.text()

    async def refused() -> Any:
        answer = await stored()
        return answer if answer != 201 else None

    async def taken() -> bool:
        return await stored() == 201

    assert await stored() == 201
    disk["bytes"] = 1_234
    problem = await eventually(refused, "a refusal")
    limit = standing.coordinator.settings.storage.free_bytes_min
    assert problem["code"] == "storage_full"
    assert all(word in problem["detail"] for word in (str(standing.path), "1234 bytes free", f"free_bytes_min is {limit}"))
    assert "[-]disk failed" in await verbose()
    disk["bytes"] = limit
    await eventually(taken, "an open door")
    assert "[+]disk ok" in await verbose()
    told = [record.getMessage() for record in caplog.records if record.name == "halfmsg.loops"]
    assert [str(standing.path) in line for line in told] == [True, True]
    assert "are refused" in told[0] and "are taken again" in told[1]
