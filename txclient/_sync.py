"""The client without await: one daemon thread with one loop per process, over the same pipelined connection. `SyncClient` is generated."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from ._client import Client
from ._delivery import Delivery
from ._message import Message, MessageOptions
from ._transaction import Transaction
from ._units import Seconds

T = TypeVar("T")


class _Portal:
    """The way into the loop of this process's thread; made anew after a fork, as threads do not survive one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._parents: list[asyncio.AbstractEventLoop | None] = []

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop or self._start())
        try:
            return future.result()
        except BaseException:
            future.cancel()  # KeyboardInterrupt while waiting; no effect on what is done
            raise

    def forked(self) -> None:
        """In the child: the parent's loop is kept, not closed, since its poll object is shared with the parent."""
        self._parents.append(self._loop)
        self._loop, self._lock = None, threading.Lock()

    def _start(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="halfmsg-portal", daemon=True).start()
            return self._loop


_portal = _Portal()
os.register_at_fork(after_in_child=_portal.forked)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run it in this process's portal loop and wait for it; the exception is the coroutine's own. Not to be called in that loop."""
    return _portal.run(coroutine)


def _blocking(method: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: SyncClient, *args: Any, **kwargs: Any) -> Any:
        return run(method(self._client, *args, **kwargs))

    return call


class SyncClient:
    """Client's methods without await, over the same connection; safe from any number of threads. The declarations are for checkers."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def close(self) -> None:
        run(self._client.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /) -> None:
        self.close()

    if TYPE_CHECKING:  # tests/client/test_sync.py compares these, and what is generated below, with Client

        def send(self, topic: str, body: object, *, id: str | None = None, **options: Unpack[MessageOptions]) -> Transaction: ...
        def prepare(
            self, messages: Iterable[Message], *, producer: str, id: str | None = None, first_check: Seconds | None = None
        ) -> Transaction: ...
        def submit(
            self, messages: Iterable[Message], *, producer: str, id: str | None = None, numbers: Sequence[int | None] | None = None
        ) -> Transaction: ...
        def commit(self, id: str, *, digest: str, numbers: Sequence[int | None] | None = None) -> Transaction: ...
        def rollback(self, id: str, *, producer: str, reason: str = "") -> Transaction: ...
        def transaction(self, id: str) -> Transaction: ...
        def fetch(self, group: str, *, max: int = 100, wait: Seconds = 20.0, lease: Seconds = 30.0) -> list[Delivery]: ...
        def ack(self, deliveries: Iterable[Delivery]) -> None: ...
        def nack(self, delivery: Delivery, *, reason: str, delay: Seconds | None = None, counts: bool = True) -> None: ...
        def reject(self, delivery: Delivery, *, reason: str) -> None: ...
        def ping(self) -> Mapping[str, str]: ...


_NOT_SYNC = {"aclose", "attach", "detach", "op", "get", "topics", "put_topic", "put_group"}

for _name, _method in inspect.getmembers(Client, inspect.iscoroutinefunction):
    if not _name.startswith("_") and _name not in _NOT_SYNC:
        setattr(SyncClient, _name, _blocking(_method))
