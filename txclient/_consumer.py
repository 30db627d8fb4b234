"""A consumer group's member as a user writes it: handlers by topic, then run."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeVar, cast

from . import _handlers, _retry
from ._client import Client
from ._internal import Claims
from ._member import Handler, Member
from ._message import name_of
from ._units import Seconds, seconds
from .errors import Busy, Conflict, HalfmsgError, TransportError, UsageError

F = TypeVar("F", bound=Callable[..., object])
MAX_CONCURRENCY: Final = 1_000
MIN_LEASE_S, MAX_LEASE_S = 0.05, 3_600.0
"""As the coordinator takes them (coordinator/wire.py): a subscribe frame past them would close the stream of all that share the Client."""
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
log = logging.getLogger("halfmsg.txclient")


class Consumer:
    """Runs handlers for a group's deliveries: one after another within a key, in order; keys side by side, `concurrency` at once.

    With an inbox the handler gets `(delivery, connection)` inside a transaction that also holds the inbox's row, so its effect happens once.
    """

    def __init__(
        self, client: Client, group: str, *, inbox: object | None = None, concurrency: int = 16, lease: Seconds = 30.0,
        start: Literal["earliest", "latest"] | datetime = "earliest",
    ) -> None:  # fmt: skip
        """`start` is where a group that does not stand yet begins; `lease` is 0.05 s to an hour.

        Raises UsageError: bad_name, naive_datetime, bad_request.
        """
        self._client = client
        self._group = name_of(group, "group")
        self._inbox = cast("Claims | None", inbox)
        self._concurrency = concurrency
        self._lease_s = seconds(lease)
        if not isinstance(concurrency, int) or not 1 <= concurrency <= MAX_CONCURRENCY:
            raise UsageError("bad_request", f"concurrency={concurrency!r}; it is a whole number from 1 to {MAX_CONCURRENCY}")
        if not MIN_LEASE_S <= self._lease_s <= MAX_LEASE_S:
            text = "a handler may run longer, since what runs is extended"
            raise UsageError("bad_request", f"lease={lease!r}; it is {MIN_LEASE_S} s to {MAX_LEASE_S:.0f} s, and {text}")
        self._start = _start(start)
        self._handlers: dict[str, Handler] = {}
        self._tags: dict[str, str | None] = {}
        self._counts: Mapping[str, int] = {}
        self._stopped = False
        self._stopping: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def on(self, topic: str, *, tag: str | None = None) -> Callable[[F], F]:
        """The handler of a topic, `def` (in a thread) or `async def`; one a topic. Raises UsageError: wrong_colour, combination_refused."""
        name_of(topic, "topic")
        if tag is not None:
            name_of(tag, "tag")
        if topic in self._handlers:
            raise UsageError("combination_refused", f"topic {topic} has a handler already; a group has one filter a topic, so branch inside it")

        def register(handler: F) -> F:
            self._check(handler)
            self._handlers[topic], self._tags[topic] = handler, tag
            return handler

        return register

    @property
    def counts(self) -> Mapping[str, int]:
        """acked, retried, rejected since serving began."""
        return self._counts

    async def serve(self) -> None:
        """Until stop() or cancelled; finishes what is in flight. At start it waits for the coordinator, and makes the group if need be.

        Raises at start: UsageError(group_differs), ApiError (forbidden and the like). Afterwards nothing: it reconnects.
        """
        if not self._handlers:
            raise UsageError("bad_request", f"consumer {self._group} has no handler; write @consumer.on(TOPIC) above one")
        stopping = asyncio.Event()
        self._stopping = (asyncio.get_running_loop(), stopping)
        if self._stopped:
            stopping.set()
        try:
            await self._until(stopping, self._join())
            if not stopping.is_set():
                await self._serve(stopping)
        finally:
            self._stopping, self._stopped = None, False
            if self._inbox is not None:
                await self._inbox.aclose()

    def run(self) -> None:
        """The same for a script: asyncio.run, and SIGINT or SIGTERM stops it in good order.

        A second one ends the process at once, with 128 + its number, whatever handlers and other threads do: what was in flight is
        delivered again when its lease has run out.
        """
        try:
            asyncio.run(self._run())
        except (KeyboardInterrupt, asyncio.CancelledError):
            log.warning("consumer %s was interrupted; what was in flight is delivered again", self._group)

    def stop(self) -> None:
        """From any thread, also before serve began."""
        self._stopped = True
        if self._stopping is not None:
            loop, event = self._stopping
            loop.call_soon_threadsafe(event.set)

    async def _run(self) -> None:
        with _signals(self.stop):
            try:
                await self.serve()
            finally:
                await self._client._close_here()

    async def _serve(self, stopping: asyncio.Event) -> None:
        identity = await self._inbox.identity() if self._inbox is not None else None
        member = Member(
            self._client, self._group, self._handlers,
            inbox=self._inbox, identity=identity, places=self._concurrency, lease_s=self._lease_s,
        )  # fmt: skip
        self._counts = member.counts
        await member.run(stopping)

    async def _join(self) -> None:
        """Make the group, or see that it stands with these topics. An absent coordinator is waited for, and so is a topic that the
        producer's first message makes (`serve --dev`): services may start in any order, and the log says what is missing.
        """
        topics = [{"topic": topic} | ({} if tag is None else {"tag": tag}) for topic, tag in self._tags.items()]

        async def put() -> None:
            await self._client.put_group(self._group, topics=topics, start=self._start)

        told: tuple[str, str] | None = None

        def again(error: HalfmsgError) -> bool:
            nonlocal told
            if not isinstance(error, (TransportError, Busy)) and error.code != "topic_not_found":
                return False
            said = error.code, str(getattr(error, "detail", error.text))  # without the name of the request, which is another each time
            if said != told:
                told = said
                log.warning("group %s cannot join yet, and tries again: %s", self._group, error)
            return True

        try:
            await _retry.reconnect(put, again)
        except Conflict as error:
            text = f"{error.detail}; handlers here are for {', '.join(sorted(self._tags))}: `halfmsg group show {self._group}`, or another group name"
            raise UsageError("group_differs", text) from error

    async def _until(self, stopping: asyncio.Event, work: Any) -> None:
        """Do the work, or give it up when stop() comes first."""
        loop = asyncio.get_running_loop()
        task, stop = loop.create_task(work), loop.create_task(stopping.wait())
        try:
            await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        finally:
            task.cancel()
            stop.cancel()
            await asyncio.gather(task, stop, return_exceptions=True)

    def _check(self, handler: Callable[..., object]) -> None:
        _handlers.check(handler)
        given = 1 if self._inbox is None else 2
        try:
            inspect.signature(handler).bind(*range(given))
        except TypeError as error:
            takes = "(delivery)" if given == 1 else "(delivery, connection)"
            raise UsageError("bad_request", f"handler {getattr(handler, '__name__', handler)!r} must take {takes}: {error}") from error
        if self._inbox is not None:
            self._inbox.check(handler)


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """The first signal stops, the second one ends the process. Not the loop's signal handlers: a blocked loop would not see them."""
    signalled = False

    def interrupt(number: int, frame: object) -> None:
        nonlocal signalled
        if signalled:
            _end_process(number)
        signalled = True
        stop()

    before = []
    try:
        for each in STOP_SIGNALS:
            try:
                before.append((each, signal.signal(each, interrupt)))
            except ValueError:  # not the main thread: who has that stops us
                log.debug("no handler for signal %s here", each)
        yield
    finally:
        for each, handler in before:
            signal.signal(each, handler if handler is not None else signal.SIG_DFL)


def _end_process(number: int) -> None:
    """Not by an exception: the interpreter would wait for the threads of blocking handlers before it ends."""
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_DFL)  # should a flush hang, a third one needs nothing of ours
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(128 + number)


def _start(start: str | datetime) -> str:
    if isinstance(start, datetime):
        if start.utcoffset() is None:
            raise UsageError("naive_datetime", f"start={start.isoformat()} has no time zone; use datetime(..., tzinfo=UTC)")
        return start.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if start not in ("earliest", "latest"):
        raise UsageError("bad_request", f"start={start!r} is neither earliest, latest nor a datetime")
    return start
