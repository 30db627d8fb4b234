"""The portal: the same methods without await, one stream for all threads, a new one after fork."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from halfmsg.txclient import Client, Message, SyncClient, TransportError, _sync

from .stub_server import StubServer

PUBLIC = {"send", "prepare", "submit", "commit", "rollback", "transaction", "fetch", "ack", "nack", "reject", "ping"}


class Served:
    """A stub in a loop and thread of its own, as sync tests have none."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.stub = asyncio.run_coroutine_threadsafe(self._start(), self.loop).result()

    async def _start(self) -> StubServer:
        return await StubServer().start()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.stub.stop(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def served() -> Iterator[Served]:
    one = Served()
    yield one
    one.close()


def declared() -> dict[str, list[str]]:
    """Arguments and result of each method that SyncClient declares for checkers."""
    tree = ast.parse(Path(inspect.getfile(SyncClient)).read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in PUBLIC]
    return {node.name: [ast.unparse(node.args), ast.unparse(node.returns) if node.returns else ""] for node in found}


def written() -> dict[str, list[str]]:
    tree = ast.parse(Path(inspect.getfile(Client)).read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef) and node.name in PUBLIC]
    return {node.name: [ast.unparse(node.args), ast.unparse(node.returns) if node.returns else ""] for node in found}


def test_sync_has_the_signatures_of_client() -> None:
    """What runs and what checkers see are both Client's, method by method; nothing more is generated."""
    assert declared() == written() and declared().keys() == PUBLIC
    for name in PUBLIC:
        assert inspect.signature(getattr(SyncClient, name)) == inspect.signature(getattr(Client, name))
        assert not inspect.iscoroutinefunction(getattr(SyncClient, name).__call__)
    extra = {name for name, _ in inspect.getmembers(SyncClient, inspect.isfunction) if not name.startswith("_")}
    assert extra == PUBLIC | {"close"}


def test_threads_share_one_connection(served: Served) -> None:
    """Many threads, one stream."""
    with Client(served.stub.url).sync as hm, ThreadPoolExecutor(8) as pool:
        states = list(pool.map(lambda n: hm.send("t", n).state, range(100)))
    assert states == ["committed"] * 100
    assert len(served.stub.connections) == 1


def test_errors_come_out_as_they_are(served: Served) -> None:
    """An exception of the loop's thread is raised in the caller's."""
    with Client(served.stub.url, timeout=0.1).sync as hm:
        served.stub.silent = True
        with pytest.raises(TransportError):
            hm.prepare([Message("t", 1)], producer="p")


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forked_child_makes_its_own_connection(served: Served) -> None:
    """The child uses the inherited client over a new connection; the parent's goes on working."""
    client = Client(served.stub.url)
    assert client.sync.send("t", "parent").state == "committed"
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if client.sync.send("t", "child").state == "committed" else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.sync.send("t", "parent again").state == "committed"
    assert len(served.stub.connections) == 2
    client.sync.close()


def test_p7_forked_child_is_a_member_of_its_own(served: Served) -> None:
    """Parent and child that fetch under one name would be one hand to the coordinator, and overtake each other."""
    client = Client(served.stub.url)
    served.stub.http = lambda request, body: (200, {"deliveries": []})
    assert client.sync.fetch("g", wait=0) == []
    child = os.fork()
    if child == 0:
        try:
            os._exit(len(client.sync.fetch("g", wait=0)))
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.sync.fetch("g", wait=0) == []
    parent, forked, again = [body["member"] for _, path, body in served.stub.requests if path.endswith("/fetch")]
    assert parent == again != forked
    client.sync.close()


def test_client_is_used_from_a_loop_and_the_portal_at_once(served: Served) -> None:
    """Each loop has its own link; closing closes them all."""
    client = Client(served.stub.url)

    async def both() -> None:
        await client.send("t", 1)
        await asyncio.to_thread(client.sync.send, "t", 2)
        assert len(served.stub.connections) == 2 and client.connected
        await client.aclose()
        assert not client.connected

    asyncio.run(both())


def test_portal_starts_one_thread() -> None:
    """However many callers come first at the same time."""

    async def name() -> str:
        return threading.current_thread().name

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: _sync.run(name()), range(32))) == {"halfmsg-portal"}
    assert sum(thread.name == "halfmsg-portal" for thread in threading.enumerate()) == 1
