"""Cancel a task at its k-th await, for every k; and a proxy that withholds what the database answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Generator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit


class CancelledAt:
    """Awaits a coroutine and cancels the task around it at its k-th suspension. `reached` is False when it ended before."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], k: int) -> None:
        self._coroutine, self._left = coroutine, k
        self.reached = False

    def __await__(self) -> Generator[Any, Any, Any]:
        inner = self._coroutine.__await__()
        error: BaseException | None = None
        while True:
            try:
                waited = inner.send(None) if error is None else inner.throw(error)
            except StopIteration as end:
                return end.value
            self._left -= 1
            if self._left == 0:
                task = asyncio.current_task()
                assert task is not None
                self.reached = True
                task.cancel()
            try:
                yield waited
                error = None
            except BaseException as thrown:
                error = thrown


async def cancel_at(coroutine: Coroutine[Any, Any, Any], k: int) -> tuple[bool, BaseException | None]:
    """(was the k-th await reached, what the task raised)."""
    counted = CancelledAt(coroutine, k)

    async def body() -> Any:
        return await counted

    task = asyncio.create_task(body())
    await asyncio.wait({task})
    error = asyncio.CancelledError() if task.cancelled() else task.exception()
    return counted.reached, error


class DeafProxy:
    """Passes bytes between client and server, or holds those of the client while `flows` is not set.

    `loses_answer_of`: when a client says this, its answer is withheld and every connection broken.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self.loses_answer_of: bytes | None = None
        self._deaf = False
        self._silent = 0
        self.flows = asyncio.Event()
        self.flows.set()
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(*self._target)
        self._writers += [writer, there_writer]
        at = len(self._writers)
        for pump in (self._pump(reader, there_writer, False, at), self._pump(there_reader, writer, True, at)):
            task = asyncio.create_task(pump)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: bool, at: int) -> None:
        with suppress(ConnectionError):
            while chunk := await reader.read(65_536):
                if at <= self._silent:
                    continue
                if answers and self._deaf:  # so the server has done it
                    self._deaf = False
                    return self.cut()
                if not answers and self.loses_answer_of is not None and self.loses_answer_of in chunk:
                    self._deaf, self.loses_answer_of = True, None
                if not answers:
                    await self.flows.wait()
                writer.write(chunk)
                await writer.drain()
        writer.close()

    def fall_silent(self) -> None:
        """Every connection that is open stays so and passes nothing any more; new ones are served. A fail-over that nobody told."""
        self._silent = len(self._writers)

    def cut(self) -> None:
        """Break every connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def stop(self) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()


@asynccontextmanager
async def deaf_proxy(url: str) -> AsyncIterator[tuple[DeafProxy, str]]:
    """The proxy, and the database's URL through it."""
    parts = urlsplit(url)
    proxy = DeafProxy(parts.hostname or "127.0.0.1", parts.port or 5432)
    port = await proxy.start()
    try:
        yield proxy, url.replace(f":{parts.port}", f":{port}", 1)
    finally:
        await proxy.stop()
