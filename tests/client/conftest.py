"""A stub coordinator on a free port, and clients that are closed in the end."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from halfmsg.txclient import Client

from .stub_server import StubServer


@pytest_asyncio.fixture
async def server() -> AsyncIterator[StubServer]:
    stub = await StubServer().start()
    yield stub
    await stub.stop()


@pytest_asyncio.fixture
async def client(server: StubServer) -> AsyncIterator[Client]:
    async with Client(server.url, timeout=5) as one:
        yield one


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HALFMSG_URL", "HALFMSG_TOKEN", "HALFMSG_TOKEN_FILE", "HALFMSG_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
