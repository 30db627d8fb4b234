"""One route in five frameworks, each asked the way its server would; the aiohttp and WSGI ones over real sockets."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from halfmsg.checkback import Responder, frames, signing
from tests.checkback.fakes import SECRET, Clock
from tests.checkback.test_responder import Database, check, content

CLOCK = Clock()
BODY = check("a")
TOO_LARGE = b" " * (frames.BODY_BYTES_MAX + 1)
COMMITTED = ["committed"]


@pytest.fixture
def signed_responder() -> Responder:
    return Responder(Database(), secret=SECRET, now=CLOCK.unix_s)


def signed(body: bytes = BODY) -> dict[str, str]:
    return signing.sign([SECRET], "msg_1", CLOCK.unix_s(), body)


def verdicts(body: bytes) -> list[str]:
    return [entry["verdict"] for entry in json.loads(body)["verdicts"]]


def assert_signed(headers: Any, body: bytes) -> None:
    assert signing.verify([SECRET], headers, body, CLOCK.unix_s())


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def aiohttp_url(signed_responder: Responder) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/halfmsg/check", signed_responder.aiohttp)
    async with TestServer(app) as server:
        yield str(server.make_url("/halfmsg/check"))


@pytest.fixture
def wsgi_url(signed_responder: Responder) -> Iterator[str]:
    class Quiet(WSGIRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with make_server("127.0.0.1", 0, signed_responder.wsgi, handler_class=Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/halfmsg/check"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("kind", ["aiohttp", "wsgi"])
async def test_mount_answers_over_a_real_socket(kind: str, http: aiohttp.ClientSession, aiohttp_url: str, wsgi_url: str) -> None:
    """A signed question gets a signed answer, an unsigned one a 401, a GET a 405."""
    url = {"aiohttp": aiohttp_url, "wsgi": wsgi_url}[kind]
    async with http.post(url, data=BODY, headers=signed()) as response:
        body = await response.read()
        assert (response.status, response.content_type, verdicts(body)) == (200, "application/json", COMMITTED)
        assert_signed(response.headers, body)
    async with http.post(url, data=BODY) as response:
        assert response.status == 401
    async with http.get(url) as response:
        assert response.status == 405


async def test_p9_aiohttp_mount_refuses_a_body_past_the_limit(http: aiohttp.ClientSession, aiohttp_url: str) -> None:
    """The application's own limit is the same 1 MiB."""
    async with http.post(aiohttp_url, data=io.BytesIO(TOO_LARGE)) as response:
        assert response.status == 413


async def asgi(responder: Responder, *chunks: bytes, method: str = "POST", headers: dict[str, str] | None = None) -> list[dict[str, Any]]:
    pairs = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    parts = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks] + [{"type": "http.request"}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return parts.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await responder.asgi({"type": "http", "method": method, "headers": pairs}, receive, send)
    return sent


async def test_asgi_mount_answers(signed_responder: Responder) -> None:
    """A body in several parts is one question."""
    start, end = await asgi(signed_responder, BODY[:10], BODY[10:], headers=signed())
    assert (start["status"], verdicts(end["body"])) == (200, COMMITTED)
    assert_signed({name.decode(): value.decode() for name, value in start["headers"]}, end["body"])


async def test_asgi_mount_refuses(signed_responder: Responder) -> None:
    """Other methods, bodies past the limit and unsigned questions; other protocols get nothing at all."""
    assert (await asgi(signed_responder, method="GET"))[0]["status"] == 405
    assert (await asgi(signed_responder, TOO_LARGE, b"more"))[0]["status"] == 413
    assert (await asgi(signed_responder, BODY))[0]["status"] == 401
    await signed_responder.asgi({"type": "lifespan"}, None, None)


@pytest.mark.parametrize("length", ["-1", "x", "²", "9" * 5000, str(frames.BODY_BYTES_MAX + 1)])
def test_wsgi_mount_refuses_a_senseless_length(signed_responder: Responder, length: str) -> None:
    """It is judged before one byte is read."""
    statuses: list[str] = []
    signed_responder.wsgi({"REQUEST_METHOD": "POST", "CONTENT_LENGTH": length}, lambda status, headers: statuses.append(status))
    assert [status[:3] for status in statuses] == ["413"]


def test_flask_mount_answers(signed_responder: Responder) -> None:
    """As in the README: one `add_url_rule`."""
    flask = pytest.importorskip("flask")
    app = flask.Flask(__name__)
    app.add_url_rule("/halfmsg/check", view_func=signed_responder.flask, methods=["POST"])
    client = app.test_client()
    answer = client.post("/halfmsg/check", data=BODY, headers=signed())
    assert (answer.status_code, answer.content_type, verdicts(answer.data)) == (200, "application/json", COMMITTED)
    assert_signed(answer.headers, answer.data)
    assert client.post("/halfmsg/check", data=BODY).status_code == 401
    assert client.post("/halfmsg/check", data=TOO_LARGE).status_code == 413
    assert client.get("/halfmsg/check").status_code == 405


def test_django_mount_answers_and_is_exempt_from_csrf(signed_responder: Responder) -> None:
    """The coordinator has no CSRF token; its signature is the proof."""
    pytest.importorskip("django")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from django.conf import settings
        from django.test import RequestFactory
    if not settings.configured:
        settings.configure(DEFAULT_CHARSET="utf-8", ALLOWED_HOSTS=["*"])
    requests = RequestFactory()
    view = signed_responder.django
    assert view.csrf_exempt  # type: ignore[attr-defined]
    answer = view(requests.post("/halfmsg/check", BODY, content_type="application/json", headers=signed()))
    assert (answer.status_code, answer["content-type"], verdicts(answer.content)) == (200, "application/json", COMMITTED)
    assert_signed(answer.headers, answer.content)
    assert view(requests.post("/halfmsg/check", BODY, content_type="application/json")).status_code == 401
    assert view(requests.get("/halfmsg/check")).status_code == 405


async def test_sync_mount_serves_an_async_decide_even_where_a_loop_runs() -> None:
    """A sync view inside an async server has a running loop in its thread."""

    class Awaiting(Database):
        async def decide(self, questions: Any, /) -> Any:  # type: ignore[override]
            return super().decide(questions)

    assert asyncio.get_running_loop()
    reply = Responder(Awaiting()).answer_sync({}, BODY)
    assert content(reply)["verdicts"][0]["verdict"] == "committed"
