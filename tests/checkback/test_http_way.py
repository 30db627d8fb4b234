"""Asking over HTTP: a real server on a free port, well-behaved and not."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.test_utils import TestServer

from halfmsg.checkback import Answer, Responder, Verdict, http_way, signing, verdict
from halfmsg.checkback.allowlist import LOOPBACK, AllowList, GuardedSession, is_literal, open_session
from halfmsg.checkback.http_way import HttpWay
from halfmsg.checkback.verdict import Result
from tests.checkback.fakes import OTHER_SECRET, SECRET, SOURCE, Clock
from tests.checkback.test_responder import Database

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
CLOCK = Clock()
IDS = itertools.count()
QUESTION = {"type": "check", "producer": "orders", "source": SOURCE, "transactions": [{"id": "a", "mark": 1}, {"id": "b", "mark": 2}]}


@pytest.fixture
async def session() -> AsyncIterator[GuardedSession]:
    opened = await open_session()
    yield opened
    await opened.aclose()


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/check", handler)
    async with TestServer(app) as server:
        yield str(server.make_url("/check"))


def answering(status: int, body: bytes, headers: dict[str, str] | None = None) -> AbstractAsyncContextManager[str]:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=status, body=body, headers={"content-type": "application/json"} | (headers or {}))

    return serving(handler)


def way(session: GuardedSession, url: str, *secrets: str, **options: Any) -> HttpWay:
    return HttpWay(session, url, new_id=lambda: f"msg_{next(IDS)}", secrets=secrets, now=CLOCK.unix_s, **options)


async def details(asking: HttpWay) -> set[str]:
    """Why there is no answer; the test fails if there is one."""
    rulings = await asking.ask(QUESTION)
    assert {(id_, ruling.result) for id_, ruling in rulings.items()} == {("a", Result.NO_ANSWER), ("b", Result.NO_ANSWER)}
    return {ruling.detail for ruling in rulings.values()}


GOOD = json.dumps({"source": SOURCE, "verdicts": [{"id": "a", "verdict": "committed"}, {"id": "b", "verdict": "running"}]}).encode()


@pytest.mark.parametrize("secrets", [(), (SECRET,), (OTHER_SECRET, SECRET)])
async def test_responder_is_asked_and_believed(session: GuardedSession, secrets: tuple[str, ...]) -> None:
    """Both ends of this package understand each other, signed, unsigned and while rotating."""
    responder = Responder(Database(), secret=SECRET if secrets else None, now=CLOCK.unix_s)
    async with serving(responder.aiohttp) as url:
        rulings = await way(session, url, *secrets).ask(QUESTION)
    assert rulings["a"] == verdict.Ruling(Result.COMMITTED, "d" * 32, (None, 3))


async def test_r7_another_database_behind_the_url_is_wrong_source(session: GuardedSession) -> None:
    """Staging answers for production, and is recognised."""
    async with serving(Responder(Database("6" * 32)).aiohttp) as url:
        assert await details(way(session, url)) == {verdict.WRONG_SOURCE}


async def test_responder_without_the_secret_is_401_and_no_answer(session: GuardedSession) -> None:
    """A rotation forgotten at the producer shows as what it is."""
    async with serving(Responder(Database(), secret=OTHER_SECRET, now=CLOCK.unix_s).aiohttp) as url:
        assert await details(way(session, url, SECRET)) == {"HTTP 401"}


async def test_p5_unsigned_answer_is_no_answer_where_a_secret_is_known(session: GuardedSession) -> None:
    """Whoever sits behind the address does not know the secret."""
    async with answering(200, GOOD) as url:
        assert await details(way(session, url, SECRET)) == {"bad signature"}


async def test_p5_wrongly_signed_answer_is_no_answer(session: GuardedSession) -> None:
    """Signed by another secret, or over another body."""
    for secret, body in ((OTHER_SECRET, GOOD), (SECRET, GOOD + b" ")):

        async def handler(request: web.Request, secret: str = secret, body: bytes = body) -> web.Response:
            headers = signing.sign([secret], request.headers["webhook-id"], CLOCK.unix_s(), GOOD)
            return web.Response(body=body, headers=headers | {"content-type": "application/json"})

        async with serving(handler) as url:
            assert await details(way(session, url, SECRET)) == {"bad signature"}


async def test_p5_answer_to_an_earlier_question_is_no_answer(session: GuardedSession) -> None:
    """A recorded answer, rightly signed and fresh, does not carry this question's id."""
    headers = signing.sign([SECRET], "msg_of_another_question", CLOCK.unix_s(), GOOD)
    async with answering(200, GOOD, headers) as url:
        assert await details(way(session, url, SECRET)) == {"bad signature"}


