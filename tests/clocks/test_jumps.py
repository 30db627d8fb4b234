"""The coordinator's own wall clock jumps, stands still, or is of another age: leases, back-offs and checks go by the time that passed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clocks.life import BACKOFF_S, FIRST_CHECK_S, LEASE_S, MAX_AGE_S, Life, living
from tests.support.clock import START_MS, WildClock
from tests.support.serving import eventually

HOUR_S, YEAR_S = 3_600, 365 * 86_400
JUMPS = {
    "stays": 0, "hour_ahead": HOUR_S, "hour_back": -HOUR_S, "year_ahead": YEAR_S, "year_back": -YEAR_S,
    "past_2038": (2**31 * 1000 - START_MS) // 1000 + 1, "to_2100": (4_102_444_800_000 - START_MS) // 1000, "to_1970": -START_MS // 1000,
}  # fmt: skip


async def leased(life: Life) -> dict[str, list[dict[str, object]]]:
    """Two messages in a hand on each topic, one behind them, one that waits for its back-off."""
    await life.send("a", 1, 2)
    await life.send("u", 1, 2, 3)
    first = await life.fetched("a", [1, 2])
    plain = await life.fetched("u", [1, 2, 3])
    await life.send("a", 3)
    assert await life.settle("nack", "u", plain[2]) == [""]
    return {"a": first, "u": plain}


@pytest.mark.parametrize("jump_s", JUMPS.values(), ids=JUMPS)
async def test_p10_a_jump_ends_no_lease_and_stretches_none(folder: Path, jump_s: int) -> None:
    """Before the lease's length has passed nobody else gets them and their acks are good; after it they come again, in order."""
    clock = WildClock()
    async with living(folder, clock) as life:
        given = await leased(life)
        clock.jump(jump_s)
        await life.turn()
        assert await life.fetch("a", member="other") == []
        assert await life.fetch("u") == []
        assert await life.settle("ack", "a", given["a"][0]) == [""]
        await life.later(BACKOFF_S + 1)
        await life.drained("u", [3])
        await life.later(LEASE_S - BACKOFF_S - 3)
        assert await life.fetch("a", member="other") == []
        assert await life.settle("ack", "u", given["u"][0]) == [""]
        await life.later(4)
        assert await life.settle("ack", "a", given["a"][1]) == ["lease_lost"]
        assert await life.settle("ack", "u", given["u"][1]) == ["lease_lost"]
        await life.drained("a", [2, 3], member="other")
        await life.drained("u", [2])
        await life.is_sound()


@pytest.mark.parametrize("jump_s", [-YEAR_S, -HOUR_S, HOUR_S, YEAR_S])
async def test_p10_a_jump_neither_hurries_checks_nor_parks_nor_stops_them(folder: Path, jump_s: int) -> None:
    """A producer that says `running` is asked every 5 s, whatever the wall clock says; nothing is too old before its time, and then it is."""
    clock = WildClock()
    async with living(folder, clock) as life:
        id = await life.prepare()
        await life.later(FIRST_CHECK_S + 1)
        await eventually(lambda: life.asked[id] == 1, "the first question")
        clock.jump(jump_s)
        await life.turn()
        await life.turn()
        assert life.asked[id] == 1
        for count in (2, 3):
            await life.later(FIRST_CHECK_S + 0.1)
            await eventually(lambda count=count: life.asked[id] == count, f"question {count}")
            await life.turn()
            assert await life.state(id) == "prepared"
        clock.advance(MAX_AGE_S - 120)
        clock.jump(-2 * jump_s)
        await life.turn()
        assert await life.state(id) == "prepared"
        life.word = "committed"
        await life.later(FIRST_CHECK_S + 1)
        await eventually(lambda: _is(life, id, "committed"), "the verdict")
        await life.fetched("u", [0])
        await life.is_sound()


async def _is(life: Life, id: str, state: str) -> bool:
    return await life.state(id) == state


async def test_p10_a_clock_that_stands_still_stops_nothing(folder: Path) -> None:
    """A frozen wall clock, as of a paused machine that never caught up: leases end and checks come by the monotonic clock."""
    clock = WildClock()
    clock.frozen = True
    async with living(folder, clock) as life:
        given = await leased(life)
        id = await life.prepare()
        await life.later(LEASE_S + 1)
        assert await life.settle("ack", "a", given["a"][0]) == ["lease_lost"]
        await life.drained("a", [1, 2, 3], member="other")
        await eventually(lambda: life.asked[id] == 1, "the first question")
        await life.later(FIRST_CHECK_S + 1)
        await eventually(lambda: life.asked[id] == 2, "the second question")
        await life.is_sound()


@pytest.mark.parametrize("jump_s", [-YEAR_S, -HOUR_S, HOUR_S, YEAR_S])
async def test_p10_restart_after_a_jump_hangs_nothing(folder: Path, jump_s: int) -> None:
    """The store holds times of the old clock. A lease ends after its length, a back-off and a check come when they are due; the ones
    that stood an hour or a year away from now do not wait for that.
    """
    clock = WildClock()
    async with living(folder, clock) as life:
        given = await leased(life)
        id = await life.prepare()
        times = [item["time"] for item in (await life.must("GET", "/v1/topics/a/messages"))["items"]]
    clock.jump(jump_s)
    async with living(folder, clock) as life:
        life.digests[id] = await _digest(life, id)
        await life.send("a", 4)
        times += [item["time"] for item in (await life.must("GET", "/v1/topics/a/messages"))["items"]][-1:]
        assert times == sorted(times)
        if jump_s < 0:
            assert await life.settle("ack", "a", given["a"][0]) == [""], "the lease goes on where it stood"
        await life.later(LEASE_S + 1)
        assert await life.settle("ack", "a", given["a"][1]) == ["lease_lost"]
        await life.drained("a", [2, 3, 4] if jump_s < 0 else [1, 2, 3, 4], member="other")
        await life.drained("u", [3, 1, 2])
        await eventually(lambda: life.asked[id] >= 1, "the question")
        assert await life.state(id) == ("parked" if jump_s > 0 else "prepared"), "an hour or a year without a coordinator is believed"
        life.word = "committed"
        await life.must("POST", f"/v1/transactions/{id}/check")
        assert await life.state(id) == "committed"
        await life.is_sound()


async def test_p10_a_year_ahead_by_mistake_and_back_hangs_nothing(folder: Path) -> None:
    """The likeliest mistake: the machine starts a year ahead, works so, is put right, and starts again. Everything that was stored
    with times of next year goes on at once, and the time that is told never goes back.
    """
    clock = WildClock(START_MS + YEAR_S * 1000)
    async with living(folder, clock) as life:
        given = await leased(life)
        id = await life.prepare()
        told = (await life.must("GET", "/v1/info"))["time"]
    clock.jump(-YEAR_S)
    clock.advance(3)
    async with living(folder, clock) as life:
        life.digests[id] = await _digest(life, id)
        assert (await life.must("GET", "/v1/info"))["time"] >= told
        assert life.served.coordinator.engine.clock.ahead_s() > YEAR_S - 60
        await life.later(FIRST_CHECK_S + 1)
        await eventually(lambda: life.asked[id] >= 1, "the question")
        assert await life.settle("ack", "a", given["a"][0]) == [""]
        await life.later(LEASE_S)
        await life.drained("a", [2, 3], member="other")
        await life.drained("u", [3, 1, 2])
        assert await life.state(id) == "prepared"
        await life.is_sound()


async def _digest(life: Life, id: str) -> str:
    return str((await life.must("GET", f"/v1/transactions/{id}"))["digest"])
