"""`halfmsg check`: ask a producer now. The first tool when something is in doubt (R4)."""

from __future__ import annotations

import click

from . import http
from .common import Column, connected, json_option, rows

COLUMNS: tuple[Column, ...] = (
    ("id", lambda item: item["id"]),
    ("verdict", lambda item: item["verdict"]),
    ("detail", lambda item: item.get("detail")),
    ("took", lambda item: f"{item['took_ms']} ms" if item.get("took_ms") is not None else ""),
)


@click.command()
@click.argument("producer")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@json_option
@connected
def check(remote: http.Remote, producer: str, ids: tuple[str, ...], as_json: bool) -> None:
    """Ask PRODUCER about these transactions (else about all that are in doubt) and show its answer.

    The answer decides: a half message whose local transaction has not come to its fence yet is rolled back.

    Exit code 1 if one got no answer.
    """
    answer = remote.call("POST", http.path("producers", producer, "check"), {"ids": list(ids)} if ids else {})
    items = (answer or {}).get("items", [])
    rows(items, COLUMNS, as_json=as_json, empty=f"{producer} has nothing in doubt")
    if any(item["verdict"] == "no_answer" for item in items):
        raise click.exceptions.Exit(1)
