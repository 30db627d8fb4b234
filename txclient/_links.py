"""What a client holds for each event loop of this process: one HTTP session and one stream. Nothing is shared across loops or forks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from threading import Lock
from typing import Final

from . import _clock, _wire
from ._http import Http
from ._ids import Ids
from ._internal import Attached
from ._settings import Settings
from ._stream import Stream

FRESH_S: Final = 1_800.0
"""Half of what `halfmsg outbox resend` allows a mark to be older than its transaction."""


class Link:
    """The connections of one loop."""

    def __init__(self, settings: Settings, seen: Seen, codec: _wire.Codec) -> None:
        self.loop = asyncio.get_running_loop()
        self.http = Http(settings, seen.told_time)
        self.stream = Stream(self.http, settings.url, codec, seen.told_time, seen.told_settled)

    async def close(self) -> None:
        try:
            await self.stream.close()
        finally:  # also where this is cancelled meanwhile
            await self.http.close()


class Seen:
    """What the coordinator told this process: its newest time, and how far each producer's past is settled (R3). Only grows."""

    def __init__(self) -> None:
        self._time_ms: int | None = None
        self._told_at = 0.0
        self.settled_before: Mapping[str, int] = {}

    @property
    def time_ms(self) -> int | None:
        """None: nothing was told, or not for so long that it tells nothing. A mark of days ago would hide a row of today from `outbox resend`."""
        return self._time_ms if _clock.monotonic() - self._told_at < FRESH_S else None

    def told_time(self, ms: int | None) -> None:
        if ms is not None:
            self._time_ms = ms if self._time_ms is None else max(ms, self._time_ms)
            self._told_at = _clock.monotonic()

    def told_settled(self, before: Mapping[str, int]) -> None:
        self.settled_before = {**self.settled_before, **before}


class Links:
    """Links by loop; made at first use. After a fork the child begins anew."""

    def __init__(self, settings: Settings, codec: _wire.Codec) -> None:
        self._settings = settings
        self._codec = codec
        self._links: dict[asyncio.AbstractEventLoop, Link] = {}
        self._pid = os.getpid()
        self._lock = Lock()
        self._parents: list[object] = []
        self._answering: dict[asyncio.AbstractEventLoop, list[Attached]] = {}
        """Producers of links that were closed under them: a new link of their loop names them again, else nobody could ask them."""
        self.seen = Seen()
        self.member = Ids().member()
        """The name under which this process fetches. Two of one name are one hand to the coordinator (R13)."""

    def here(self) -> Link:
        """The running loop's link. Must be called inside a loop."""
        loop = asyncio.get_running_loop()
        link = self._links.get(loop) if self._pid == os.getpid() else None
        return link if link is not None else self._new(loop)

    @property
    def connected(self) -> bool:
        return self._pid == os.getpid() and any(link.stream.connected for link in list(self._links.values()))

    async def close(self) -> None:
        """Close this process's links, each in its own loop; a later use makes new ones."""
        if self._pid != os.getpid():
            return
        with self._lock:
            links, self._links = list(self._links.values()), {}
            self._answering |= {link.loop: link.stream.producers.attached for link in links if len(link.stream.producers)}
        here = asyncio.get_running_loop()
        for link in links:
            if link.loop is here:
                await link.close()
            elif link.loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(link.close(), link.loop))

    async def close_here(self) -> None:
        link = self._links.pop(asyncio.get_running_loop(), None)
        if link is not None:
            await link.close()

    def _new(self, loop: asyncio.AbstractEventLoop) -> Link:
        if self._pid != os.getpid():
            # The parent's sockets and poll object are shared with us: closing them here, even in a destructor, would cut the parent's
            # connection. So they are kept, never used, until this process ends. The lock may have been held at the fork.
            self._parents.append(self._links)
            self._links, self._lock, self.seen, self.member = {}, Lock(), Seen(), Ids().member()
            self._pid = os.getpid()
            self._answering = {}
        link = Link(self._settings, self.seen, self._codec)
        for producer in self._answering.pop(loop, ()):
            link.stream.producers.attach(producer)
        with self._lock:
            self._links = {one: kept for one, kept in self._links.items() if not one.is_closed()} | {loop: link}
        return link
