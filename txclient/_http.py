"""Calls that are not hot: fetch, GET, PUT, over one aiohttp session; and what an answer or a failure of HTTP means."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from ._settings import Settings
from .errors import HalfmsgError, TransportError, api_error

CONNECT_TIMEOUT_S = 3.0
_REFUSED = {401: "unauthenticated", 403: "forbidden", 404: "not_found"}


class Http:
    """One session, made at its first use inside the loop that uses it."""

    def __init__(self, settings: Settings, told_time: Callable[[int | None], None]) -> None:
        self._settings = settings
        self._told_time = told_time
        self._session: aiohttp.ClientSession | None = None

    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            token = self._settings.token
            self._session = aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"} if token else None)
        return self._session

    def address(self, path: str) -> str:
        namespace = self._settings.namespace
        joint = "&" if "?" in path else "?"
        return self._settings.url + path + (f"{joint}namespace={namespace}" if namespace else "")

    async def call(self, method: str, path: str, body: object = None, *, params: Mapping[str, str] | None = None, timeout_s: float) -> Any:
        """The decoded JSON of a 2xx. Raises the ApiError tree, or TransportError: unreachable, timeout, tls_failed, protocol."""
        return msgspec.json.decode(await self.raw(method, path, body, params=params, timeout_s=timeout_s) or b"null")

    async def raw(self, method: str, path: str, body: object = None, *, params: Mapping[str, str] | None = None, timeout_s: float) -> bytes:
        data = None if body is None else msgspec.json.encode(body)
        headers = {"Content-Type": "application/json"} if data is not None else None
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        url = self.address(path)
        try:
            async with self.session().request(
                method, url, data=data, headers=headers, params=params, timeout=timeout, allow_redirects=False
            ) as answer:
                content = await answer.read()
        except Exception as error:  # aiohttp asserts, too, where a connection breaks at the wrong moment
            raise failure(error, self._settings.url) from error
        self._told_time(_whole(answer.headers.get("Halfmsg-Time")))
        if 200 <= answer.status < 300:
            return content
        raise _refusal(answer, content, self._settings.url)

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def failure(error: BaseException, url: str) -> HalfmsgError:
    """What a broken or refused connection is called here."""
    if isinstance(error, aiohttp.WSServerHandshakeError):
        return _handshake(error, url)
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)):
        return TransportError("tls_failed", f"no trusted TLS connection to {url}: {error}; is the address https, and its certificate known here?")
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = "refused" if isinstance(error.os_error, ConnectionRefusedError) else str(error.os_error) or "no connection"
        return TransportError("unreachable", f"cannot connect to {url} ({cause}); is `halfmsg serve` running{_there(url)}?")
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return TransportError("unreachable", f"cannot connect to {url} (no answer in {CONNECT_TIMEOUT_S:g} s); is the address right?")
    if isinstance(error, asyncio.TimeoutError):
        return TransportError("timeout", f"{url} did not answer in time; the outcome is unknown, repeating the same call is safe")
    if isinstance(error, (aiohttp.InvalidURL, aiohttp.ClientPayloadError, aiohttp.ClientResponseError)):
        return TransportError("protocol", f"{url} does not speak as a coordinator does: {error}")
    return TransportError("unreachable", f"the connection to {url} broke ({error or type(error).__name__}); the outcome is unknown")


def _handshake(error: aiohttp.WSServerHandshakeError, url: str) -> HalfmsgError:
    if error.status in _REFUSED and error.status != 404:
        text = f"{url} refused the stream with {error.status}; is HALFMSG_TOKEN set, and may it do this?"
        return api_error({"code": _REFUSED[error.status], "detail": text}, status=error.status)
    if error.status >= 429:
        return TransportError("unreachable", f"{url} answered {error.status} to the stream: not now")
    return TransportError("protocol", f"{url}/v1/stream answered {error.status}; is a halfmsg coordinator at this address?")


def _refusal(answer: aiohttp.ClientResponse, content: bytes, url: str) -> HalfmsgError:
    request_id = answer.headers.get("Halfmsg-Request-Id", "")
    try:
        problem = msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError):
        problem = {}
    if "code" not in problem:  # a proxy, or something that is no coordinator
        problem = {"code": _REFUSED.get(answer.status, "internal"), "detail": f"{answer.method} {answer.url.path} at {url}: HTTP {answer.status}"}
    return api_error(problem, status=answer.status, request_id=request_id, retry_after=answer.headers.get("Retry-After"))


def _there(url: str) -> str:
    host = urlsplit(url).hostname
    return "" if host in ("127.0.0.1", "localhost", "::1") else f" on {host}"


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None
