"""What can go wrong between a service and the coordinator, by what the caller must do about it (API §2).

    HalfmsgError              code, doc_url
    ├── UsageError            your code is wrong; nothing was sent or written; never retry
    ├── TransportError        no answer; the outcome is unknown; repeating is safe
    └── ApiError              the coordinator said no: status, detail, request_id
        ├── Conflict          every 409: the other decision stands, or the id has other content
        └── Busy              every 429, 503, 507: wait, then repeat

A code is the same word on the wire, in the log and as a metric label. What concerns a local database (NotInTransaction, Fenced,
AlreadyCommitted) belongs to halfmsg.outbox.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ._transaction import Transaction, transaction_of

DOC_URL: Final = "https://halfmsg.dev/errors/"
BUSY: Final = frozenset({429, 503, 507})
DEFAULT_RETRY_AFTER_S: Final = 1.0


class HalfmsgError(Exception):
    """Something about halfmsg failed: `code` is stable and for programs; the text has cause, evidence and next step, for people."""

    def __init__(self, code: str, text: str = "") -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text

    @property
    def doc_url(self) -> str:
        return DOC_URL + self.code

    def __str__(self) -> str:
        return f"{self.code}: {self.text}" if self.text else self.code


class UsageError(HalfmsgError):
    """Your code is wrong; nothing was sent or written; the same call will fail again."""


class TransportError(HalfmsgError):
    """No answer came (unreachable, timeout, tls_failed, protocol): the outcome is unknown, and repeating the same call is safe."""


class ApiError(HalfmsgError):
    """The coordinator said no, and why."""

    def __init__(self, code: str, detail: str = "", *, status: int = 0, request_id: str = "", members: Mapping[str, Any] | None = None) -> None:
        super().__init__(code, detail)
        self.status = status
        self.detail = detail
        self.request_id = request_id
        self.members: Mapping[str, Any] = members or {}

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text} (request {self.request_id})" if self.request_id else text


class Conflict(ApiError):
    """The other decision stands, the id has other content, or a lease is no longer yours; `transaction` where there is one."""

    @property
    def transaction(self) -> Transaction | None:
        stored = self.members.get("transaction")
        return transaction_of(stored) if isinstance(stored, Mapping) else None


class Busy(ApiError):
    """Not now: wait `retry_after` seconds and repeat. Nothing was stored, but with code `outcome_unknown`."""

    @property
    def retry_after(self) -> float:
        told = self.members.get("retry_after_s")
        return float(told) if isinstance(told, (int, float)) else DEFAULT_RETRY_AFTER_S


def api_error(problem: Mapping[str, Any], *, status: int = 500, request_id: str = "", retry_after: str | None = None) -> ApiError:
    """The exception that stands for a problem document, from a stream's result or an HTTP answer; what is missing is filled in."""
    members = dict(problem)
    status = _whole(members.get("status"), status)
    if retry_after is not None and "retry_after_s" not in members:
        members["retry_after_s"] = _whole(retry_after, 1)
    kind: type[ApiError] = Conflict if status == 409 else Busy if status in BUSY else ApiError
    return kind(
        str(members.get("code", "internal")),
        str(members.get("detail") or members.get("title") or f"HTTP {status}"),
        status=status,
        request_id=str(members.get("request_id", request_id)),
        members=members,
    )


def _whole(value: object, default: int) -> int:
    try:
        return int(value)  # type: ignore[call-overload, no-any-return]
    except (TypeError, ValueError):
        return default
