"""A small file of orders, and two scratch databases on this machine's PostgreSQL."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import psycopg.sql
import pytest

from halfmsg.samples.order_inventory import csvbook
from halfmsg.samples.order_inventory.data import DAY

LINES = 200
LONG = 1_050  # past the 1,000 messages of one halfmsg transaction: two half messages in one local transaction
SERVER = "postgresql://postgres@127.0.0.1:5432"


@pytest.fixture(scope="session")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first orders of the day, about 200 lines, a cancellation, and an invoice of 1,050 lines with three codes in turn."""
    rows = [csvbook.COLUMNS]
    for invoice in csvbook.read(DAY):
        if len(rows) <= LINES or invoice.cancels:
            rows += [_row(invoice, line) for line in invoice.lines]
    goods = [csvbook.Line(("85123A", "85123a", "Größe £")[n % 3], "", 1 + n % 7, "0.0") for n in range(LONG)]
    long = csvbook.Invoice("L1", "2010-12-01 20:00:00", "", "France", goods)
    rows += [_row(long, line) for line in long.lines]
    path = tmp_path_factory.mktemp("orders") / "small.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def _row(invoice: csvbook.Invoice, line: csvbook.Line) -> tuple[str, ...]:
    return (invoice.number, line.code, line.description, str(line.quantity), invoice.at, line.price, invoice.customer, invoice.country)


@pytest.fixture
def postgres() -> Iterator[tuple[str, str]]:
    """Two databases that are dropped afterwards. Where the server is away the test skips, but never in CI with a server on the machine."""
    names = [f"halfmsg_demo_{uuid4().hex[:12]}" for _ in range(2)]
    try:
        server = psycopg.connect(f"{SERVER}/postgres", autocommit=True, connect_timeout=3)
    except psycopg.OperationalError as error:
        if os.environ.get("CI") == "true" and Path("/usr/lib/postgresql").exists():
            pytest.fail(f"PostgreSQL is installed here and does not answer: {error}")
        pytest.skip(f"no PostgreSQL on 127.0.0.1:5432: {error}")
    with server:
        for name in names:
            server.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))
        try:
            yield f"{SERVER}/{names[0]}", f"{SERVER}/{names[1]}"
        finally:
            for name in names:
                server.execute(psycopg.sql.SQL("DROP DATABASE {} WITH (FORCE)").format(psycopg.sql.Identifier(name)))
