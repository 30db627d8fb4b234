"""Fixtures that suites import by name into their conftest."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from tests.support import serving
from tests.support.clock import ManualClock
from tests.support.factories import World
from tests.support.stores import Store, open_sqlite


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(tmp_path: Path, clock: ManualClock) -> Iterator[Store]:
    """An empty SQLite store, driven by hand."""
    one = open_sqlite(tmp_path / "store.db", clock=clock)
    yield one
    one.close()


@pytest.fixture
def world(store: Store) -> World:
    return World(store)


@pytest_asyncio.fixture
async def coordinator(tmp_path: Path, clock: ManualClock) -> AsyncIterator[serving.Served]:
    """The real coordinator on a free port, over a file of this test, on a clock that stands still."""
    one = await serving.started(serving.settings(tmp_path), clock)
    async with aiohttp.ClientSession() as session:
        yield serving.Served(one, session)
    await one.stop()
