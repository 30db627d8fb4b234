"""The checker finds what is planted: books that are wrong in one place each."""

from __future__ import annotations

import ast
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from halfmsg.samples.order_inventory import checker

HEAD = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"
FILE = [("1", "A", 6), ("1", "B", 2), ("1", "A", 6), ("2", "A", 1), ("2", "a", 3), ("C3", "A", -6)]


@dataclass(frozen=True)
class Shop:
    """A file and the two databases as they stand after a good day."""

    file: Path
    orders: Path
    inventory: Path

    def check(self) -> checker.Books:
        return checker.check(self.file, f"sqlite:///{self.orders}", f"sqlite:///{self.inventory}")

    def spoil(self, where: str, *statements: str) -> checker.Books:
        with closing(sqlite3.connect(self.orders if where == "orders" else self.inventory)) as db, db:
            for statement in statements:
                assert db.execute(statement).rowcount > 0, f"spoils nothing: {statement}"
        return self.check()


def _lines() -> Iterator[tuple[str, str, int, int, int]]:
    """(code, invoice, line, quantity, number), committed in the file's order."""
    places: dict[str, int] = {}
    numbers: dict[str, int] = {}
    for invoice, code, quantity in FILE:
        places[invoice] = places.get(invoice, 0) + 1
        numbers[code] = numbers.get(code, 0) + 1
        yield code, invoice, places[invoice], quantity, numbers[code]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    found = Shop(tmp_path / "day.csv", tmp_path / "orders.db", tmp_path / "inventory.db")
    found.file.write_text("\n".join([HEAD, *(f"{i},{code},,{n},2010-12-01 08:26:00,0.0,,UK" for i, code, n in FILE)]) + "\n")
    with closing(sqlite3.connect(found.orders)) as db, db:
        db.execute("CREATE TABLE order_line (id INTEGER PRIMARY KEY, code, invoice, line, quantity, number)")
        db.execute("CREATE TABLE invoice (invoice, lines, answered)")
        db.executemany("INSERT INTO order_line (code, invoice, line, quantity, number) VALUES (?, ?, ?, ?, ?)", _lines())
        db.executemany("INSERT INTO invoice VALUES (?, ?, ?)", [("1", 3, 3), ("2", 2, 2), ("C3", 1, 1)])
    with closing(sqlite3.connect(found.inventory)) as db, db:
        db.execute("CREATE TABLE move (id INTEGER PRIMARY KEY, code, invoice, line, quantity, number)")
        db.execute("CREATE TABLE stock (code, quantity, moves)")
        moves = [(code, invoice, line, -quantity, number) for code, invoice, line, quantity, number in _lines()]
        db.executemany("INSERT INTO move (code, invoice, line, quantity, number) VALUES (?, ?, ?, ?, ?)", moves)
        db.executemany("INSERT INTO stock VALUES (?, ?, ?)", [("A", -7, 4), ("B", -2, 1), ("a", -3, 1)])
    return found


def test_good_books_balance(shop: Shop) -> None:
    """Without this the other tests would prove nothing."""
    books = shop.check()
    assert books.problems == []
    assert (books.invoices, books.cancellations, books.lines, books.codes, books.sold, books.moves, books.answered) == (3, 1, 6, 3, 12, 6, 6)


def test_other_keys_may_overtake(shop: Shop) -> None:
    """Order is per stock code: B before A is no inversion."""
    assert shop.spoil("inventory", "UPDATE move SET id = -1 WHERE code = 'B'").balanced


def test_invoices_may_be_committed_in_another_order(shop: Shop) -> None:
    """The order service's commits are the order, not the file: here invoice 2 was committed first, in both databases."""
    renumber = [
        "UPDATE {} SET id = id - 100 WHERE invoice = '2'",
        "UPDATE {} SET number = number + 1 WHERE code = 'A' AND invoice = '1'",
        "UPDATE {} SET number = 1 WHERE code = 'A' AND invoice = '2'",
    ]
    shop.spoil("orders", *(each.format("order_line") for each in renumber))
    assert shop.spoil("inventory", *(each.format("move") for each in renumber)).problems == []


