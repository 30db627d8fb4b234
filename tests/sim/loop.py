"""An event loop on virtual time: it jumps to the next timer instead of waiting, and a node that is dead or frozen takes no step."""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import random
import selectors
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

from .seams import NODE, Node

if TYPE_CHECKING:
    from .net import Net

STEPS_MAX = 5_000_000


class Stuck(RuntimeError):
    """Nothing is left to run and nothing to wait for, or it goes on for ever."""


class _Selector(selectors.BaseSelector):
    """No descriptors: only time passes."""

    def __init__(self) -> None:
        self.loop: SimLoop

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        raise Stuck("a real descriptor was registered: something reached for the network")

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        raise KeyError(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stuck("nobody has anything left to do")
        self.loop.pass_time(timeout)
        return []

    def get_map(self) -> dict[Any, Any]:
        return {}

    def close(self) -> None:
        return None


def _node(handle: asyncio.Handle) -> Node | None:
    return handle._context.get(NODE)  # type: ignore[attr-defined,no-any-return]


def _may_run(handle: asyncio.Handle) -> bool:
    """The dead do nothing; the frozen do it when they thaw."""
    node = _node(handle)
    if node is None:
        return True
    if not node.alive:
        return False
    loop = handle._loop  # type: ignore[attr-defined]
    if node.waiting or node.frozen_until > loop.time():
        if not node.waiting:
            loop.call_at(node.frozen_until, _thaw, loop, node, context=Context())
        node.waiting.append(handle)
        return False
    return True


def _thaw(loop: SimLoop, node: Node) -> None:
    """All that came meanwhile, in the order in which it came, however often the end was put off: else later bytes overtake earlier ones."""
    if node.frozen_until > loop.time():
        loop.call_at(node.frozen_until, _thaw, loop, node, context=Context())
        return
    waiting, node.waiting = node.waiting, []
    for handle in waiting:  # here and now: what is ready beside it came later
        handle._run()  # type: ignore[attr-defined]


class _Handle(asyncio.Handle):
    def _run(self) -> None:
        if not self._cancelled and _may_run(self):  # type: ignore[attr-defined]
            super()._run()  # type: ignore[misc]


class _TimerHandle(asyncio.TimerHandle):
    """Timers of one moment go off in the order in which they were set; a heap alone does not promise that, and streams rest on it."""

    number = 0

    def __lt__(self, other: Any) -> bool:
        return (self._when, self.number) < (other._when, other.number)  # type: ignore[attr-defined]

    def _run(self) -> None:
        if not self._cancelled and _may_run(self):  # type: ignore[attr-defined]
            super()._run()  # type: ignore[misc]


class SimLoop(asyncio.SelectorEventLoop):
    """`trace` is a hash over all steps and times: two runs of a seed have the same one."""

    net: Net

    def __init__(self, seed: int) -> None:
        self._virtual_s, self._steps, self._timers = 1.0, 0, 0
        self.chance = random.Random(seed ^ 0x5EED)
        self.trace = hashlib.sha256()
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._virtual_s

    def pass_time(self, seconds: float) -> None:
        self._steps += 1
        if self._steps > STEPS_MAX:
            raise Stuck(f"more than {STEPS_MAX} steps; something turns in circles")
        if seconds > 0:
            self._virtual_s += seconds
        self.trace.update(b"%d %d\n" % (int(self._virtual_s * 1e6), len(self._ready)))  # type: ignore[attr-defined]

    # --- handles that know their node ---

    def _call_soon(self, callback: Callable[..., Any], args: tuple[Any, ...], context: Context | None) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> asyncio.TimerHandle:  # type: ignore[override]
        timer = _TimerHandle(when, callback, args, self, context)
        self._timers += 1
        timer.number = self._timers
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    # --- no threads, no descriptors ---

    def _make_self_pipe(self) -> None:
        self._ssock = self._csock = None
        self._internal_fds = 0

    def _close_self_pipe(self) -> None:
        return None

    def _write_to_self(self) -> None:
        return None

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """The work of a thread, at one moment of its own; it is done also when nobody waits for it any more."""
        future = self.create_future()

        def work() -> None:
            try:
                result = func(*args)
            except BaseException as error:
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)

        self.call_later(self.chance.expovariate(1_000), work, context=copy_context())
        return future

    # --- the network ---

    async def sock_connect(self, sock: Any, address: Any) -> None:  # type: ignore[override]
        await self.net.reach(sock, address)

    async def create_connection(self, protocol_factory: Any, *args: Any, sock: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        return self.net.connect(protocol_factory, sock)

    async def create_server(self, protocol_factory: Any, host: Any = None, port: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        return self.net.listen(protocol_factory, host, port)
