"""What commands share: options, durations, and rows as JSON lines, as a table on a terminal, or as plain lines in a pipe."""

from __future__ import annotations

import functools
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

import click

from . import http

Item = dict[str, Any]
Column = tuple[str, Callable[[Item], object]]
"""Title and what of an item stands there; None and "" show as `-`."""

WHOLE = ("id", "state")
"""Columns never broken over two lines of a terminal: an id is copied into the next command, a state is one word."""
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")


class Duration(click.ParamType[float]):
    """`60s`, `5m`, `2h`, `7d`; a bare number is seconds. Gives seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        found = _DURATION.fullmatch(value.strip())
        if found is None:
            self.fail(f"{value!r} is not a duration such as 60s, 5m, 2h or 7d", param, ctx)
        return float(found[1]) * _UNITS[found[2] or "s"]


DURATION = Duration()


def connected(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --url and -v; the command's first argument is the coordinator (`http.Remote`)."""

    @click.option("--url", envvar="HALFMSG_URL", default=http.DEFAULT_URL, show_default=True, help="The coordinator; or HALFMSG_URL.")
    @click.option("-v", "--verbose", is_flag=True, help="Print the HTTP calls.")
    @functools.wraps(command)
    def inner(*args: Any, url: str, verbose: bool, **kwargs: Any) -> Any:
        http.check_namespace()
        return command(http.Remote(url, http.token(), verbose=verbose), *args, **kwargs)

    return inner


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="One JSON object a line, as HTTP gives it.")(command)


def paged(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --json, --limit and --cursor."""
    command = click.option("--cursor", help="Go on where an earlier page ended.")(command)
    command = click.option("--limit", type=click.IntRange(1, 1_000), default=100, show_default=True, help="Rows of one page.")(command)
    return json_option(command)


reason_option = click.option("--reason", required=True, help="Why; it is stored with the act.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


def confirm(question: str, yes: bool) -> None:
    """Ask on a terminal; a script is never asked. No is exit code 130."""
    if not yes and sys.stdin.isatty() and sys.stdout.isatty():
        click.confirm(question, abort=True)


def page(answer: Mapping[str, Any], columns: Iterable[Column], *, as_json: bool, empty: str) -> None:
    """`{items, next}`. Where the next page begins is told on stderr, so that stdout stays rows."""
    rows(answer["items"], columns, as_json=as_json, empty=empty)
    if answer.get("next"):
        click.echo(f"more: --cursor {answer['next']}", err=True)


def rows(items: list[Item], columns: Iterable[Column], *, as_json: bool, empty: str) -> None:
    if as_json:
        for item in items:
            emit(item)
        return
    columns = list(columns)
    cells = [[_cell(value(item)) for _, value in columns] for item in items]
    if not items:
        click.echo(empty, err=True)
    elif sys.stdout.isatty():
        _table([title for title, _ in columns], cells)
    else:
        for line in cells:
            click.echo("\t".join(line))


def emit(item: object) -> None:
    click.echo(json.dumps(item, ensure_ascii=False, separators=(",", ":")))


def fields(item: Item, *, as_json: bool, leave_out: tuple[str, ...] = ()) -> None:
    """One thing: a name and a value a line."""
    if as_json:
        emit(item)
        return
    shown = {name: value for name, value in item.items() if name not in leave_out}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        click.echo(f"{name:<{width}}  {_cell(value)}")


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, ensure_ascii=False) if value else "-"
    return str(value)


def _table(titles: list[str], cells: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, overflow="fold", no_wrap=title in WHOLE)
    for line in cells:
        table.add_row(*map(Text, line))
    Console().print(table)


def finding(row: Mapping[str, Any]) -> str:
    """A row of `doctor`: `message=018f…-0  topic=orders`; what says all by itself has no name before it, and ids are as other commands take them."""
    if len(row) == 1 and (words := row.get("next") or row.get("error")):
        return str(words)
    return "  ".join(f"{name}={_id(value)}" for name, value in row.items())


def _id(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[0-9A-Fa-f]{32}", value):
        return "-".join(value.lower()[start:end] for start, end in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)))
    return _cell(value)


def now_ms() -> int:
    return int(time.time() * 1000)


def ms_of(text: str) -> int:
    """RFC 3339 to ms since 1970."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def age(text: str | None, now: int | None = None) -> str:
    """How long ago, as a person says it: `0.4s`, `6m12s`, `3d4h`."""
    return "" if text is None else span(max((now_ms() if now is None else now) - ms_of(text), 0))


def span(ms: float) -> str:
    if ms < 1_000:
        return f"{ms:.0f}ms"
    if ms < 60_000:
        return f"{ms / 1_000:.1f}s"
    for unit, size, small, small_size in (("d", 86_400, "h", 3_600), ("h", 3_600, "m", 60), ("m", 60, "s", 1)):
        whole, rest = divmod(int(ms / 1_000), size)
        if whole:
            return f"{whole}{unit}{rest // small_size}{small}"
    return f"{ms:.0f}ms"


def clock(text: str) -> str:
    """The time of day of an RFC 3339 time in UTC: `12:00:01.213`."""
    return text[11:23].rstrip("Z")


def pairs(given: tuple[str, ...], what: str) -> dict[str, str]:
    """`name=value` options. A wrong one is wrong usage."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise click.UsageError(f"{what} {text!r} is not name=value")
        found[name] = value
    return found