Plant = tuple[str, list[str], str]
PLANTS: dict[str, Plant] = {
    "missing move": ("inventory", ["DELETE FROM move WHERE invoice = '2' AND line = 2"], "inventory: lines missing: 2 line 2"),
    "doubled move": (
        "inventory",
        ["INSERT INTO move (code, invoice, line, quantity, number) SELECT code, invoice, line, quantity, number FROM move WHERE code = 'B'"],
        "inventory: lines more than once: 1 line 2 2 times",
    ),
    "extra move": ("inventory", ["INSERT INTO move VALUES (99, 'B', '9', 1, -1, 2)"], "inventory: lines that the file has not: 9 line 1"),
    "inverted moves": (
        "inventory",
        ["UPDATE move SET id = 50 WHERE invoice = '1' AND line = 3"],
        "effects not in the order of the commits: 'A' at its effect 2: 2 line 1 where 1 line 3 was committed",
    ),
    "two equal lines inverted": (
        "inventory",
        ["UPDATE move SET line = CASE line WHEN 1 THEN 3 ELSE 1 END WHERE invoice = '1' AND code = 'A'"],
        "effects not in the order of the commits: 'A' at its effect 1: 1 line 3 where 1 line 1 was committed",
    ),
    "wrong quantity": (
        "inventory",
        ["UPDATE move SET quantity = -5 WHERE invoice = '1' AND line = 1"],
        "inventory: lines with other goods: 1 line 1 5 of 'A', not 6 of 'A'",
    ),
    "wrong code": (
        "inventory",
        ["UPDATE move SET code = 'A' WHERE code = 'a'"],
        "inventory: lines with other goods: 2 line 2 3 of 'A', not 3 of 'a'",
    ),
    "wrong sum": ("inventory", ["UPDATE stock SET quantity = -13 WHERE code = 'A'"], "stock that is not the file's sum: 'A' -13, not -7"),
    "wrong count": ("inventory", ["UPDATE stock SET moves = 5 WHERE code = 'A'"], "stock with another number of moves: 'A' 5, not 4"),
    "missing stock": ("inventory", ["DELETE FROM stock WHERE code = 'a'"], "stock that is not the file's sum: 'a' 0, not -3"),
    "extra stock": ("inventory", ["INSERT INTO stock VALUES ('Z', 0, 0)"], "stock codes that the file has not: 'Z'"),
    "number skipped": ("inventory", ["UPDATE move SET number = 9 WHERE code = 'B'"], "inventory: numbers of a stock code are not 1, 2, 3, ...: 'B'"),
    "line not stored": ("orders", ["DELETE FROM order_line WHERE code = 'B'"], "order service: lines missing: 1 line 2"),
    "line stored twice": (
        "orders",
        ["INSERT INTO order_line (code, invoice, line, quantity, number) SELECT code, invoice, line, quantity, 2 FROM order_line WHERE code = 'B'"],
        "order service: lines more than once: 1 line 2 2 times",
    ),
    "invoice torn apart": (
        "orders",
        ["UPDATE order_line SET id = 50 WHERE invoice = '1' AND line = 3"],
        "an invoice's lines of one stock code are not together and in their order: 'A'",
    ),
    "invoice missing": ("orders", ["DELETE FROM invoice WHERE invoice = 'C3'"], "invoices missing: C3"),
    "extra invoice": ("orders", ["INSERT INTO invoice VALUES ('9', 1, 1)"], "invoices that the file has not: 9"),
    "fewer lines": ("orders", ["UPDATE invoice SET lines = 1 WHERE invoice = '2'"], "invoices with another number of lines: 2 1, not 2"),
    "unanswered line": ("orders", ["UPDATE invoice SET answered = 2 WHERE invoice = '1'"], "invoices not answered line by line, once: 1 2 of 3"),
    "line answered twice": ("orders", ["UPDATE invoice SET answered = 4 WHERE invoice = '1'"], "invoices not answered line by line, once: 1 4 of 3"),
}


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS.keys())
def test_planted_mistake_is_found(shop: Shop, plant: Plant) -> None:
    """Each is named with its place."""
    where, statements, says = plant
    assert says in shop.spoil(where, *statements).problems


def test_problem_shows_five_examples_and_how_many_more(shop: Shop) -> None:
    """A thousand missing lines are one line on the screen."""
    [problem, *_] = shop.spoil("inventory", "DELETE FROM move").problems
    assert problem.startswith("inventory: lines missing: ")
    assert problem.endswith(", and 1 more")


@pytest.mark.parametrize(
    ("full", "says"),
    [
        ("/v1/transactions?state=prepared&", "coordinator: transactions that are prepared: 018f"),
        ("/v1/transactions?state=parked&", "coordinator: transactions that are parked: 018f"),
        ("/v1/groups/orders/dead-letters?", "coordinator: dead letters of groups/orders: 018f"),
        ("/v1/groups/inventory/dead-letters?", "coordinator: dead letters of groups/inventory: 018f"),
        ("/v1/topics/stock.move/dead-letters?", "coordinator: dead letters of topics/stock.move: 018f"),
        ("/v1/topics/stock.reserved/dead-letters?", "coordinator: dead letters of topics/stock.reserved: 018f"),
        ("/v1/keys?", "coordinator: stock codes that wait for a number: 018f"),
    ],
)
def test_what_the_coordinator_holds_back_is_found(shop: Shop, full: str, says: str) -> None:
    """Books that balance while a transaction waits for its decision, or a message lies dead, do not."""
    with _coordinator(full) as url:
        books = checker.check(shop.file, f"sqlite:///{shop.orders}", f"sqlite:///{shop.inventory}", url)
    assert books.problems == [says]


@contextmanager
def _coordinator(full: str) -> Iterator[str]:
    """A server whose lists are empty, but for the second page of the one whose address begins so."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            second = self.path.endswith("cursor=1")
            items = [{"id": "018f"}] if second and self.path.startswith(full) else []
            body = json.dumps({"items": items, "next": None if second else "1"}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_checker_imports_nothing_of_the_sample_or_the_library() -> None:
    """It would share their mistakes."""
    tree = ast.parse(Path(checker.__file__).read_text(encoding="utf-8"))
    relative = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert not relative
    assert not [name for name in names if name.startswith("halfmsg")]
