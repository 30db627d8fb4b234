"""Reads a file of the form of "Online Retail": one row per invoice line, plain or gzipped.

What is odd is kept as it stands: stock codes such as `POST` or `gift_0001_40`, two codes that differ in case only, prices of zero, no
customer, the same line twice. A row is refused only where it can't be an order at all: no invoice, no code, no whole quantity.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

COLUMNS: Final = ("InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country")
KEY_BYTES_MAX: Final = 256  # an ordering key's limit; a stock code is one
_GZIP_MAGIC: Final = b"\x1f\x8b"


class BadFile(Exception):
    """The file can't be read as orders; the text says where and why."""


@dataclass(frozen=True, slots=True)
class Line:
    code: str
    description: str
    quantity: int  # sold; negative where goods come back
    price: str  # as written: nobody computes with it


@dataclass(frozen=True, slots=True)
class Invoice:
    """An order, or with a number that begins with C the cancellation of goods sold before."""

    number: str
    at: str
    customer: str  # "" where the file has none
    country: str
    lines: list[Line] = field(default_factory=list)

    @property
    def cancels(self) -> bool:
        return self.number.startswith("C")

    def as_json(self) -> dict[str, Any]:
        """What the order service is sent."""
        lines = [{"code": line.code, "description": line.description, "quantity": line.quantity, "price": line.price} for line in self.lines]
        return {"invoice": self.number, "at": self.at, "customer": self.customer, "country": self.country, "lines": lines}


def read(path: Path) -> list[Invoice]:
    """The invoices in the file's order, each with its lines in the file's order. Raises BadFile."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == _GZIP_MAGIC
        with gzip.open(path, "rt", encoding="utf-8-sig", newline="") if packed else path.open(encoding="utf-8-sig", newline="") as text:
            return _invoices(path, csv.reader(text, strict=True))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise BadFile(f"cannot read {path}: {error}") from error


def _invoices(path: Path, rows: Iterable[list[str]]) -> list[Invoice]:
    found: dict[str, Invoice] = {}
    numbered = enumerate(rows, 1)
    _, head = next(numbered, (1, []))
    if tuple(head) != COLUMNS:
        raise BadFile(f"{path}: the first row is {','.join(head)!r}, not {','.join(COLUMNS)!r}")
    for at, row in numbered:
        if not row:
            continue  # an empty line, as some programs leave at the end
        try:
            number, line, header = _row(row)
        except ValueError as error:
            raise BadFile(f"{path}, row {at}: {error}") from error
        found.setdefault(number, Invoice(number, *header)).lines.append(line)
    if not found:
        raise BadFile(f"{path} has no orders")
    return list(found.values())


def _row(row: list[str]) -> tuple[str, Line, tuple[str, str, str]]:
    if len(row) != len(COLUMNS):
        raise ValueError(f"{len(row)} fields, not {len(COLUMNS)}")
    number, code, description, quantity, at, price, customer, country = row
    if not number:
        raise ValueError("no InvoiceNo")
    if not 1 <= len(code.encode()) <= KEY_BYTES_MAX:
        raise ValueError(f"StockCode {code[:40]!r} has {len(code.encode())} bytes; 1 to {KEY_BYTES_MAX} can be an ordering key")
    return number, Line(code, description, int(quantity), price), (at, customer, country)
