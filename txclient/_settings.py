"""Where a client finds its coordinator. The only place of this package that reads the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ._units import Seconds, seconds
from .errors import UsageError

DEFAULT_URL = "http://127.0.0.1:7610"


@dataclass(frozen=True, slots=True)
class Settings:
    """A coordinator's address and the right to use it; the token is not shown."""

    url: str
    token: str | None = field(repr=False)
    namespace: str | None
    timeout_s: float


def settings(url: str | None, token: str | None, namespace: str | None, timeout: Seconds) -> Settings:
    """What was given, else HALFMSG_URL, HALFMSG_TOKEN (or HALFMSG_TOKEN_FILE), HALFMSG_NAMESPACE. Raises UsageError: bad_url, bad_request."""
    timeout_s = seconds(timeout)
    if timeout_s == 0:
        raise UsageError("bad_request", "timeout must be longer than 0")
    url = _url(url or os.environ.get("HALFMSG_URL") or DEFAULT_URL)
    return Settings(url, token or _token(), namespace or os.environ.get("HALFMSG_NAMESPACE") or None, timeout_s)


def _url(url: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment:
        raise UsageError("bad_url", f"{url!r} is no coordinator's address; it looks like {DEFAULT_URL}")
    return url.rstrip("/")


def _token() -> str | None:
    path = os.environ.get("HALFMSG_TOKEN_FILE")
    return os.environ.get("HALFMSG_TOKEN") or (Path(path).read_text().strip() if path else None)
