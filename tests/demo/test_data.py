"""The orders that the sample ships, and its reader."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import pytest

from halfmsg.samples.order_inventory import csvbook
from halfmsg.samples.order_inventory.data import ATTRIBUTION, DAY

HEAD = ",".join(csvbook.COLUMNS)
ROW = '536365,85123A,"LANTERN, ""WHITE""",6,2010-12-01 08:26:00,2.55,17850.0,United Kingdom'


@pytest.fixture(scope="module")
def day() -> list[csvbook.Invoice]:
    return csvbook.read(DAY)


def _file(folder: Path, *rows: str, head: str = HEAD) -> Path:
    path = folder / "orders.csv"
    path.write_text("\n".join((head, *rows)) + "\n", encoding="utf-8")
    return path


def test_day_has_143_invoices_and_3108_lines(day: list[csvbook.Invoice]) -> None:
    """The books of `make demo` are counted from these."""
    assert (len(day), sum(len(invoice.lines) for invoice in day)) == (143, 3_108)
    assert sum(invoice.cancels for invoice in day) == 6


def test_day_keeps_its_dirt(day: list[csvbook.Invoice]) -> None:
    """Real orders are not clean, and a line that is left out would be stock that nobody moved."""
    lines = [line for invoice in day for line in invoice.lines]
    assert {line.code for line in lines} >= {"POST", "D", "M", "DOT", "C2"}
    assert sum(float(line.price) <= 0 for line in lines) == 10
    assert sum(not line.description for line in lines) == 10
    assert sum(not invoice.customer for invoice in day for _ in invoice.lines) == 1_140
    assert sum(line.quantity < 0 for invoice in day for line in invoice.lines if not invoice.cancels) == 1
    repeated = Counter((invoice.number, line) for invoice in day for line in invoice.lines)
    assert sum(times - 1 for times in repeated.values()) == 44


def test_attribution_names_author_source_and_licence() -> None:
    """CC BY 4.0 asks for it."""
    assert all(word in ATTRIBUTION for word in ("Daqing Chen", "2015", "CC BY 4.0", "10.24432/C5BW33"))


def test_reader_takes_plain_and_gzipped_files(tmp_path: Path) -> None:
    """Any file of the form."""
    plain = _file(tmp_path, ROW)
    packed = tmp_path / "packed"  # known by its content, not by its name
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert csvbook.read(plain) == csvbook.read(packed)


def test_reader_keeps_codes_byte_for_byte_and_repeated_lines(tmp_path: Path) -> None:
    """`85123A`, `85123a` and ` 85123A` are three stock codes; the same line twice is two lines."""
    [invoice] = csvbook.read(
        _file(tmp_path, ROW, ROW, ROW.replace("85123A", "85123a"), ROW.replace("85123A", " 85123A"), ROW.replace("85123A", "Größe £"))
    )
    assert [line.code for line in invoice.lines] == ["85123A", "85123A", "85123a", " 85123A", "Größe £"]
    assert invoice.lines[0].description == 'LANTERN, "WHITE"'


def test_reader_gathers_an_invoice_whose_lines_stand_apart(tmp_path: Path) -> None:
    """One invoice is one transaction, wherever its rows stand."""
    first, second = csvbook.read(_file(tmp_path, ROW, ROW.replace("536365", "C9"), ROW))
    assert (first.number, len(first.lines), second.number, len(second.lines), second.cancels) == ("536365", 2, "C9", 1, True)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (ROW.replace("85123A", ""), "row 3: StockCode '' has 0 bytes"),
        (ROW.replace("85123A", "x" * 257), "has 257 bytes"),
        (ROW.replace(",6,", ",six,"), "row 3: invalid literal for int"),
        (ROW.replace("536365", ""), "row 3: no InvoiceNo"),
        ("536365,85123A", "row 3: 2 fields, not 8"),
    ],
)
def test_reader_names_the_row_that_is_no_order(tmp_path: Path, row: str, says: str) -> None:
    """What can't be an order is refused before anything is started."""
    with pytest.raises(csvbook.BadFile, match=says):
        csvbook.read(_file(tmp_path, ROW, row))


@pytest.mark.parametrize(("head", "rows", "says"), [("a,b", [ROW], "the first row is 'a,b'"), (HEAD, [], "has no orders")])
def test_reader_refuses_another_form(tmp_path: Path, head: str, rows: list[str], says: str) -> None:
    """A file of another form, or of none."""
    with pytest.raises(csvbook.BadFile, match=says):
        csvbook.read(_file(tmp_path, *rows, head=head))


def test_reader_says_what_it_cannot_read(tmp_path: Path) -> None:
    """Absent, cut short, or no text."""
    with pytest.raises(csvbook.BadFile, match="cannot read"):
        csvbook.read(tmp_path / "absent.csv")
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(DAY.read_bytes()[:1_000])
    with pytest.raises(csvbook.BadFile, match="cannot read"):
        csvbook.read(cut)
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\xff\xff" * 40)
    with pytest.raises(csvbook.BadFile, match="cannot read"):
        csvbook.read(binary)
