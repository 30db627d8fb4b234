"""The client: hand messages in, decide them, take deliveries out. Knows no database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import groupby, islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack
from urllib.parse import quote

import msgspec

from . import _clock, _retry, _wire
from ._delivery import Delivery
from ._digest import transaction_digest
from ._ids import Ids
from ._internal import Attached
from ._links import Link, Links
from ._message import MAX_BODY_BYTES, MAX_MESSAGES, Message, MessageOptions, name_of
from ._settings import settings
from ._stream import Stream
from ._transaction import Transaction, transaction_of
from ._units import Seconds, seconds
from .errors import Busy, TransportError, UsageError, api_error

if TYPE_CHECKING:
    from ._internal import Internal
    from ._sync import SyncClient

T = TypeVar("T")
MAX_FETCH_WAIT_S = 30.0


class Client:
    """A coordinator's client. No I/O and no thread until first used; safe to share between tasks and threads, and across fork.

    Each call may raise TransportError, ApiError, Conflict, Busy; what may be repeated is, within `timeout` in all. Ids are chosen here
    before the first try, so that a repeat is the same transaction.
    """

    def __init__(self, url: str | None = None, *, token: str | None = None, namespace: str | None = None, timeout: Seconds = 10.0) -> None:
        """Defaults: HALFMSG_URL, HALFMSG_TOKEN, HALFMSG_NAMESPACE. Raises UsageError(bad_url)."""
        self._settings = settings(url, token, namespace, timeout)
        self._timeout_s = self._settings.timeout_s
        self._links = Links(self._settings, _wire.Msgpack())
        self._answers = _wire.Json()
        self._ids = Ids()

    # --- transactions ----------------------------------------------------------------------------------------------------

    async def send(self, topic: str, body: object, *, id: str | None = None, **options: Unpack[MessageOptions]) -> Transaction:
        """One message, committed at once and tied to no database: durable at the coordinator when this returns."""
        message = Message(topic, body, **options)
        return transaction_of(await self.op(_wire.Submit(id=id or self._ids.transaction(), messages=[message.wire()])))

    async def prepare(self, messages: Iterable[Message], *, producer: str, id: str | None = None, first_check: Seconds | None = None) -> Transaction:
        """Store half messages: invisible until decided. A repeat answers the state of now, whatever it is (R26)."""
        messages = _checked(messages)
        first_check_s = None if first_check is None else seconds(first_check)
        op = _wire.Prepare(
            id=id or self._ids.transaction(), producer=name_of(producer, "producer"), digest=_digest(messages), first_check_s=first_check_s,
            messages=[message.wire() for message in messages],
        )  # fmt: skip
        return transaction_of(await self.op(op))

    async def submit(
        self, messages: Iterable[Message], *, producer: str, id: str | None = None, numbers: Sequence[int | None] | None = None
    ) -> Transaction:
        """Prepare if absent, and commit. `numbers` by index, as drawn in the producer's database."""
        messages = _checked(messages)
        drawn = [None] * len(messages) if numbers is None else list(numbers)
        if len(drawn) != len(messages):
            raise UsageError("bad_request", f"{len(drawn)} numbers for {len(messages)} messages; give one each, None where there is none")
        wired = [message.wire(sequence=number) for message, number in zip(messages, drawn, strict=True)]
        op = _wire.Submit(id=id or self._ids.transaction(), producer=name_of(producer, "producer"), digest=_digest(messages), messages=wired)
        return transaction_of(await self.op(op))

    async def commit(self, id: str, *, digest: str, numbers: Sequence[int | None] | None = None) -> Transaction:
        """Decide: committed. A decision is complete with the digest and, by index, the number of each ordered message (R5)."""
        return transaction_of(await self.op(_wire.Commit(id=id, digest=digest, numbers=numbers)))

    async def rollback(self, id: str, *, producer: str, reason: str = "") -> Transaction:
        """Decide: rolled back. Only with proof: a COMMIT without an answer is no proof (R1)."""
        return transaction_of(await self.op(_wire.Rollback(id=id, producer=producer, reason=reason or None)))

    async def transaction(self, id: str) -> Transaction:
        """What the coordinator knows of it now."""
        return transaction_of(await self.get(f"/v1/transactions/{quote(id, safe='')}"))

    # --- deliveries ------------------------------------------------------------------------------------------------------

    async def fetch(self, group: str, *, max: int = 100, wait: Seconds = 20.0, lease: Seconds = 30.0) -> list[Delivery]:
        """Take up to `max` (1,000) deliveries; wait at most `wait` (30 s) for the first. Empty when nothing came.

        A client is one hand. Of an ordering key of which an earlier answer has something open nothing more comes: that answer may be lost (R13).
        """
        wait_s = min(seconds(wait), MAX_FETCH_WAIT_S)
        link, path = self._links.here(), f"/v1/groups/{name_of(group, 'group')}/fetch"
        body = {"max": max, "wait_s": wait_s, "lease_s": seconds(lease), "member": self._links.member}
        raw = await self._repeat(lambda: link.http.raw("POST", path, body, timeout_s=wait_s + self._timeout_s))
        return self._answers.deliveries(msgspec.json.decode(raw, type=_wire.Deliveries).deliveries, group)

    async def ack(self, deliveries: Iterable[Delivery]) -> None:
        """Done with these, in this order. All are told; then the first refusal is raised (Conflict lease_lost: another has it now)."""
        results: list[Mapping[str, Any]] = []
        for group, mine in groupby(deliveries, key=lambda delivery: delivery.group):
            while items := [_wire.Item(token=delivery.token) for delivery in islice(mine, _wire.MAX_ITEMS)]:
                results += (await self.op(_wire.Ack(group=group, deliveries=items)))["results"]
        _raise_first(results)

    async def nack(self, delivery: Delivery, *, reason: str, delay: Seconds | None = None, counts: bool = True) -> None:
        """Not now: delivered again after `delay`, else after the group's back-off. Later ones of its key in this hand go back too (R13)."""
        item = _wire.Item(token=delivery.token, reason=reason, delay_s=None if delay is None else seconds(delay), counts=counts)
        _raise_first((await self.op(_wire.Nack(group=delivery.group, deliveries=[item])))["results"])

    async def reject(self, delivery: Delivery, *, reason: str) -> None:
        """Never: straight to the dead letters."""
        item = _wire.Item(token=delivery.token, reason=reason)
        _raise_first((await self.op(_wire.Reject(group=delivery.group, deliveries=[item])))["results"])

    async def ping(self) -> Mapping[str, str]:
        """What the coordinator says of itself: version and the like. One try."""
        info = await self._links.here().http.call("GET", "/v1/info", timeout_s=self._timeout_s)
        return {name: str(value) for name, value in info.items() if isinstance(value, (str, int, float))}

    @property
    def sync(self) -> SyncClient:
        """The same methods without await, for code that has no loop."""
        from ._sync import SyncClient

        return SyncClient(self)

    async def aclose(self) -> None:
        """Close the connections of this process; a later use opens new ones."""
        await self._links.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"Client({self._settings.url!r})"

    # --- for halfmsg.outbox and the sample: see _internal.py ---------------------------------------------------------------

    @property
    def time_ms(self) -> int | None:
        return self._links.seen.time_ms

    @property
    def timeout_s(self) -> float:
        return self._timeout_s

    @property
    def settled_before(self) -> Mapping[str, int]:
        return self._links.seen.settled_before

    @property
    def connected(self) -> bool:
        return self._links.connected

    async def attach(self, producer: Attached) -> None:
        stream = self._links.here().stream
        stream.producers.attach(producer)
        await stream.changed(producer)

    async def detach(self, producer: Attached) -> None:
        stream = self._links.here().stream
        stream.producers.detach(producer)
        await stream.changed()

    async def op(self, op: Any, *, timeout: float | None = None, retry: bool = True) -> Any:
        return await self._op(self._links.here().stream, op, timeout=timeout, retry=retry)

    async def _op(self, stream: Stream, op: Any, *, timeout: float | None = None, retry: bool = True) -> Any:
        """On this stream and no other: one that was closed is not opened again."""
        raw = stream.codec.op(op)
        timeout_s = self._timeout_s if timeout is None else timeout
        if not retry:
            return await stream.call(raw, timeout_s, once=True)
        deadline = _clock.monotonic() + timeout_s
        try:
            return await stream.call(raw, timeout_s)
        except (Busy, TransportError) as error:
            if error.code == _retry.LOCAL_LIMIT or not isinstance(error, Busy):
                raise  # the stream itself repeats what a lost connection left open, until the deadline
            return await _retry.repeat(lambda: stream.call(raw, deadline - _clock.monotonic()), deadline, error)

    async def get(self, path: str) -> Any:
        link = self._links.here()
        return await self._repeat(lambda: link.http.call("GET", path, timeout_s=self._timeout_s))

    async def topics(self) -> Mapping[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        cursor = ""
        while True:
            page = await self.get(f"/v1/topics?limit=1000{cursor}")
            found |= {item["name"]: item for item in page["items"]}
            if not page.get("next"):
                return found
            cursor = f"&cursor={quote(page['next'], safe='')}"

    async def put_topic(self, name: str, **fields: Any) -> Mapping[str, Any]:
        return await self._put(f"/v1/topics/{name_of(name, 'topic')}", fields)

    async def put_group(self, name: str, **fields: Any) -> Mapping[str, Any]:
        return await self._put(f"/v1/groups/{name_of(name, 'group')}", fields)

    async def _put(self, path: str, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        link = self._links.here()
        answer: Mapping[str, Any] = await self._repeat(lambda: link.http.call("PUT", path, fields, timeout_s=self._timeout_s))
        return answer

    async def _repeat(self, call: Callable[[], Awaitable[T]]) -> T:
        return await _retry.repeat(call, _clock.monotonic() + self._timeout_s)

    def _link(self) -> Link:
        return self._links.here()

    async def _close_here(self) -> None:
        """The running loop's connections only: a Consumer.run that ends its loop must not close those of other threads."""
        await self._links.close_here()


def _checked(messages: Iterable[Message]) -> Sequence[Message]:
    """The messages of one transaction. Raises UsageError: bad_request for none, too_large."""
    messages = list(messages)
    if not messages:
        raise UsageError("bad_request", "a transaction has at least one message")
    if len(messages) > MAX_MESSAGES or sum(len(message.body) for message in messages) > MAX_BODY_BYTES:
        raise UsageError("too_large", f"a transaction has at most {MAX_MESSAGES} messages and {MAX_BODY_BYTES} bytes of bodies")
    return messages


def _digest(messages: Sequence[Message]) -> str:
    return transaction_digest(message.digest() for message in messages).hex()


def _raise_first(results: Iterable[Mapping[str, Any]]) -> None:
    for result in results:
        if (problem := result.get("error")) is not None:
            raise api_error(problem)


if TYPE_CHECKING:
    _: type[Internal] = Client
