"""Counts the books: what the file says must have happened, against what the two databases say did happen.

Imports nothing of the sample and nothing of halfmsg: it reads the file, the databases and the coordinator's lists for itself, so that
a mistake in the sample's reader or in the library can't hide itself here.
"""

from __future__ import annotations

import csv
import gzip
import json
import sqlite3
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, LiteralString, TypeAlias

EXAMPLES_MAX: Final = 5
ANSWER_S: Final = 10

Place: TypeAlias = tuple[str, int]  # an invoice, and the place of a line in it
Goods: TypeAlias = tuple[str, int]  # a stock code, and how many were sold


@dataclass(slots=True)
class Books:
    """What was counted, and what is wrong; balanced where nothing is."""

    invoices: int = 0
    cancellations: int = 0
    lines: int = 0
    codes: int = 0
    sold: int = 0
    orders_in: int = 0
    moves: int = 0
    answered: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def balanced(self) -> bool:
        return not self.problems

    def wrong(self, what: str, examples: Iterable[object]) -> None:
        """Note a problem with its first few examples; without any there is none."""
        found = [str(example) for example in examples]
        if found:
            more = f", and {len(found) - EXAMPLES_MAX:,} more" if len(found) > EXAMPLES_MAX else ""
            self.problems.append(f"{what}: {', '.join(found[:EXAMPLES_MAX])}{more}")


def check(file: Path, orders: str, inventory: str, coordinator: str | None = None) -> Books:
    """Count it all. `orders` and `inventory` are database URLs; with `coordinator` nothing may be in doubt there, parked or dead."""
    expected = _expected(file)
    books = Books(
        invoices=len({invoice for invoice, _ in expected}),
        cancellations=len({invoice for invoice, _ in expected if invoice.startswith("C")}),
        lines=len(expected),
        codes=len({code for code, _ in expected.values()}),
        sold=sum(quantity for _, quantity in expected.values()),
    )
    placed = _rows(orders, "SELECT code, invoice, line, quantity, number FROM order_line ORDER BY id")
    moved = _rows(inventory, "SELECT code, invoice, line, -quantity, number FROM move ORDER BY id")
    _every_line_once(books, "order service", expected, placed)
    _every_line_once(books, "inventory", expected, moved)
    _same_order(books, placed, moved)
    _stock(books, expected, _rows(inventory, "SELECT code, quantity, moves FROM stock"))
    _answers(books, expected, _rows(orders, "SELECT invoice, lines, answered FROM invoice"))
    books.moves = len(moved)
    if coordinator is not None:
        _coordinator(books, coordinator)
    return books


def _expected(file: Path) -> dict[Place, Goods]:
    """Each line of the file by invoice and place, in the file's order."""
    with file.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    found: dict[Place, Goods] = {}
    places: Counter[str] = Counter()
    with gzip.open(file, "rt", encoding="utf-8-sig", newline="") if packed else file.open(encoding="utf-8-sig", newline="") as text:
        for row in csv.DictReader(text):
            places[row["InvoiceNo"]] += 1
            found[row["InvoiceNo"], places[row["InvoiceNo"]]] = (row["StockCode"], int(row["Quantity"]))
    return found


def _every_line_once(books: Books, where: str, expected: Mapping[Place, Goods], rows: Sequence[tuple[Any, ...]]) -> None:
    times: Counter[Place] = Counter((invoice, line) for _, invoice, line, _, _ in rows)
    books.wrong(f"{where}: lines missing", map(_name, expected.keys() - times.keys()))
    books.wrong(f"{where}: lines that the file has not", map(_name, times.keys() - expected.keys()))
    books.wrong(f"{where}: lines more than once", (f"{_name(place)} {n} times" for place, n in times.items() if n > 1))
    books.wrong(
        f"{where}: lines with other goods",
        (
            f"{_name((invoice, line))} {quantity} of {code!r}, not {expected[invoice, line][1]} of {expected[invoice, line][0]!r}"
            for code, invoice, line, quantity, _ in rows
            if (invoice, line) in expected and expected[invoice, line] != (code, quantity)
        ),
    )


def _same_order(books: Books, placed: Sequence[tuple[Any, ...]], moved: Sequence[tuple[Any, ...]]) -> None:
    """Per stock code: effects in the order of the order service's commits, an invoice's own lines in their order and together."""
    commits, effects = _by_code(placed), _by_code(moved)
    books.wrong(
        "effects not in the order of the commits",
        (
            f"{code!r} at its effect {at}: {_name(effect[:2])} where {_name(commit[:2])} was committed"
            for code, at, commit, effect in _first_differences(commits, effects)
        ),
    )
    for where, rows in (("order service", commits), ("inventory", effects)):
        books.wrong(f"{where}: numbers of a stock code are not 1, 2, 3, ...", (
            repr(code) for code, lines in rows.items() if [number for _, _, number in lines] != list(range(1, len(lines) + 1))
        ))  # fmt: skip
    books.wrong("an invoice's lines of one stock code are not together and in their order", (
        repr(code) for code, lines in commits.items() if not _in_invoice_order([line[:2] for line in lines])
    ))  # fmt: skip


