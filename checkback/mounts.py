"""One small function a framework: take headers and body out, put the reply in. Each imports its framework when it is called."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from . import frames

if TYPE_CHECKING:
    from .answers import Reply
    from .responder import Responder


async def on_aiohttp(responder: Responder, request: Any) -> Any:
    from aiohttp import web

    reply = await responder.answer(request.headers, await request.read())  # the application's client_max_size is the limit
    return web.Response(status=reply.status, headers=reply.headers, body=reply.body)


async def on_asgi(responder: Responder, scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    if scope["method"] != "POST":
        reply = frames.refusal(405, "method_not_allowed")
    else:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        reply = await responder.answer(headers, await _asgi_body(receive))
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in reply.headers.items()]
    await send({"type": "http.response.start", "status": reply.status, "headers": pairs})
    await send({"type": "http.response.body", "body": reply.body})


async def _asgi_body(receive: Any) -> bytes:
    """The body, cut one byte past the limit: enough to be refused."""
    body, more = b"", True
    while more and len(body) <= frames.BODY_BYTES_MAX:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body[: frames.BODY_BYTES_MAX + 1]


def on_wsgi(responder: Responder, environ: Any, start_response: Any) -> list[bytes]:
    reply = _wsgi_reply(responder, environ)
    start_response(f"{reply.status} {HTTPStatus(reply.status).phrase}", list(reply.headers.items()))
    return [reply.body]


def _wsgi_reply(responder: Responder, environ: Mapping[str, Any]) -> Reply:
    if environ["REQUEST_METHOD"] != "POST":
        return frames.refusal(405, "method_not_allowed")
    length = environ.get("CONTENT_LENGTH") or "0"
    if not (length.isascii() and length.isdigit()) or int(length[:12]) > frames.BODY_BYTES_MAX:
        return frames.refusal(413, "too_large")
    headers = {name[5:].replace("_", "-"): value for name, value in environ.items() if name.startswith("HTTP_")}
    return responder.answer_sync(headers, environ["wsgi.input"].read(int(length)))


def on_flask(responder: Responder) -> Any:
    from flask import Response, request  # type: ignore[import-not-found, unused-ignore]

    # one byte past the limit, so that `read` refuses it and a body of any size is never held
    reply = responder.answer_sync(dict(request.headers), request.stream.read(frames.BODY_BYTES_MAX + 1))
    return Response(reply.body, reply.status, dict(reply.headers))


def on_django(responder: Responder, request: Any) -> Any:
    from django.http import HttpResponse  # type: ignore[import-not-found, import-untyped, unused-ignore]

    if request.method != "POST":
        reply = frames.refusal(405, "method_not_allowed")
    else:
        reply = responder.answer_sync(request.headers, request.read(frames.BODY_BYTES_MAX + 1))
    return HttpResponse(reply.body, status=reply.status, headers=dict(reply.headers))
