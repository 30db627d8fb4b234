"""Which hosts may be called: the operator's list, judged on the address that is really connected to.

A check URL comes from a producer's registration, so without this list anyone who may register could make the coordinator call its
neighbours. A name is judged by what it resolves to at connect, as its DNS may say something else by then (DESIGN §11).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

LOOPBACK = ("127.0.0.0/8", "::1/128")
NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class NotAllowed(OSError):
    """The host is not on the operator's list (`callback.allow`)."""


class AllowList:
    """Host names, addresses and CIDRs; the word `loopback` stands for this machine. An allowed name may be at any address."""

    def __init__(self, entries: Sequence[str] = LOOPBACK) -> None:
        """Errors: ValueError for an entry that is none of these."""
        self._networks: list[Network] = []
        self._names: set[str] = set()
        for entry in entries:
            self._add(entry.strip().lower().rstrip("."))

    def _add(self, entry: str) -> None:
        if entry == "loopback":
            self._networks += map(ipaddress.ip_network, LOOPBACK)
        elif "/" in entry or is_literal(entry):
            self._networks.append(ipaddress.ip_network(entry))
        elif NAME.fullmatch(entry):
            self._names.add(entry)
        else:
            raise ValueError(f"callback.allow: {entry!r} is not a host name, an address or a CIDR")

    def permits_name(self, host: str) -> bool:
        """Whether the name itself is listed."""
        return host.lower().rstrip(".") in self._names

    def permits_address(self, address: str) -> bool:
        """Whether the address is in a listed network; what is not an address in its full form is not."""
        try:
            given = ipaddress.ip_address(address.strip("[]"))
        except ValueError:
            return False
        mapped = given.ipv4_mapped if isinstance(given, ipaddress.IPv6Address) else None
        return any((mapped or given) in network for network in self._networks)


def is_literal(host: str) -> bool:
    """Whether aiohttp connects to this host without resolving it. It takes every all-digit host so, even `2130706433`, which
    the system then reads as 127.0.0.1: such a host must be judged here, and is refused unless written in full."""
    return ":" in host or host.replace(".", "").isdigit()


class GuardedResolver(AbstractResolver):
    """Resolves as usual and gives back only addresses that may be called."""

    def __init__(self, allow: AllowList, inner: AbstractResolver) -> None:
        self._allow, self._inner = allow, inner

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        if self._allow.permits_name(host):
            return found
        permitted = [one for one in found if self._allow.permits_address(one["host"])]
        if not permitted:
            raise NotAllowed(f"{host} is not in callback.allow")
        return permitted

    async def close(self) -> None:
        await self._inner.close()


@dataclass(frozen=True, slots=True)
class GuardedSession:
    """An HTTP session that connects only where the list permits; made by `open_session`, so that none goes without."""

    http: aiohttp.ClientSession
    allow: AllowList

    def check_url(self, url: str) -> None:
        """Judge a host that will not be resolved. Errors: NotAllowed; ValueError for what is no URL."""
        given = URL(url)
        if given.scheme not in ("http", "https"):
            raise ValueError(f"{url[:80]!r} is no http or https URL")
        host = given.host or ""
        if not host or (is_literal(host) and not self.allow.permits_address(host)):
            raise NotAllowed(f"{host} is not in callback.allow")

    async def aclose(self) -> None:
        await self.http.close()


async def open_session(allow: Sequence[str] = LOOPBACK, resolver: AbstractResolver | None = None) -> GuardedSession:
    """A session for calling producers and push groups: no proxy, no cookies, no decompression, redirects are the caller's to refuse.

    Connections are not limited here: a shared limit would let a sick producer's hanging questions keep the others waiting. The
    poller bounds them by producer.
    """
    judged = AllowList(allow)
    guarded = GuardedResolver(judged, resolver or aiohttp.ThreadedResolver())
    connector = aiohttp.TCPConnector(resolver=guarded, limit=0)
    http = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, trust_env=False)
    return GuardedSession(http, judged)
