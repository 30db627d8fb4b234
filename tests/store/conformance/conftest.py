"""`open_store` opens the same store again and again: the backends that are put under this suite are its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from halfmsg.coordinator.env import Env
from halfmsg.coordinator.settings import Settings
from tests.support.clock import ManualClock
from tests.support.stores import Store, open_sqlite

OpenStore = Callable[[], Store]
BACKENDS = {"sqlite": lambda folder, clock: open_sqlite(folder / "store.db", Env(Settings()), clock, synchronous="FULL")}


@pytest.fixture(params=BACKENDS)
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenStore]:
    """Each call closes what the one before opened and opens the same store anew, as a restart does."""
    clock = ManualClock()
    opened: list[Store] = []

    def again() -> Store:
        if opened:
            opened.pop().close()
        opened.append(BACKENDS[request.param](tmp_path, clock))
        return opened[-1]

    yield again
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    return open_store()
