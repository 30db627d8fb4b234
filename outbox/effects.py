"""Decisions and SQL are generators without a colour: they yield effects and are sent results. Two trampolines run them.

No await, no driver, no clock in a generator, so it is tested by feeding it lists, and a driver is one small adapter.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import AbstractContextManager
from inspect import GEN_CLOSED, getgeneratorstate
from typing import Any, Literal, Protocol, TypeVar

from msgspec import Struct

T = TypeVar("T")
Rows = list[tuple[Any, ...]]
Dialect = Literal["sqlite", "postgresql"]


class Sql(Struct, frozen=True):
    """One statement with `?` for each argument; the result is its rows, read to the end."""

    text: str
    args: Sequence[Any] = ()


class Check(Struct, frozen=True):
    """Is a transaction open here? Asked after a first harmless statement, since several layers begin late. Raises NotInTransaction."""


class Begin(Struct, frozen=True):
    """Open a transaction: on SQLite IMMEDIATE, since a deferred one that read first fails at its first write."""


class Mark(Struct, frozen=True):
    """Something at the start of a transaction that user code gets, and that goes with it: at the end it tells whether that code has ended the
    transaction, and perhaps begun another."""


class Unmark(Struct, frozen=True):
    """The transaction that was marked is still the one that is open. Raises TransactionEnded where it is not."""


class Aside(Struct, frozen=True):
    """A blocking call, of which no loop may stand still; the connection stays with these steps meanwhile."""

    call: Callable[[], None]


class Commit(Struct, frozen=True):
    pass


class Abort(Struct, frozen=True):
    """End the transaction so that nothing of it can be committed any more (R8), through the highest layer there is."""


class Reset(Struct, frozen=True):
    """Put back what user code may have set on a connection of ours, outside of any transaction: factories; on a server the session."""


Effect = Sql | Check | Begin | Mark | Unmark | Aside | Commit | Abort | Reset
Steps = Generator[Effect, Any, T]


class SyncAdapter(Protocol):
    is_async: Literal[False]
    conn: Any

    @property
    def dialect(self) -> Dialect: ...
    @property
    def alone(self) -> AbstractContextManager[object]:
        """To be held for all steps, where threads may share the connection."""

    def do(self, effect: Effect) -> Any: ...
    def close(self) -> None: ...


class AsyncAdapter(Protocol):
    is_async: Literal[True]
    conn: Any

    @property
    def dialect(self) -> Dialect: ...
    async def run(self, steps: Steps[T]) -> T:
        """Run to the end, as `run_sync` does, with nothing of another task on this connection between the steps."""

    async def run_or_abort(self, steps: Steps[T]) -> T:
        """Steps of a publish, a fence or a claim, which end their transaction where they raise. Cancelled at whatever moment, it is ended, too."""

    async def close(self) -> None: ...


Adapter = SyncAdapter | AsyncAdapter


def run_sync(steps: Steps[T], adapter: SyncAdapter) -> T:
    """Run to the end; an error of the driver is thrown into the generator, which may end the transaction and raise it again. So is what a
    handler of a signal raises between two of the steps.
    """
    sent: Any = None
    step: Callable[[Any], Effect] = steps.send
    with adapter.alone:
        while True:
            try:
                while True:
                    sent, step = adapter.do(step(sent)), steps.send
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            except BaseException as error:
                if getgeneratorstate(steps) == GEN_CLOSED:
                    raise
                sent, step = error, steps.throw


async def one_by_one(steps: Steps[T], do: Callable[[Effect], Awaitable[Any]]) -> T:
    """The same for a driver that awaits each statement."""
    try:
        effect = next(steps)
        while True:
            try:
                result = await do(effect)
            except BaseException as error:
                effect = steps.throw(error)
            else:
                effect = steps.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def one(effect: Effect) -> Steps[Any]:
    """An effect as steps."""
    return (yield effect)


def raising(error: BaseException) -> Steps[Any]:
    """An error as steps."""
    yield from ()
    raise error


def ending(steps: Steps[T]) -> Steps[T]:
    """Any error inside the caller's transaction ends it (R8): a swallowed one must not leave business rows without their fence."""
    try:
        return (yield from steps)
    except BaseException:
        yield Abort()
        raise
