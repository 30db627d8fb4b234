"""Calls to a coordinator, with the standard library alone: one request, one answer, errors as one line and an exit code."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from .lazy import Failure

DEFAULT_URL = "http://127.0.0.1:7610"
ACT_TIMEOUT_S = 35.0
"""Longer than the longest wait that the server offers (30 s), and than asking a producer."""
READ_TIMEOUT_S = 15.0
"""A look can be repeated, so it is given up sooner."""
NOTICE_S = 3.0
"""So long may an answer take before it is said that it is waited for."""

EXIT_BY_STATUS = {400: 2, 401: 4, 403: 4, 404: 1, 405: 2, 409: 5, 413: 2, 415: 2, 422: 2, 429: 75, 501: 2, 503: 75, 504: 3, 507: 75}
NEXT = {
    "transaction_not_found": "List them: halfmsg tx ls",
    "topic_not_found": "List them: halfmsg topic ls",
    "group_not_found": "List them: halfmsg group ls",
    "producer_not_found": "List them: halfmsg producer ls",
    "dead_letter_not_found": "List them: halfmsg dlq ls --group G",
    "no_group": "Make one: halfmsg group create G --topic T",
    "no_way_to_ask": "Give its URL: halfmsg producer set P --check-url URL",
    "too_many_in_doubt": "Ask it now: halfmsg check P",
    "unauthenticated": "Set HALFMSG_TOKEN",
    "storage_full": "Make room on the coordinator's disk, then look: halfmsg doctor",
    "overloaded": "Try again in a moment",
    "draining": "Try again in a moment",
}


class Refused(Failure):
    """The coordinator said no: its code, status and problem body."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        self.status, self.body = status, body
        self.code = str(body.get("code", status))
        super().__init__(_words(status, self.code, body), EXIT_BY_STATUS.get(status, 1))


def _words(status: int, code: str, body: Mapping[str, Any]) -> str:
    decided = body.get("transaction")
    if code == "decided_otherwise" and isinstance(decided, dict) and decided.get("decided_at"):
        at = decided["decided_at"]
        return f"refused: already {decided['state']} by {decided.get('decided_by', '?')} at {at}. See: halfmsg tx show {decided['id']}"
    detail = body.get("detail") or body.get("title") or f"status {status}"
    return f"{detail} ({code}). {NEXT.get(code, '')}".strip()


class Remote:
    """One coordinator. With `verbose` each call is printed to stderr as it could be typed elsewhere."""

    def __init__(self, url: str, token: str | None = None, *, verbose: bool = False) -> None:
        if not url.startswith(("http://", "https://")):
            raise Failure(f"{url!r} is no URL of a coordinator. Example: --url {DEFAULT_URL}", 2)
        self.url = url.rstrip("/")
        self.time_ms: int | None = None
        """The coordinator's clock at its last answer."""
        self._token, self._verbose = token, verbose
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str, **query: object) -> Any:
        return self.call("GET", path, query=query)

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | bytes | None = None,
        *,
        query: Mapping[str, object] | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """The answer's JSON (None for an empty one). Query values that are None are left out. Raises Failure, Refused."""
        timeout_s = timeout_s or (READ_TIMEOUT_S if method == "GET" else ACT_TIMEOUT_S)
        asked = {name: value for name, value in (query or {}).items() if value is not None}
        url = self.url + path + (f"?{urllib.parse.urlencode(asked)}" if asked else "")
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
        if self._verbose:
            click.echo(f"{method} {url}{' ' + data.decode(errors='replace') if data else ''}", err=True)
        request = urllib.request.Request(url, data, self._headers(data is not None), method=method)
        with self._notice(timeout_s):
            return self._send(request, timeout_s)

    @contextmanager
    def _notice(self, timeout_s: float) -> Iterator[None]:
        """A command that says nothing for half a minute is taken for one that hangs."""
        words = f"{self.url} has not answered for {NOTICE_S:g} s; waiting up to {timeout_s:g} s, Ctrl-C ends it"
        timer = threading.Timer(NOTICE_S, click.echo, (words,), {"err": True})
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _headers(self, has_body: bool) -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": "halfmsg-cli"}
        if has_body:
            headers["Content-Type"] = "application/json"
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        return headers

    def _send(self, request: urllib.request.Request, timeout_s: float) -> Any:
        try:
            with self._opener.open(request, timeout=timeout_s) as answer:
                self._note_time(answer.headers)
                text = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                self._note_time(error.headers)
                raise _refusal(error, self.url) from None
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error, request.get_method(), timeout_s) from error
        return _json(text, self.url)

    def _note_time(self, headers: Any) -> None:
        text = headers.get("Halfmsg-Time") or ""
        self.time_ms = int(text) if text.isdigit() else self.time_ms

    def _unreachable(self, error: Exception, method: str, timeout_s: float) -> Failure:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            read = "Is the coordinator stopped, or its disk stuck? Look at its log"
            then = read if method == "GET" else "It may have done the work: look before you repeat"
            return Failure(f"{self.url} did not answer within {timeout_s:g} s. {then}", 3)
        if isinstance(reason, ssl.SSLError):
            return Failure(f"no TLS with {self.url}: {reason}. A coordinator without TLS is http://", 3)
        what = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        where = "Is that where it should be? Another is named with --url or HALFMSG_URL"
        start = "If it belongs here, start it on its store: halfmsg serve --store FILE"
        return Failure(f"no coordinator answers at {self.url} ({what}). {where}. {start}", 3)


def _refusal(error: urllib.error.HTTPError, url: str) -> Failure:
    try:
        found = json.loads(error.read())
    except (ValueError, OSError, http.client.HTTPException):
        found = None
    if isinstance(found, dict) and "code" in found:
        return Refused(error.code, found)
    said = f"{url} answers {error.code} {error.reason}, but not as a coordinator does"
    return Failure(f"{said}. Is another service there, or a proxy? Name the right one: --url or HALFMSG_URL", EXIT_BY_STATUS.get(error.code, 1))


def _json(text: bytes, url: str) -> Any:
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise Failure(f"{url} answers, but not as a coordinator does. Is another service there? Name the right one: --url", 3) from error


def path(*parts: str) -> str:
    """`/v1/a/b`, each part quoted."""
    return "/v1/" + "/".join(urllib.parse.quote(part, safe="") for part in parts)


def check_namespace() -> None:
    """Refuses what would act on another namespace than the one that was meant."""
    named = os.environ.get("HALFMSG_NAMESPACE", "default")
    if named not in ("", "default"):
        raise Failure(f"HALFMSG_NAMESPACE={named}: namespaces are known and not built yet, there is only default. Unset it", 2)


def token() -> str | None:
    """From HALFMSG_TOKEN, or the file that HALFMSG_TOKEN_FILE names; never from argv, which everybody can read."""
    named = os.environ.get("HALFMSG_TOKEN_FILE")
    if named:
        try:
            return Path(named).read_text().strip()
        except OSError as error:
            raise Failure(f"cannot read HALFMSG_TOKEN_FILE {named}: {error.strerror}", 2) from error
    return os.environ.get("HALFMSG_TOKEN")
