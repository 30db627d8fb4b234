"""What the demo prints: an aligned banner, lines with the time of day, and the books."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from halfmsg import __version__

from .checker import Books
from .data import ATTRIBUTION
from .processes import Trio

LABEL = 14
WHAT = 66


def console() -> Console:
    return Console(highlight=False, soft_wrap=True)


class Screen:
    def __init__(self, out: Console) -> None:
        self.out = out

    def line(self, text: str = "") -> None:
        self.out.print(f"  {text}" if text else "", markup=False)

    def event(self, what: str, took: float | None = None) -> None:
        """A line of the story: the time of day, what happened, how long it took."""
        clock = datetime.now().strftime("%H:%M:%S")
        self.line(f"{clock}  {what}" if took is None else f"{clock}  {what:<{WHAT}} {duration(took):>7}")

    def banner(self, trio: Trio, file: Path, own: bool, storage: str, seed: int) -> None:
        self.line()
        self.line(f"halfmsg {__version__} demo    order service  ->  coordinator  ->  inventory service")
        self.line()
        self._labelled("Coordinator", trio.coordinator.url, "API  /openapi.json")
        self._labelled("Orders", trio.orders.url, "one invoice, one local transaction:  POST /invoices")
        self._labelled("Inventory", trio.inventory.url, "each line moves stock once:  GET /stock/{code}")
        self._labelled("Metrics", f"{trio.coordinator.url}/metrics")
        self._labelled("Data", storage)
        self._labelled("Real orders", ATTRIBUTION if own else str(file))
        self._labelled("Seed", f"{seed}   (the same kills again: --seed {seed})")
        for taken in trio.moved:
            self._labelled("Note", taken)
        self.line()

    def _labelled(self, label: str, value: str, remark: str = "") -> None:
        self.line(f"{label:<{LABEL}}{value:<30}{remark}".rstrip())

    def bar(self) -> Progress:
        return Progress(
            TextColumn("            "), TextColumn("{task.description:<16}"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[remark]}"), console=self.out,
        )  # fmt: skip

    def books(self, books: Books, kills: Sequence[tuple[str, int]]) -> None:
        self.line()
        self.line("Books")
        self._labelled(
            "  orders", f"{books.orders_in:,} of {books.invoices:,} invoices in ({books.cancellations:,} cancellations), {books.lines:,} lines"
        )
        self._labelled("  moves", f"{books.moves:,} of {books.lines:,} applied" + (", each exactly once" if books.balanced else ""))
        if books.balanced:
            self._labelled("  order", f"{books.codes:,} stock codes, each in the order of the order service's commits")
            self._labelled("  stock", f"{-books.sold:+,} pieces, for every code the file's sum")
            self._labelled("  answers", f"{books.answered:,}; every invoice is complete")
            self._labelled("  in doubt", "nothing; nothing parked, no dead letters")
        self._labelled("  kill -9", ", ".join(f"{name} {n}" for name, n in kills))
        self.line()

    def problems(self, title: str, problems: Sequence[str], folder: Path) -> None:
        """What is wrong, each on a line of its own, and where to look."""
        self.line()
        self.line(title)
        for problem in problems:
            self.line(f"  - {problem}")
        self.line(f"Databases and logs are kept in {folder}")
        self.line()


def duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
