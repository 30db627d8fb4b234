"""`halfmsg doctor --store` beside a working coordinator, and over damaged files: it harms nothing, and always says a line."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from halfmsg.coordinator.cli import cli
from tests.corruption import flips
from tests.corruption.content import copy, fill
from tests.support.serving import Served


def _doctor(path: Path, *args: str) -> Result:
    return CliRunner().invoke(cli, ["doctor", "--store", str(path), *args], prog_name="halfmsg")


async def test_doctor_beside_a_working_coordinator_harms_nothing(coordinator: Served) -> None:
    """Every commit is answered meanwhile, nothing is found, and the log can be cut as soon as it has ended."""
    await coordinator.call("PUT", "/v1/topics/notes", {"kind": "unordered", "allow_no_group": True})
    done = asyncio.Event()

    async def send() -> int:
        count = 0
        while not done.is_set():
            body = {"messages": [{"topic": "notes", "data": {"n": count}}], "state": "committed"}
            status, _ = await coordinator.call("POST", "/v1/transactions", body)
            assert status == 201
            count += 1
        return count

    sending = asyncio.create_task(send())
    for _ in range(5):
        found = await asyncio.to_thread(_doctor, coordinator.path)
        assert found.exit_code == 0 and "fail 0" in found.output, found.output
    done.set()
    assert await sending > 0
    await coordinator.coordinator.engine.checkpoint()
    assert coordinator.path.with_name("halfmsg.db-wal").stat().st_size == 0


@pytest.mark.parametrize("sums", [True, False], ids=["with sums", "without"])
def test_p8_doctor_says_a_line_about_any_damage(tmp_path: Path, sums: bool) -> None:
    """No traceback for any of 30 flips and cuts; with page sums exit code 1 whenever a page is not as it was written."""
    (tmp_path / "whole").mkdir()
    whole = tmp_path / "whole" / "halfmsg.db"
    fill(tmp_path / "whole", 9)
    dice, codes = random.Random(9), []
    for _ in range(30):
        path = tmp_path / "halfmsg.db"
        for each in tmp_path.glob("halfmsg.db*"):
            each.unlink()
        copy(whole, path)
        if not sums:
            path.with_name("halfmsg.db-sums").unlink()
        what = flips.damage(path, dice.choice(("main", "header", "cut main")), dice)
        found = _doctor(path)
        assert found.exception is None or isinstance(found.exception, SystemExit), what
        assert "Traceback" not in found.output and found.exit_code in (0, 1), what
        codes.append(found.exit_code)
    assert not sums or codes == [1] * 30


def test_p8_doctor_does_not_open_a_damaged_log(tmp_path: Path) -> None:
    """SQLite would write its index anew, and with it forget that there was more: doctor looks, says so, and the start still refuses."""
    fill(tmp_path, 10, killed=True)
    path = tmp_path / "halfmsg.db"
    flips.damage(path, "cut wal", random.Random(1))
    before = {each.name: each.read_bytes() for each in tmp_path.glob("halfmsg.db*")}
    for _ in range(2):
        found = _doctor(path, "--json")
        assert found.exit_code == 1
        items = [json.loads(line) for line in found.output.splitlines() if line.startswith("{")]
        assert [item["name"] for item in items] == ["log_is_whole"]
    assert {each.name: each.read_bytes() for each in tmp_path.glob("halfmsg.db*")} == before
