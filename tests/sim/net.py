"""A network in memory under the real aiohttp: byte streams that keep their order, and are slow, cut, or silent for a while."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any

from .loop import SimLoop
from .seams import NODE, Node

EOF = b""


class _Socket:
    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address

    def getsockname(self) -> tuple[str, int]:
        return self._address


class Server(asyncio.AbstractServer):
    def __init__(self, net: Net, factory: Callable[[], Any], address: tuple[str, int]) -> None:
        self.net, self.factory, self.address = net, factory, address
        self.context = copy_context()
        self.sockets = [_Socket(address)]

    def close(self) -> None:
        self.net.servers.pop(self.address[1], None)
        self.sockets = []

    async def wait_closed(self) -> None:
        return None

    def is_serving(self) -> bool:
        return bool(self.sockets)


class End(asyncio.Transport):
    """One end of a stream."""

    def __init__(self, net: Net, context: Context, address: tuple[str, int]) -> None:
        super().__init__({"peername": address, "sockname": address, "socket": None, "sslcontext": None})
        self.net, self.context = net, context
        self.node = context.get(NODE)
        self.peer: End
        self.protocol: Any = None
        self._closing = self._lost = self._paused = False
        self._waiting: deque[bytes] = deque()
        self._arrives_at = 0.0

    # --- what protocols call ---

    def write(self, data: Any) -> None:
        if data and not self._closing and not self._lost:
            self._send(bytes(data))

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._send(EOF)
            self.net.loop.call_soon(self._end, None, context=self.context)

    def abort(self) -> None:
        self._closing = True
        self.reset()

    def is_closing(self) -> bool:
        return self._closing or self._lost

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        while self._waiting and not self._paused:
            self._take(self._waiting.popleft())

    def is_reading(self) -> bool:
        return not self._paused

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        return None

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return False

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol

    # --- on the wire ---

    def _send(self, data: bytes) -> None:
        loop, peer = self.net.loop, self.peer
        peer._arrives_at = max(peer._arrives_at, self.net.arrival(self.node, peer.node))
        loop.call_at(peer._arrives_at, peer._arrive, data, context=peer.context)

    def _arrive(self, data: bytes) -> None:
        if self._paused:
            self._waiting.append(data)
        else:
            self._take(data)

    def _take(self, data: bytes) -> None:
        if self._lost:
            return
        if data is not EOF and data != EOF:
            self.protocol.data_received(data)
        elif not self.protocol.eof_received():
            self.close()

    def reset(self) -> None:
        """Both ends learn it, each in its time; what is under way is lost."""
        for end in (self, self.peer):
            end._closing = True
            self.net.loop.call_later(self.net.chance.uniform(0, 0.02), end._end, ConnectionResetError(104, "reset"), context=end.context)

    def _end(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = True
            self.net.ends.pop(id(self), None)
            self.protocol.connection_lost(error)


class Net:
    """`delay_s` and the walls between nodes are turned by the driver."""

    def __init__(self, loop: SimLoop, seed: int) -> None:
        self.loop, self.chance = loop, random.Random(seed ^ 0x7E7)
        self.servers: dict[int, Server] = {}
        self.ends: dict[int, End] = {}
        self.delay_s = 0.001
        self._walls: dict[tuple[str, str], float] = {}
        self._targets: dict[int, tuple[str, int]] = {}
        self._port = 40_000

    def wall(self, a: str, b: str, until: float) -> None:
        self._walls[a, b] = self._walls[b, a] = until

    def tear_down_walls(self) -> None:
        self._walls.clear()
        self.delay_s = 0.001

    def _free_at(self, a: Node | None, b: Node | None) -> float:
        return self._walls.get((a.name if a else "", b.name if b else ""), 0.0)

    def arrival(self, sender: Node | None, receiver: Node | None) -> float:
        """What is sent into a wall is sent again and again, and arrives when it is gone."""
        delay_s = self.chance.expovariate(1 / self.delay_s)
        return max(self.loop.time(), self._free_at(sender, receiver)) + delay_s

    def listen(self, factory: Callable[[], Any], host: Any, port: int) -> Server:
        if port in self.servers:
            raise OSError(98, "address in use")
        server = self.servers[port] = Server(self, factory, (str(host), port))
        return server

    async def reach(self, sock: Any, address: tuple[str, int]) -> None:
        server = self.servers.get(address[1])
        at = self.arrival(NODE.get(), None if server is None else server.context.get(NODE))
        await asyncio.sleep(at - self.loop.time())
        if address[1] not in self.servers:
            raise ConnectionRefusedError(111, "refused")
        self._targets[id(sock)] = address

    def connect(self, factory: Callable[[], Any], sock: Any) -> tuple[End, Any]:
        address = self._targets.pop(id(sock))
        sock.close()
        server = self.servers.get(address[1])
        if server is None:
            raise ConnectionRefusedError(111, "refused")
        self._port += 1
        near, far = End(self, copy_context(), address), End(self, server.context.run(copy_context), ("127.0.0.1", self._port))
        near.peer, far.peer = far, near
        self.ends |= {id(near): near, id(far): far}
        near.protocol, far.protocol = factory(), far.context.run(server.factory)
        far.context.run(far.protocol.connection_made, far)
        near.protocol.connection_made(near)
        return near, near.protocol

    def cut(self, node: Node) -> None:
        for end in list(self.ends.values()):
            if end.node is node:
                end.reset()

    def crash(self, node: Node) -> None:
        """Its kernel closes what it had; the others hear of it."""
        for port, server in list(self.servers.items()):
            if server.context.get(NODE) is node:
                del self.servers[port]
        for end in list(self.ends.values()):
            if end.node is node:
                self.ends.pop(id(end), None)
                peer = end.peer
                peer._closing = True
                self.loop.call_later(self.chance.uniform(0, 0.05), peer._end, ConnectionResetError(104, "reset"), context=peer.context)
