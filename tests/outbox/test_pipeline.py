"""psycopg's pipeline mode on the caller's connection: rows and status come only with a sync, and no promise may depend on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from halfmsg.outbox import Fenced, NotInTransaction

from .conftest import make_side
from .sides import Side, plain, settled
from .test_fenced import ask

pytestmark = pytest.mark.skipif(not psycopg.Pipeline.is_supported(), reason="this libpq has no pipeline mode")


@pytest_asyncio.fixture(params=["psycopg", "psycopg async"])
async def piped(request: pytest.FixtureRequest, folder: Any) -> AsyncIterator[Side]:
    one = make_side(request, folder, request.param)
    yield one
    await one.close()


@asynccontextmanager
async def within(side: Side, context: Any) -> AsyncIterator[None]:
    """A context of the driver's, in the side's colour."""
    if side.is_async:
        async with context:
            yield
    else:
        with context:
            yield


async def test_p2_publish_in_a_pipeline_is_like_any_other(piped: Side) -> None:
    """Numbers are read back, and rows and fence share the fate of what the caller had in flight."""
    conn = await piped.connect()
    async with within(piped, conn.pipeline()):
        await piped.business(conn)
        assert [(await settled(piped.outbox().publish(conn, "s", 1, key="k"))).sequence for _ in range(2)] == [1, 2]
    await piped.commit(conn)
    assert piped.counts() == (1, 2, 2)


async def test_r8_fenced_in_a_pipeline_takes_its_transaction_with_it(piped: Side) -> None:
    """Swallowed, it must not leave business rows without their fence: the status that says so comes only with a sync."""
    half = piped.outbox().prepared(plain())
    await ask(piped, half.id)
    conn = await piped.connect()
    async with within(piped, conn.pipeline()):
        await piped.business(conn)
        with pytest.raises(Fenced):
            await settled(half.fence(conn))
    await piped.commit(conn)  # the server answers it with a rollback
    assert piped.counts() == (0, 0, 1)


async def test_r8_autocommit_in_a_pipeline_is_told_by_the_server(piped: Side) -> None:
    """Autocommit is refused; a transaction that was begun in it is one."""
    conn = await piped.connect(autocommit=True)
    async with within(piped, conn.pipeline()):
        await piped.business(conn, "alone")
        with pytest.raises(NotInTransaction):
            await settled(piped.outbox().publish(conn, "u", 1))
        async with within(piped, conn.transaction()):
            await piped.business(conn)
            await settled(piped.outbox().publish(conn, "u", 1))
    assert piped.counts() == (2, 1, 1)


async def test_r8_error_of_the_callers_own_in_a_pipeline_is_not_outlived(piped: Side) -> None:
    """What the caller had in flight fails under the publish: his error comes out, and nothing of the transaction stays."""
    conn = await piped.connect()
    async with within(piped, conn.pipeline()):
        await piped.business(conn)
        await piped.business(conn)
        with pytest.raises(psycopg.errors.UniqueViolation):
            await settled(piped.outbox().publish(conn, "u", 1))
    await piped.commit(conn)
    assert piped.counts() == (0, 0, 0)
