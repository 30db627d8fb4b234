"""The route on which a producer answers check-backs: `read` and `reply` without I/O, and one method a framework.

read: headers, body -> questions, or a refusal        reply: questions, answers -> what to send back
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from . import clock, deciding, frames, mounts, signing
from .answers import Answers, DecideFunction, Decides, Holders, HoldersFunction, Questions, Reply


class Responder:
    """One route. What fails or is late is left out of the answer, never "unknown" (R15, R28); a bad signature is 401.

    `decide` is an object with `.decide`, or the function itself, sync or async. `secret` is the producer's check secret
    (`whsec_…`; two while rotating). It is what is handed in and nothing else: without one, anybody who reaches the route may ask,
    and the answers are not signed. An asker learns states, and can have a fence laid for an id that is not committed yet, which
    makes that local transaction roll back. So without a secret keep the route on loopback.

    Errors: ValueError for a malformed secret, TypeError for a `decide` that cannot be called.
    """

    def __init__(
        self,
        decide: Decides | DecideFunction,
        *,
        secret: str | tuple[str, ...] | list[str] | None = None,
        now: Callable[[], float] = clock.unix_s,
        monotonic: Callable[[], float] = clock.monotonic_s,
    ) -> None:
        self._secrets = signing.check_secrets(secret)
        self._now, self._monotonic = now, monotonic
        self._owner = decide
        found = getattr(decide, "decide", None) or decide
        if not callable(found):
            raise TypeError("decide must be a function of the questions, or an object with such a method named decide")
        self._decide: DecideFunction = found

    # without I/O

    def read(self, headers: Mapping[str, str], body: bytes) -> frames.Asked | Reply:
        """The questions of a request; a `Reply` means: send this, ask nobody.

        Another database's questions get an empty answer that names ours: here a fence laid for them would be a lie (R7).
        """
        if len(body) > frames.BODY_BYTES_MAX:
            return frames.refusal(413, "too_large")
        if self._secrets and not signing.verify(self._secrets, headers, body, self._now()):
            return frames.refusal(401, "bad_signature")
        try:
            asked = frames.read_body(body, signing.header(headers, signing.ID))
        except frames.Malformed as error:
            return frames.refusal(400, "malformed", str(error))
        source_id = self._source_id()
        if source_id is not None and asked.source not in (None, source_id):
            return self.reply(asked, {})
        return asked

    def reply(self, questions: Questions, answers: Answers, *, holders: Holders | None = None) -> Reply:
        """The answer to send, signed where a secret is known, under the id of the question that `read` gave."""
        body = msgspec.json.encode(frames.write_verdicts(questions, answers, self._source_id(), holders))
        message_id = getattr(questions, "message_id", "")
        headers = {"content-type": "application/json"} | signing.sign(self._secrets, message_id, self._now(), body)
        return Reply(200, headers, body)

    def _source_id(self) -> str | None:
        """The database that answers, read anew each time: an outbox knows it only once it has opened its database."""
        source_id = getattr(self._owner, "source_id", None)
        return source_id if isinstance(source_id, str) else None

    def _holders(self) -> HoldersFunction | None:
        holders = getattr(self._owner, "holders", None)
        return holders if callable(holders) else None

    # with the user's decide

    async def answer(self, headers: Mapping[str, str], body: bytes) -> Reply:
        """From request to reply, on a running loop."""
        asked = self.read(headers, body)
        if isinstance(asked, Reply):
            return asked
        until_s = self._monotonic() + deciding.BUDGET_S
        answers = await deciding.call(self._decide, asked) if asked else {}
        find = self._holders() if asked.missing else None
        holders = await deciding.call(find, asked.missing, until_s - self._monotonic()) if find else None
        return self.reply(asked, answers, holders=holders)

    def answer_sync(self, headers: Mapping[str, str], body: bytes) -> Reply:
        """The same for a thread without a loop."""
        asked = self.read(headers, body)
        if isinstance(asked, Reply):
            return asked
        until_s = self._monotonic() + deciding.BUDGET_S
        answers = deciding.call_sync(self._decide, asked, monotonic=self._monotonic) if asked else {}
        find = self._holders() if asked.missing else None
        holders = deciding.call_sync(find, asked.missing, until_s - self._monotonic(), self._monotonic) if find else None
        return self.reply(asked, answers, holders=holders)

    # the mounts

    async def aiohttp(self, request: Any) -> Any:
        """`app.router.add_post("/halfmsg/check", Responder(outbox).aiohttp)`"""
        return await mounts.on_aiohttp(self, request)

    async def asgi(self, scope: Any, receive: Any, send: Any) -> None:
        """`app.mount("/halfmsg", Responder(outbox).asgi)` for FastAPI and Starlette; any path below answers."""
        await mounts.on_asgi(self, scope, receive, send)

    def wsgi(self, environ: Any, start_response: Any) -> Any:
        """A WSGI application."""
        return mounts.on_wsgi(self, environ, start_response)

    def flask(self) -> Any:
        """`app.add_url_rule("/halfmsg/check", view_func=Responder(outbox).flask, methods=["POST"])`"""
        return mounts.on_flask(self)

    def django(self, request: Any) -> Any:
        """`path("halfmsg/check", Responder(outbox).django)`; exempt from CSRF already."""
        return mounts.on_django(self, request)

    django.csrf_exempt = True  # type: ignore[attr-defined]  # Django looks for it on the view; a bound method shows its function's
