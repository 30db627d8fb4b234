"""HTTP (API §6): parse -> service -> render. No decisions and no SQL here; one table of routes, from which `/openapi.json` is made."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from typing import Any

from aiohttp import web
from msgspec import Struct

from . import openapi, render, wire
from .api_calls import Calls
from .checks import Checks
from .engine import Engine
from .errors import RETRY_AFTER_S, Problem
from .gaps import Gaps
from .routes import ROUTES, Route
from .stream import Streams

log = logging.getLogger("halfmsg.api")

JSON = "application/json"
PROBLEM = "application/problem+json"
OTHERS = ("/v1/stream", "/openapi.json", "/metrics", "/livez", "/healthz", "/readyz")


class Request(Struct):
    """What a call gets: path parameters, query and the decoded body."""

    path: Mapping[str, str]
    query: Mapping[str, str]
    body: Any


class Http:
    """Wraps a call into an aiohttp handler: body in, answer or problem out, headers, metrics."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._ids = itertools.count(1)
        self._prefix = f"{engine.clock.now_ms():x}"

    def handler(self, route: Route, call: Callable[[Request], Awaitable[tuple[int, Any]]]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            started = self.engine.clock.monotonic()
            try:
                check_query(request.query, route)
                body = await self._body(request, route)
                status, answer = await call(Request(request.match_info, request.query, body))
                response = self._answer(status, wire.encode_json(answer) if answer is not None else b"", JSON)
                if isinstance(answer, dict) and answer.get("next") is not None and "cursor" in route.query:
                    response.headers["Link"] = f'<{request.rel_url.update_query(cursor=answer["next"])}>; rel="next"'
            except Problem as problem:
                response = self.problem(problem)
            except Exception as error:
                log.exception("%s %s failed", route.method, route.path)
                response = self.problem(Problem("internal", f"{type(error).__name__}; see the coordinator's log"))
            self.engine.metrics.request(route.method, route.path, response.status, self.engine.clock.monotonic() - started)
            return response

        return handle

    async def _body(self, request: web.Request, route: Route) -> Any:
        if route.takes is None:
            return None
        content_type = request.content_type
        if content_type.startswith("application/cloudevents") or "ce-specversion" in request.headers:
            raise Problem("not_supported", "CloudEvents are known but not built yet; send a message as JSON")
        if content_type not in (JSON, "application/octet-stream") or (content_type != JSON and request.headers.get("Content-Type")):
            raise Problem("unsupported_media_type", f"{content_type} is not known here; send application/json")
        try:
            data = await request.read()
        except web.HTTPRequestEntityTooLarge as error:
            raise Problem("too_large", f"a request has at most {wire.MAX_FRAME_BYTES} bytes", limit=wire.MAX_FRAME_BYTES) from error
        except web.RequestPayloadError as error:
            raise Problem("bad_request", "the body is not what its Content-Encoding or its length says") from error
        return wire.decode_json(data or b"{}", route.takes)

    def _answer(self, status: int, body: bytes, content_type: str) -> web.Response:
        headers = {"Content-Type": content_type, "Halfmsg-Time": str(self.engine.clock.now_ms()), "Halfmsg-Request-Id": self._next_id()}
        return web.Response(body=body, status=status, headers=headers)

    def problem(self, problem: Problem) -> web.Response:
        self.engine.metrics.rejected(problem.code)
        response = self._answer(problem.status, b"", PROBLEM)
        response.body = wire.encode_json(render.problem(problem, response.headers["Halfmsg-Request-Id"]))
        if problem.code in RETRY_AFTER_S:
            response.headers["Retry-After"] = str(RETRY_AFTER_S[problem.code])
        return response

    def _next_id(self) -> str:
        return f"{self._prefix}-{next(self._ids):x}"


def check_query(query: Mapping[str, str], route: Route | None = None) -> None:
    """A misspelt name that is ignored would be a silent strip, in a query as in a body."""
    for name, value in query.items():
        if name == "namespace":
            if value != "default":
                raise Problem("not_supported", "without tokens the only namespace is default")
        elif route is not None and route.call != "not_built" and name not in route.query:
            known = ", ".join(route.query) or "none"
            raise Problem("unknown_field", f"{name[:80]!r} is not known in the query of {route.path}; known: {known}")


@cache
def _document() -> bytes:
    """Once a process: tests and simulated worlds start many coordinators in one."""
    return wire.encode_json(openapi.document(ROUTES))


def application(engine: Engine, streams: Streams, checks: Checks, gaps: Gaps) -> web.Application:
    http = Http(engine)
    calls = Calls(engine, checks, streams, gaps)
    app = web.Application(client_max_size=wire.MAX_FRAME_BYTES)
    for route in ROUTES:
        app.router.add_route(route.method, route.path, http.handler(route, getattr(calls, route.call)))
    app.router.add_get("/v1/stream", _upgrade(http, streams))
    app.router.add_get("/openapi.json", _fixed(_document(), JSON))
    app.router.add_get("/metrics", _metrics(engine))
    app.router.add_get("/livez", _fixed(b"ok\n", "text/plain"))
    app.router.add_get("/healthz", _fixed(b"ok\n", "text/plain"))
    app.router.add_get("/readyz", _ready(engine))
    app.router.add_route("*", "/{tail:.*}", _unmatched(http))
    return app


def _upgrade(http: Http, streams: Streams) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """What a stream refuses before its upgrade is a problem like any other."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            check_query(request.query)
            return await streams.handle(request)
        except Problem as problem:
            return http.problem(problem)
        except web.HTTPBadRequest as error:
            return http.problem(Problem("bad_request", error.text or error.reason))

    return handle


def _unmatched(http: Http) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The last route takes what no other did. (A middleware would do it too, and cost each request a tenth of its time.)"""
    paths = {path: re.compile(re.sub(r"{\w+}", "[^/]+", path)) for path in (*(route.path for route in ROUTES), *OTHERS)}

    async def handle(request: web.Request) -> web.StreamResponse:
        known = [path for path, pattern in paths.items() if pattern.fullmatch(request.path)]
        if not known:
            return http.problem(Problem("not_found", f"no resource {request.path}; see /openapi.json"))
        allowed = {route.method for route in ROUTES if route.path in known} or {"GET"}
        return http.problem(Problem("method_not_allowed", f"{request.path} takes {', '.join(sorted(allowed))}"))

    return handle


def _fixed(body: bytes, content_type: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(body=body, headers={"Content-Type": content_type})

    return handle


def _metrics(engine: Engine) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        await engine.refresh_gauges()
        body, content_type = engine.metrics.render()
        return web.Response(body=body, headers={"Content-Type": content_type})

    return handle


def _ready(engine: Engine) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        lines = {"accepting": not engine.draining, "storage": await engine.storage_answers(), "disk": not engine.env.storage_low}
        status = 200 if lines["accepting"] and lines["storage"] else 503
        text = "".join(f"[{'+' if ok else '-'}]{name} {'ok' if ok else 'failed'}\n" for name, ok in lines.items())
        return web.Response(text=text if "verbose" in request.query else "ok\n" if status == 200 else "not ready\n", status=status)

    return handle
