"""Answers of a producer that decide nothing."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from halfmsg.checkback import signing
from halfmsg.checkback.schedule import OPEN_MAX_MS
from tests.support import serving
from tests.support.clock import ManualClock
from tests.support.serving import Served, eventually, heard, say

from .standing import DECIDED, OPEN, M


class Responder:
    """A producer's check URL whose answer a test chooses."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.answer: Any = None
        self.secret = ""
        self.gate = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        question = await request.json()
        self.asked.append(question)
        found = self.answer(question, request)
        return await found if asyncio.iscoroutine(found) else found

    def signed(self, request: web.Request, body: Any, *, secret: str | None = None, status: int = 200, id: str | None = None) -> web.Response:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        now_s = int(request.headers[signing.TIMESTAMP])
        headers = signing.sign((secret or self.secret,), id or request.headers[signing.ID], now_s, raw)
        return web.Response(body=raw, status=status, headers=headers | {"Content-Type": "application/json"})


@pytest_asyncio.fixture
async def asked(tmp_path: Any, clock: ManualClock) -> AsyncIterator[tuple[Served, Responder]]:
    responder = Responder()
    app = web.Application()
    app.router.add_post("/check", responder.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    from halfmsg.coordinator.settings import Check

    one = await serving.started(serving.settings(tmp_path, check=Check(first_delay_s=5, question_timeout_s=0.3)), clock)
    async with aiohttp.ClientSession() as session:
        served = Served(one, session)
        await served.call("PUT", "/v1/topics/plain", {"kind": "unordered", "allow_no_group": True})
        _, made = await served.call("PUT", "/v1/producers/orders", {"check_url": f"http://127.0.0.1:{port}/check"})
        responder.secret = made["secret"]
        await served.call("POST", "/v1/transactions", {"id": OPEN, "producer": "orders", "messages": [M]})
        yield served, responder
    responder.gate.set()
    await one.stop()
    await runner.cleanup()


def _verdict(question: Any, word: str = "committed", **more: Any) -> dict[str, Any]:
    return {"verdicts": [{"id": each["id"], "verdict": word} | more for each in question["transactions"]]}


async def _late(responder: Responder, question: Any, request: web.Request) -> web.StreamResponse:
    await responder.gate.wait()
    return responder.signed(request, _verdict(question, "rolled_back"))


NO_ANSWERS: dict[str, Any] = {
    "html": lambda r, q, req: web.Response(text="<html>login</html>", content_type="text/html"),
    "signed_html": lambda r, q, req: r.signed(req, b"<html>"),
    "404": lambda r, q, req: web.Response(status=404),
    "500": lambda r, q, req: r.signed(req, _verdict(q, "rolled_back"), status=500),
    "503_problem": lambda r, q, req: web.Response(status=503, text="{}", content_type="application/problem+json"),
    "redirect": lambda r, q, req: web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}),
    "bare_200": lambda r, q, req: web.Response(),
    "signed_bare_200": lambda r, q, req: r.signed(req, b""),
    "dtm_409": lambda r, q, req: web.Response(status=409),
    "late": _late,
    "unsigned": lambda r, q, req: web.json_response(_verdict(q, "rolled_back")),
    "bad_signature": lambda r, q, req: r.signed(req, _verdict(q, "rolled_back"), secret="whsec_" + base64.b64encode(b"x" * 32).decode()),
    "answer_to_another_question": lambda r, q, req: r.signed(req, _verdict(q, "rolled_back"), id="another"),
    "not_a_verdict": lambda r, q, req: r.signed(req, _verdict(q, "perhaps")),
    "upper_case": lambda r, q, req: r.signed(req, _verdict(q, "ROLLED_BACK")),
    "list": lambda r, q, req: r.signed(req, [_verdict(q, "rolled_back")]),
    "other_id": lambda r, q, req: r.signed(req, {"verdicts": [{"id": DECIDED, "verdict": "rolled_back"}]}),
    "two_words": lambda r, q, req: r.signed(req, {"verdicts": _verdict(q)["verdicts"] + _verdict(q, "rolled_back")["verdicts"]}),
    "deep": lambda r, q, req: r.signed(req, b"[" * 100_000),
    "big": lambda r, q, req: r.signed(req, b" " * 1_100_000),
}


async def _state(served: Served) -> Any:
    return (await served.call("GET", f"/v1/transactions/{OPEN}"))[1]


async def _asked_once(served: Served, responder: Responder, clock: ManualClock) -> Any:
    clock.advance(6)

    async def noted() -> Any:
        found = await _state(served)
        return found if any(each["what"].startswith("check ") for each in found["history"]) else None

    return await eventually(noted, "a check in the history")


@pytest.mark.parametrize("name", NO_ANSWERS)
async def test_p5_what_is_no_verdict_decides_nothing(asked: tuple[Served, Responder], clock: ManualClock, name: str) -> None:
    """HTML, errors, silence, strangers: no_answer in the history, no attempt used, and the transaction stays prepared (R15)."""
    served, responder = asked
    responder.answer = lambda question, request: NO_ANSWERS[name](responder, question, request)
    found = await _asked_once(served, responder, clock)
    assert (found["state"], found["attempts"]) == ("prepared", 0)
    assert [each["what"] for each in found["history"] if each["what"].startswith("check")] == ["check no_answer"]
    assert [each["id"] for each in responder.asked[0]["transactions"]] == [OPEN]


async def test_p5_answer_of_another_source_decides_nothing(asked: tuple[Served, Responder], clock: ManualClock) -> None:
    """A bound producer's answer names its database, or it is wrong_source (R7)."""
    served, responder = asked
    ws = await served.stream(hello=False)
    await say(ws, {"type": "hello", "client": "x", "producers": [{"name": "orders", "source": "a" * 32}]})
    await heard(ws)
    await ws.close()
    await eventually(lambda: not served.coordinator.streams.connections, "the stream to be gone")
    responder.answer = lambda question, request: responder.signed(request, _verdict(question, "rolled_back") | {"source": "b" * 32})
    found = await _asked_once(served, responder, clock)
    assert (found["state"], found["attempts"]) == ("prepared", 0)
    assert [each["what"] for each in found["history"] if each["what"].startswith("check")] == ["check no_answer"]


async def test_p5_committed_without_the_digest_decides_nothing_and_the_whole_word_does(asked: tuple[Served, Responder], clock: ManualClock) -> None:
    """A bare `committed` is listed as incomplete; with the digest it decides (R5)."""
    served, responder = asked
    digest = (await _state(served))["digest"]
    responder.answer = lambda question, request: responder.signed(request, _verdict(question))
    assert (await _asked_once(served, responder, clock))["state"] == "prepared"
    assert [each["said"] for each in (await served.call("GET", "/v1/conflicts"))[1]["items"]] == ["committed, incomplete or other content"]
    responder.answer = lambda question, request: responder.signed(request, _verdict(question, digest=digest))
    clock.advance(OPEN_MAX_MS / 1000)

    async def decided() -> bool:
        return bool((await _state(served))["state"] == "committed")

    await eventually(decided, "the verdict")
    assert (await _state(served))["decided_by"] == "check_back"
