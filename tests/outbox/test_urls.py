"""Which database a URL means, and what an operator's commands do where it is another one."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from halfmsg import Client, Inbox, Outbox, UsageError
from halfmsg.coordinator.cli.outbox import outbox as commands
from halfmsg.outbox import admin
from tests.support.stores import open_sqlite

from .sides import NOWHERE, Side, plain, postgres_side, settled, sqlite_side


def test_p2_relative_file_is_that_of_the_folder_where_the_outbox_was_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that goes to another folder goes on with its database; nothing is made in the other."""
    for name in ("web", "ops"):
        (folder / name).mkdir()
    monkeypatch.chdir(folder / "web")
    outbox, inbox = Outbox(Client(NOWHERE), "orders", "sqlite:///orders.db"), Inbox("sqlite:///orders.db")
    monkeypatch.chdir(folder / "ops")
    with outbox.transaction() as tx:
        tx.publish("u", 1)
    outbox._home.close_sync()
    assert inbox._home.url == outbox._home.url == f"sqlite:///{folder}/web/orders.db"
    assert [each.topic for each in admin.waiting(f"sqlite:///{folder}/web/orders.db")] == ["u"]
    assert list((folder / "ops").iterdir()) == []


@pytest.mark.parametrize(("made", "code"), [(False, "bad_url"), (True, "schema_missing")])
def test_p2_relay_makes_no_database_and_binds_no_name_to_it(folder: Path, monkeypatch: pytest.MonkeyPatch, made: bool, code: str) -> None:
    """Started in the wrong folder it says so and ends; it must not make an empty file, and take the producer's name for that one."""
    module = f"shop_{code}"
    (folder / f"{module}.py").write_text(f"from halfmsg import *\noutbox = Outbox(Client({NOWHERE!r}), 'orders', 'sqlite:///orders.db')\n")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    if made:
        with closing(sqlite3.connect("orders.db")) as conn:
            conn.execute("CREATE TABLE business (id TEXT)")
    before = {path.name: path.read_bytes() for path in folder.glob("orders.db*")}
    try:
        with pytest.raises(UsageError) as caught:
            admin.relay(f"{module}:outbox")
    finally:
        sys.modules.pop(module, None)
    assert caught.value.code == code
    assert {path.name: path.read_bytes() for path in folder.glob("orders.db*")} == before


@pytest.mark.parametrize("made_by", [Inbox, lambda url: Outbox(Client(NOWHERE), "orders", url)])
def test_options_in_the_url_of_a_file_are_refused(folder: Path, made_by: Any) -> None:
    """`?timeout=5`, as other libraries take it, must not become part of a file's name."""
    with pytest.raises(UsageError, match="options are not taken here") as caught:
        made_by(f"sqlite:///{folder}/orders.db?timeout=5")
    assert (caught.value.code, list(folder.iterdir())) == ("bad_url", [])


def _run(*words: str) -> str:
    done = CliRunner().invoke(commands, words)
    assert done.exit_code == 0, done.output
    return done.output


def test_command_of_the_error_makes_the_tables_of_another_prefix(server: str) -> None:
    """Outbox(tables="shop_"): what the error says is what has to be run, and every command takes the prefix."""
    side: Side = postgres_side(server, "psycopg")
    outbox = Outbox(Client(NOWHERE), "orders", side.url, tables="shop_")
    with closing(psycopg.connect(side.url)) as conn:
        with pytest.raises(UsageError, match=r"run: halfmsg outbox install URL --tables shop_$"):
            outbox.publish(conn, "u", 1)
        conn.rollback()
        assert "shop_meta" in _run("install", side.url, "--tables", "shop_")
        outbox.publish(conn, "u", 1)
        conn.commit()
    assert _run("verify", side.url, "--tables", "shop_").startswith("ok")
    assert "waits" in _run("ls", side.url, "--tables", "shop_")
    assert _run("retry", side.url, "--tables", "shop_").startswith("0 ")
    assert _run("resend", side.url, "--since", "2026-11-21T15:13:16.412Z", "--tables", "shop_").startswith("0 ")
    assert "nothing waits" in _run("ls", side.url)


def test_verify_names_the_command_with_the_prefix(folder: Path) -> None:
    """The line that is told is the next command."""
    file = folder / "orders.db"
    with closing(sqlite3.connect(file)) as conn:
        conn.execute("CREATE TABLE business (id TEXT)")
    told = admin.verify(f"sqlite:///{file}", "shop_")
    assert told[0] == f"table shop_meta is missing; run: halfmsg outbox install sqlite:///{file} --tables shop_"


# --- an Outbox that is not open, and a connection to another database -----------------------------------------------------------


async def _published(side: Side, outbox: Outbox, how: str) -> str:
    """What a service with such a connection is told."""
    conn = await side.connect()
    try:
        if how == "block":
            block: Any = outbox.transaction(conn)
            if side.is_async:
                async with block as tx:
                    await tx.publish("u", 1)
            else:
                with block as tx:
                    tx.publish("u", 1)
            return "published"
        await side.begin(conn)
        await side.business(conn)
        half = outbox.prepared(plain(None))
        await settled(outbox.publish(conn, "u", 1) if how == "publish" else half.fence(conn))
    except UsageError as error:
        return error.code
    finally:
        await side.commit(conn)
    return "published"


@pytest.mark.parametrize("how", ["publish", "fence", "block"])
async def test_p2_connection_to_another_database_is_refused_before_any_opening(folder: Path, server: str, side: Side, how: str) -> None:
    """Beside `halfmsg outbox relay` no Outbox of a web worker is ever open, and nobody would relay what it wrote into another database."""
    theirs = sqlite_side(folder, side.kind) if side.dialect == "sqlite" else postgres_side(server, side.kind)
    outbox = side.outbox()
    assert await _published(theirs, outbox, how) == "other_database"
    assert theirs.counts() == (0, 0, 0)
    assert await _published(side, outbox, how) == "published"
    assert await _published(theirs, outbox, how) == "other_database"
    await theirs.close()


async def test_p2_outbox_whose_database_cannot_be_read_goes_on(folder: Path, side: Side) -> None:
    """The look is a help: a URL that leads nowhere at this moment stops no publish, and makes no file."""
    nowhere = f"sqlite:///{folder}/none.db" if side.dialect == "sqlite" else "postgresql://nobody@127.0.0.1:9/none"
    outbox = Outbox(Client(NOWHERE), "orders", nowhere)
    assert await _published(side, outbox, "publish") == "published"
    assert (side.counts(), (folder / "none.db").exists()) == ((1, 1, 1), False)


async def test_block_on_a_connection_of_another_dialect_says_so(folder: Path, server: str, side: Side) -> None:
    """As `publish` does; not with what the other database says of our statements."""
    other = postgres_side(server, "psycopg") if side.dialect == "sqlite" else sqlite_side(folder, "sqlite3")
    assert await _published(side, other.outbox(), "block") == "other_database"


@pytest.mark.parametrize("command", ["install", "ls", "verify"])
def test_store_of_a_coordinator_is_no_database_of_a_service(folder: Path, command: str) -> None:
    """Its file is left as it is: page sums would call it damaged at the next start."""
    path = folder / "halfmsg.db"
    open_sqlite(path).close()
    before = path.read_bytes()
    done = CliRunner().invoke(commands, [command, f"sqlite:///{path}"])
    assert done.exit_code != 0
    assert path.read_bytes() == before
    with pytest.raises(UsageError, match="a coordinator's store"):
        admin.install(f"sqlite:///{path}")
