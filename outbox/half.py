"""A half message around your transaction (R1, R2): stored before it begins, bound to its commit by `fence`, told after its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, overload

from halfmsg.txclient import ApiError, Busy, HalfmsgError, Message, TransportError, UsageError, transaction_digest
from halfmsg.txclient._sync import run as in_portal

from . import answering, fence
from .effects import Steps
from .errors import AlreadyCommitted, Fenced
from .fence import Attempt, Drawn, Fate
from .home import own_transaction
from .relay import AGAIN

if TYPE_CHECKING:
    from .outbox import AwaitsExecute, Outbox, Receipt

log = logging.getLogger("halfmsg.outbox")
ATTEMPTS_MAX: Final = 3


class Half:
    """One halfmsg transaction whose content is known before yours begins. Use it as a block, sync or async."""

    def __init__(self, outbox: Outbox, messages: list[Message], required: bool, id: bytes) -> None:
        self._outbox, self._messages, self._required = outbox, messages, required
        self._attempt = Attempt(id, outbox._mark(), stored=False)
        self._digest = transaction_digest([message.digest() for message in messages])
        self._fenced = False
        self._sent = False

    @property
    def id(self) -> str:
        return fence.id_text(self._attempt.id)

    @property
    def acknowledged(self) -> bool:
        """The coordinator has it. False: `fence` writes the bodies too, and the relay hands them over (R2)."""
        return self._attempt.stored

    @overload
    def fence(self, on: AwaitsExecute) -> Coroutine[Any, Any, Sequence[Receipt]]: ...  # type: ignore[overload-overlap]
    @overload
    def fence(self, on: object) -> Sequence[Receipt]: ...
    def fence(self, on: Any) -> Any:
        """Bind its fate to the transaction that is open on `on`. Raises as publish does; AlreadyCommitted where this id stands committed."""
        if self._fenced:
            raise UsageError("bad_request", "this half message is fenced already; one transaction each")
        return self._outbox.run_on(on, self._steps, self._receipts)

    def _steps(self, in_block: bool) -> Steps[list[Drawn]]:
        names, source = self._outbox._home.tables, self._outbox._source
        drawn = yield from fence.publish(names, self._attempt, self._messages, source, in_block=in_block)
        self._fenced = True
        return drawn

    def _receipts(self, drawn: list[Drawn]) -> Sequence[Receipt]:
        from .outbox import receipts_of

        if self._outbox._relay is not None and not self.acknowledged:
            self._outbox._relay.expect()
        return receipts_of(self._attempt.id, drawn)

    # --- before ----------------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if not self._outbox.is_open:
            if self._required:
                raise UsageError("outbox_closed", "no relay is open here, so nobody would commit it; use `async with outbox:` around your service")
            return self
        for _ in range(ATTEMPTS_MAX):
            if await self._prepare():
                return self
            self._attempt = Attempt(self._outbox._id(None), self._outbox._mark(), stored=False)
        raise Fenced("three ids in a row were rolled back before they were used; is something answering for this producer wrongly?")

    async def _prepare(self) -> bool:
        """Send and await it, or give it up, before your transaction begins (R2). False: this id is rolled back, take a new one (R26)."""
        try:
            self._sent = True
            known = await self._outbox.client.op(self._op(), timeout=self._outbox.prepare_timeout_s, retry=False)
        except (TransportError, Busy) as error:
            self._fall_back(error)
            return True
        except ApiError as error:
            if error.code not in AGAIN:
                raise
            self._fall_back(error)
            return True
        if known["state"] == "committed":
            raise AlreadyCommitted()
        self._attempt = Attempt(self._attempt.id, self._attempt.mark, stored=known["state"] in ("prepared", "parked"))
        return bool(known["state"] != "rolled_back")

    def _fall_back(self, error: HalfmsgError) -> None:
        if self._required:
            raise error
        log.debug("half message %s goes by rows: %s", self.id, error)

    def _op(self) -> dict[str, Any]:
        op: dict[str, Any] = {"op": "prepare", "id": self.id, "producer": self._outbox.name, "digest": self._digest.hex()}
        if self._outbox._source is not None:
            op["source"] = self._outbox._source.hex()
        if self._attempt.mark is not None:
            op["mark"] = self._attempt.mark
        return op | {"messages": [message.wire(index=index) for index, message in enumerate(self._messages)]}

    # --- after -----------------------------------------------------------------------------------------------------------------

    async def __aexit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /) -> None:
        relay = self._outbox._relay
        if e is None and not self._fenced:
            await self._withdraw()
            raise UsageError(
                "not_fenced", f"half message {self.id} was prepared, and `await half.fence(connection)` was never called; it is rolled back"
            )
        if relay is None:
            return
        if e is None:
            if self.acknowledged:
                relay.remember(self._attempt.id)
            else:
                relay.wake()
            return
        await self._withdraw()

    async def _withdraw(self) -> None:
        """The block raised, which is no proof of anything once a COMMIT was sent (R1): lay the fence, or read that it stands.

        A task of its own: a cancelled caller is let go, and what is ruled then is told all the same.
        """
        if self._sent or self._fenced:
            await asyncio.shield(self._rule_and_tell())

    async def _rule_and_tell(self) -> None:
        relay = self._outbox._relay
        try:
            fate = await self._rule()
        except Exception as error:  # locked: your transaction is still open, which is no proof either way; the relay looks again
            log.debug("half message %s: not ruled yet (%s); the check-back asks", self.id, error)
            if relay is not None and self.acknowledged:
                relay.remember(self._attempt.id)
            return
        if relay is None or fate.verdict is None:
            return
        if fate.verdict == fence.COMMITTED and not self.acknowledged:
            relay.wake()
        else:
            relay.remember(self._attempt.id)

    async def _rule(self) -> Fate:
        outbox = self._outbox
        steps = answering.lay(outbox._home.tables, self._attempt.id, self._attempt.mark or 0, outbox._source)
        async with outbox._home.impatient() as adapter:
            return await adapter.run(own_transaction(steps))

    def __enter__(self) -> Self:
        return in_portal(self.__aenter__())

    def __exit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /) -> None:
        in_portal(self.__aexit__(t, e, tb))