@pytest.mark.parametrize("status", [201, 204, 301, 302, 307, 401, 404, 409, 410, 425, 500, 503])
async def test_p5_other_statuses_are_no_answer(session: GuardedSession, status: int) -> None:
    """A bare word of HTTP is no verdict, and a redirect is not followed."""
    async with answering(status, GOOD if status != 204 else b"", {"location": "/check"} if status // 100 == 3 else {}) as url:
        assert await details(way(session, url)) == {f"HTTP {status}"}


async def test_p5_html_answer_is_no_answer(session: GuardedSession) -> None:
    """A captive portal says 200 to everything."""
    async with answering(200, b"<html>OK</html>", {"content-type": "text/html"}) as url:
        assert await details(way(session, url)) == {"not JSON"}


async def test_redirect_is_not_followed(session: GuardedSession) -> None:
    """The second host is not called at all: it was never judged."""
    called = []

    async def second(request: web.Request) -> web.Response:
        called.append(request.path)
        return web.Response()

    async with serving(second) as second_url, answering(307, b"", {"location": second_url}) as url:
        assert await details(way(session, url)) == {"HTTP 307"}
    assert not called


@pytest.mark.parametrize(("size", "detail"), [(http_way.ANSWER_BYTES_MAX, "not JSON"), (http_way.ANSWER_BYTES_MAX + 1, "answer too large")])
async def test_p9_answer_is_read_up_to_its_limit(session: GuardedSession, size: int, detail: str) -> None:
    """1 MiB is read, one byte more is not."""
    async with answering(200, b"x" * size) as url:
        assert await details(way(session, url)) == {detail}


async def test_p9_endless_answer_is_cut_off(session: GuardedSession) -> None:
    """The limit holds without a Content-Length."""

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * 65536)

    async with serving(endless) as url:
        assert await details(way(session, url)) == {"answer too large"}


async def test_compressed_answer_is_not_unpacked(session: GuardedSession) -> None:
    """We ask for none, and a bomb must not be opened."""
    async with answering(200, GOOD, {"content-encoding": "gzip"}) as url:
        assert (await way(session, url).ask(QUESTION))["a"].result is Result.COMMITTED  # the label is not even looked at


async def test_hanging_producer_is_timed_out(session: GuardedSession) -> None:
    """The time-out is the caller's, for the whole question."""
    release = asyncio.Event()

    async def hangs(request: web.Request) -> web.Response:
        await release.wait()
        return web.Response()

    async with serving(hangs) as url:
        rulings = await way(session, url).ask(QUESTION, 0.05)
        release.set()
    assert rulings == verdict.no_answers(["a", "b"], "timed out")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


async def test_nobody_listening_is_no_answer(session: GuardedSession) -> None:
    """The usual case of a deploy."""
    assert await details(way(session, f"http://127.0.0.1:{free_port()}/check")) == {"cannot connect"}


async def test_connection_cut_in_the_answer_is_no_answer(session: GuardedSession) -> None:
    """Half an answer is none."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n" + GOOD)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert await details(way(session, f"http://127.0.0.1:{port}/")) == {"connection lost"}


async def test_tls_that_nobody_vouches_for_is_no_answer(session: GuardedSession) -> None:
    """Plain HTTP behind an https URL cannot be mistaken."""
    async with answering(200, GOOD) as url:
        assert await details(way(session, url.replace("http:", "https:"))) == {"TLS failed"}


@pytest.mark.parametrize("url", ["", "/check", "http://", "ftp://127.0.0.1/", "http://[", "http://127.0.0.1:99999/", "http://ex ample/"])
async def test_senseless_url_is_no_answer_and_never_an_error(session: GuardedSession, url: str) -> None:
    """A bad registration costs its producer the answer, and nobody else anything."""
    assert await details(way(session, url))


async def test_secret_that_is_none_is_refused_at_once(session: GuardedSession) -> None:
    """Not at the first question."""
    with pytest.raises(ValueError, match="check secret"):
        way(session, "http://127.0.0.1/", "hunter2")


async def test_dtm_dialect_asks_one_id_a_request_and_reads_the_status(session: GuardedSession) -> None:
    """A DTM service answers by 200, 409 and 425, for one transaction at a time."""
    asked = []

    async def dtm(request: web.Request) -> web.Response:
        ids = [transaction["id"] for transaction in (await request.json())["transactions"]]
        asked.append(ids)
        return web.Response(status={"a": 200, "b": 409, "c": 425}.get(ids[0], 500))

    question = QUESTION | {"transactions": [{"id": id_} for id_ in "abcd"]}
    async with serving(dtm) as url:
        rulings = await way(session, url, SECRET, dialect="dtm").ask(question)
    assert {id_: ruling.result.value for id_, ruling in rulings.items()} == {"a": "committed", "b": "rolled_back", "c": "running", "d": "no_answer"}
    assert sorted(asked) == [["a"], ["b"], ["c"], ["d"]]


async def test_dtm_dialect_keeps_what_was_answered_in_time(session: GuardedSession) -> None:
    """A service that hangs on some leaves the others their answers; the time-out is for all of them together."""
    release = asyncio.Event()

    async def dtm(request: web.Request) -> web.Response:
        if (await request.json())["transactions"][0]["id"] != "0":
            await release.wait()
        return web.Response()

    question = QUESTION | {"transactions": [{"id": str(n)} for n in range(20)]}
    async with serving(dtm) as url:
        rulings = await way(session, url, dialect="dtm").ask(question, 0.2)
        release.set()
    assert rulings["0"].result is Result.COMMITTED
    assert {rulings[str(n)].detail for n in range(1, 20)} == {"timed out"}


class Names(AbstractResolver):
    """A name server of our own: any name is at these addresses."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=socket.AI_NUMERICHOST)
            for address in self.addresses
        ]

    async def close(self) -> None:
        pass


