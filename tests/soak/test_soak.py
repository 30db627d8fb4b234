"""The slope of the soak: pure, with planted leaks; and two minutes of the real thing. Hours are `make soak`."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks import slope, soak
from halfmsg.coordinator.bench.loads import open_loop
from tests.support.stores import open_sqlite

MINUTES = 2.0
"""Of the real run here."""
RATE = 300.0
"""A second: far below half of what any machine does, so that neighbours on it do not show as a queue."""
MIB = 2**20
SLACK = 6.0 * MIB


def samples(value: Callable[[float, random.Random], float], seed: int) -> list[tuple[float, float]]:
    """120 samples of two minutes."""
    chance = random.Random(seed)
    return [(float(at), value(float(at), chance)) for at in range(120)]


def noisy(at: float, chance: random.Random) -> float:
    return 100 * MIB + chance.gauss(0, 2 * MIB)


def sawtooth(at: float, chance: random.Random) -> float:
    return (at % 13) * MIB


def warming(at: float, chance: random.Random) -> float:
    return noisy(at, chance) + min(at, 28) * 2 * MIB


JUDGED = [(SLACK, slope.WARM_UP), (soak.SLACK["memory"], soak.WARM_UP["memory"])]


@pytest.mark.parametrize("flat", [noisy, sawtooth, warming])
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("slack", "warm_up"), JUDGED)
def test_slope_of_what_is_flat_is_no_growth(flat: Callable[[float, random.Random], float], seed: int, slack: float, warm_up: float) -> None:
    """Noise, a sawtooth and a warm-up are not leaks."""
    assert not slope.grows(samples(flat, seed), slack, warm_up)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("slack", "warm_up"), JUDGED)
def test_slope_finds_a_planted_leak(seed: int, slack: float, warm_up: float) -> None:
    """Seven MiB a minute under noise of two is found in two minutes, and in the second of them."""
    leaking = samples(lambda at, chance: noisy(at, chance) + at * 0.12 * MIB, seed)
    assert slope.grows(leaking, slack, warm_up)


def test_slope_finds_one_descriptor_in_twenty_seconds() -> None:
    """A step that comes again and again is a line."""
    assert slope.grows(samples(lambda at, _: 20 + at // 20, 0), 3.0)


def test_slope_of_a_line_is_exact() -> None:
    """3 a second from 5 on, no error."""
    line = slope.fit([(0.0, 5.0), (1.0, 8.0), (2.0, 11.0), (4.0, 17.0)])
    assert (line.per_s, round(line.error, 9), line.rise) == (3.0, 0.0, 12.0)


def test_slope_needs_three_samples() -> None:
    """Two points are always a line."""
    with pytest.raises(ValueError, match="2 samples"):
        slope.fit([(0.0, 1.0), (1.0, 2.0)])


def _sample(at: int, **figures: float) -> soak.Sample:
    flat = dict.fromkeys(soak.SLACK, 10.0)
    return soak.Sample(float(at), flat | figures, 0, 0)


@pytest.mark.parametrize("name", soak.SLACK)
def test_soak_names_the_figure_that_grows(name: str) -> None:
    """Each of them is judged, and only what leaks is named."""
    leak = soak.SLACK[name] / 40
    wrong = soak.judge([_sample(at, **{name: 10.0 + at * leak}) for at in range(120)])
    assert len(wrong) == 1 and wrong[0].startswith(f"{name} grows")


def test_soak_sees_a_wal_that_is_too_long_at_any_time() -> None:
    """It may be cut again before the end."""
    samples = [_sample(at, wal=soak.WAL_BYTES_MAX + 1.0 if at == 50 else 0.0) for at in range(120)]
    assert [line.partition(" reached")[0] for line in soak.judge(samples)] == ["the WAL"]


def test_soak_says_what_doctor_finds_in_the_file(tmp_path: Path) -> None:
    """Nothing in a sound one; a row that breaks an invariant is named."""
    path = tmp_path / "soak.db"
    open_sqlite(path).close()
    assert soak.unsound(path) == []
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("INSERT INTO open_key VALUES (1, 99)")
    assert [line.partition(":")[0] for line in soak.unsound(path)] == ["open_key_is_undecided"]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_p9_nothing_grows_under_a_steady_load() -> None:
    """P9: memory, descriptors, WAL and the tables of open work are flat."""
    samples, findings = soak.run(MINUTES, RATE)
    assert findings == []
    assert len(samples) > 60
    assert samples[-1].acked > RATE * MINUTES * 60 * 0.9
    assert not soak.judge(samples), "\n".join([*soak.slopes(samples), *soak.judge(samples)])


async def test_load_whose_first_error_is_met_ends_with_it_and_leaves_no_task() -> None:
    begun: list[int] = []

    async def one() -> float:
        begun.append(1)
        if len(begun) == 3:
            raise ZeroDivisionError from OSError("the cause")
        await asyncio.Event().wait()
        return 0.0

    with pytest.raises(ZeroDivisionError) as raised:
        await open_loop(1_000, 60, one)
    assert isinstance(raised.value.__cause__, OSError)
    assert len(begun) < 60_000
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