def _by_code(rows: Iterable[tuple[Any, ...]]) -> dict[str, list[tuple[Any, ...]]]:
    found: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for code, invoice, line, _, number in rows:
        found[code].append((invoice, line, number))
    return found


def _first_differences(
    commits: Mapping[str, list[tuple[Any, ...]]], effects: Mapping[str, list[tuple[Any, ...]]]
) -> Iterable[tuple[str, int, tuple[Any, ...], tuple[Any, ...]]]:
    for code, lines in commits.items():
        for at, (commit, effect) in enumerate(zip(lines, effects.get(code, ()), strict=False), 1):
            if commit != effect:
                yield code, at, commit, effect
                break


def _in_invoice_order(lines: Sequence[Place]) -> bool:
    seen: set[str] = set()
    before: Place = ("", 0)
    for invoice, line in lines:
        if invoice == before[0] and line <= before[1]:
            return False
        if invoice != before[0] and invoice in seen:
            return False
        seen.add(invoice)
        before = (invoice, line)
    return True


def _stock(books: Books, expected: Mapping[Place, Goods], rows: Sequence[tuple[Any, ...]]) -> None:
    left: Counter[str] = Counter()
    moves: Counter[str] = Counter()
    for code, quantity in expected.values():
        left[code] -= quantity
        moves[code] += 1
    found = {code: (quantity, n) for code, quantity, n in rows}
    books.wrong("stock codes that the file has not", map(repr, found.keys() - moves.keys()))
    books.wrong("stock that is not the file's sum", (
        f"{code!r} {found.get(code, (0, 0))[0]}, not {left[code]}" for code in moves if found.get(code, (0, 0))[0] != left[code]
    ))  # fmt: skip
    books.wrong("stock with another number of moves", (
        f"{code!r} {found.get(code, (0, 0))[1]}, not {n}" for code, n in moves.items() if found.get(code, (0, 0))[1] != n
    ))  # fmt: skip


def _answers(books: Books, expected: Mapping[Place, Goods], rows: Sequence[tuple[Any, ...]]) -> None:
    lines = Counter(invoice for invoice, _ in expected)
    found = {invoice: (n, answered) for invoice, n, answered in rows}
    books.orders_in = len(found)
    books.answered = sum(answered for _, answered in found.values())
    books.wrong("invoices missing", lines.keys() - found.keys())
    books.wrong("invoices that the file has not", found.keys() - lines.keys())
    books.wrong("invoices with another number of lines", (f"{i} {n}, not {lines[i]}" for i, (n, _) in found.items() if i in lines and n != lines[i]))
    books.wrong("invoices not answered line by line, once", (f"{i} {a} of {lines[i]}" for i, (_, a) in found.items() if i in lines and a != lines[i]))


def _coordinator(books: Books, url: str) -> None:
    """Its lists of what is not done: each must be empty."""
    for state in ("prepared", "parked"):
        books.wrong(f"coordinator: transactions that are {state}", _ids(f"{url}/v1/transactions?state={state}&limit=1000"))
    for scope in ("groups/inventory", "groups/orders", "topics/stock.move", "topics/stock.reserved"):
        books.wrong(f"coordinator: dead letters of {scope}", _ids(f"{url}/v1/{scope}/dead-letters?limit=1000"))
    books.wrong("coordinator: stock codes that wait for a number", _ids(f"{url}/v1/keys?limit=1000"))


def _ids(url: str) -> list[str]:
    """Of all pages: one may be empty and not the last, where the coordinator looked at many others."""
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        with urllib.request.urlopen(f"{url}&cursor={cursor}", timeout=ANSWER_S) as answer:
            page = json.load(answer)
        found += [" ".join(str(item[name]) for name in ("id", "key") if item.get(name)) for item in page["items"]]
        cursor = page.get("next")
    return found


def _rows(url: str, sql: LiteralString) -> list[tuple[Any, ...]]:
    if url.startswith("sqlite:///"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=30)) as file:
            return file.execute(sql).fetchall()
    import psycopg

    with psycopg.connect(url) as server:
        return server.execute(sql).fetchall()


def _name(place: Sequence[Any]) -> str:
    return f"{place[0]} line {place[1]}"