@asynccontextmanager
async def guarded(allow: tuple[str, ...], *addresses: str) -> AsyncIterator[GuardedSession]:
    opened = await open_session(allow, Names(*addresses))
    yield opened
    await opened.aclose()


def named(url: str) -> str:
    return url.replace("127.0.0.1", "orders.internal")


async def test_name_is_judged_by_the_address_it_has_at_connect() -> None:
    """A name that has moved to a forbidden neighbour is not called, whatever it was when it was registered."""
    async with answering(200, GOOD) as url:
        async with guarded(LOOPBACK, "127.0.0.1") as session:
            assert (await way(session, named(url)).ask(QUESTION))["a"].result is Result.COMMITTED
        async with guarded(("10.0.0.0/8",), "127.0.0.1") as session:
            assert await details(way(session, named(url))) == {"host not allowed"}


async def test_forbidden_address_beside_a_permitted_one_is_left_out() -> None:
    """Of several addresses only the permitted ones are tried."""
    async with answering(200, GOOD) as url, guarded(LOOPBACK, "169.254.169.254", "127.0.0.1") as session:
        assert (await way(session, named(url)).ask(QUESTION))["a"].result is Result.COMMITTED


async def test_listed_name_may_be_at_any_address() -> None:
    """Who lists a name trusts its DNS."""
    async with answering(200, GOOD) as url, guarded(("Orders.Internal.",), "127.0.0.1") as session:
        assert (await way(session, named(url)).ask(QUESTION))["a"].result is Result.COMMITTED
        assert await details(way(session, url)) == {"host not allowed"}


@pytest.mark.parametrize("host", ["10.0.0.1", "[::ffff:10.0.0.1]", "0.0.0.0", "[::]", "2130706433", "127.1", "169.254.169.254", "[fe80::1]"])
async def test_literal_address_outside_the_list_is_not_called(session: GuardedSession, host: str) -> None:
    """Loopback is the default; numbers that only the system would read as an address are refused unread."""
    assert await details(way(session, f"http://{host}:1/")) == {"host not allowed"}


def test_allow_list_knows_addresses_networks_names_and_loopback() -> None:
    """An IPv4 address in IPv6 clothes is the IPv4 address."""
    allow = AllowList(["loopback", "10.1.0.0/16", "192.0.2.7", "fd00::/8", "billing.internal"])
    for address in ("127.9.9.9", "::1", "10.1.255.255", "192.0.2.7", "fd12::1", "::ffff:10.1.0.1"):
        assert allow.permits_address(address), address
    for address in ("10.2.0.0", "192.0.2.8", "::2", "::ffff:10.2.0.1", "8.8.8.8", "", "localhost", "010.1.0.1"):
        assert not allow.permits_address(address), address
    assert allow.permits_name("Billing.Internal.")
    assert not allow.permits_name("internal")


@pytest.mark.parametrize("entry", ["10.0.0.0/33", "10.0.0.1/8", "", "*", "*.internal", "http://x", "a b", "-x", "1.2.3", "x:80"])
def test_senseless_entry_of_the_allow_list_is_refused(entry: str) -> None:
    """A typing error must not silently forbid, or permit, something else."""
    with pytest.raises(ValueError, match=r"."):
        AllowList([entry])


@pytest.mark.parametrize(("host", "literal"), [("127.0.0.1", True), ("::1", True), ("127.1", True), ("1", True), ("a.1", False), ("0x7f.1", False)])
def test_what_is_connected_to_without_resolving_is_known(host: str, literal: bool) -> None:
    """Our judgement and aiohttp's must agree on which hosts skip the resolver."""
    from aiohttp.helpers import is_ip_address

    assert is_literal(host) is literal is is_ip_address(host)


async def test_unknown_verdict_travels_with_its_detail(session: GuardedSession) -> None:
    """`unknown` is the one word that costs an attempt, so it arrives as said."""
    async with serving(Responder(lambda questions: {"a": Answer(Verdict.UNKNOWN)}).aiohttp) as url:
        rulings = await way(session, url).ask({key: value for key, value in QUESTION.items() if key != "source"})
    assert (rulings["a"].result, rulings["b"].detail) == (Result.UNKNOWN, "id not in the answer")
