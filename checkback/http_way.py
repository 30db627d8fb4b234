"""Asking a producer at its check URL: one signed POST, one answer read with limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp
import msgspec

from . import clock, signing, verdict
from .allowlist import GuardedSession, NotAllowed
from .verdict import Ruling

CONNECT_TIMEOUT_S = 3.0
TOTAL_TIMEOUT_S = 10.0
ANSWER_BYTES_MAX = 1024 * 1024
DTM_AT_ONCE = 8


class HttpWay:
    """One producer's URL. `ask` never raises: whatever goes wrong is `no_answer`, with the reason in a few words (R15).

    `secrets` sign the question (all of them, while rotating) and must verify the answer; with none neither is signed. The answer
    must also carry the question's `webhook-id`, so that a recorded one cannot be played back. `new_id` gives a fresh id without a
    dot for each question. `dialect="dtm"` asks one id a request and reads nothing but the status, which nobody can sign.

    Errors of the constructor: ValueError for a malformed secret.
    """

    kind = "http"

    def __init__(
        self,
        session: GuardedSession,
        url: str,
        *,
        new_id: Callable[[], str],
        secrets: Sequence[str] = (),
        dialect: Literal["halfmsg", "dtm"] = "halfmsg",
        now: Callable[[], float] = clock.unix_s,
    ) -> None:
        self._session, self._url, self._dialect = session, url, dialect
        self._secrets = signing.check_secrets(secrets)
        self._new_id, self._now = new_id, now

    async def ask(self, question: dict[str, Any], timeout_s: float = TOTAL_TIMEOUT_S) -> Mapping[str, Ruling]:
        """Ask about all transactions of a question, within `timeout_s` and never longer than 10 s."""
        timeout_s = min(timeout_s, TOTAL_TIMEOUT_S)
        if self._dialect == "dtm":
            return await self._ask_dtm(question, timeout_s)
        asked = [transaction["id"] for transaction in question["transactions"]]
        message_id = self._new_id()
        got = await self._post(question, message_id, timeout_s)
        if isinstance(got, str):
            return verdict.no_answers(asked, got)
        # Only what could decide must be signed: a proxy's 503 is better known as that than as a bad signature.
        if got.status == 200 and not self._is_signed(got, message_id):
            return verdict.no_answers(asked, "bad signature")
        content_type = got.headers.get("content-type", "")
        return verdict.read_reply(asked, question.get("source"), got.status, content_type, got.body)

    async def _ask_dtm(self, question: dict[str, Any], timeout_s: float) -> dict[str, Ruling]:
        places = asyncio.Semaphore(DTM_AT_ONCE)
        now_s = asyncio.get_running_loop().time
        until_s = now_s() + timeout_s

        async def ask_one(transaction: dict[str, Any]) -> Ruling:
            async with places:
                if (left_s := until_s - now_s()) <= 0:
                    return verdict.no_answer("timed out")
                got = await self._post(question | {"transactions": [transaction]}, self._new_id(), left_s)
            return verdict.no_answer(got) if isinstance(got, str) else verdict.read_dtm(got.status)

        transactions = question["transactions"]
        rulings = await asyncio.gather(*map(ask_one, transactions))
        return {transaction["id"]: ruling for transaction, ruling in zip(transactions, rulings, strict=True)}

    async def _post(self, question: dict[str, Any], message_id: str, timeout_s: float) -> _Got | str:
        """What came back, or why nothing did."""
        body = msgspec.json.encode(question)
        headers = {"content-type": "application/json", "accept": "application/json", "accept-encoding": "identity"}
        headers |= signing.sign(self._secrets, message_id, self._now(), body)
        timeout = aiohttp.ClientTimeout(total=timeout_s, connect=CONNECT_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
        try:
            self._session.check_url(self._url)
            request = self._session.http.post(self._url, data=body, headers=headers, timeout=timeout, allow_redirects=False)
            async with request as response:
                answer = await _read_limited(response)
                return "answer too large" if answer is None else _Got(response.status, response.headers, answer)
        except Exception as error:  # whatever it is, it is no answer; aiohttp asserts, too
            return _why(error)

    def _is_signed(self, got: _Got, message_id: str) -> bool:
        if not self._secrets:
            return True
        return got.headers.get(signing.ID) == message_id and signing.verify(self._secrets, got.headers, got.body, self._now())


@dataclass(frozen=True, slots=True)
class _Got:
    status: int
    headers: Mapping[str, str]
    body: bytes


async def _read_limited(response: aiohttp.ClientResponse) -> bytes | None:
    body = b""
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > ANSWER_BYTES_MAX:
            return None
    return body


def _why(error: Exception) -> str:
    """The reason in a few words: never the error's own text, which may carry addresses and what a stranger sent."""
    cause = getattr(error, "os_error", error)
    reasons: list[tuple[type[Exception] | tuple[type[Exception], ...], Exception, str]] = [
        (NotAllowed, cause, "host not allowed"),
        (TimeoutError, error, "timed out"),
        ((aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch), error, "TLS failed"),
        (aiohttp.ClientConnectorDNSError, error, "host not found"),
        (aiohttp.ClientConnectorError, error, "cannot connect"),
        (ValueError, error, "not a usable URL"),
    ]
    return next((words for kind, given, words in reasons if isinstance(given, kind)), "connection lost")
