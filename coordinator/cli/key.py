"""`halfmsg key`: ordering keys, the gap a key waits for, and what is held behind it (R5)."""

from __future__ import annotations

import click

from . import http
from .common import Column, Item, connected, json_option, page, paged, rows, span
from .lazy import Failure, Noun


def _waits(item: Item) -> str:
    if blocked := item.get("blocked"):
        return f"failed {blocked['attempts']}x ({blocked.get('error') or 'no reason given'}), {blocked['waiting']} wait behind it"
    if item.get("stopped"):
        return f"stopped at {item['next']}: another message has one of its numbers"
    held = item.get("held") or []
    return f"waits for {item['next']}, has {','.join(map(str, held))}" if held else f"next {item['next']}"


COLUMNS: tuple[Column, ...] = (
    ("topic", lambda item: item["topic"]),
    ("key", lambda item: item["key"]),
    ("producer", lambda item: item.get("producer")),
    ("number", _waits),
    ("since", lambda item: span(item["since_s"] * 1000) if item.get("since_s") is not None else ""),
    ("held by", lambda item: item.get("holder")),
    ("undecided", lambda item: ",".join([*item.get("undecided", ()), *(f"number {n} (damaged: halfmsg doctor)" for n in item.get("damaged", ()))])),
)


@click.group(cls=Noun, not_built={"skip": "Ask the producer who holds the number: halfmsg check PRODUCER"})
def key() -> None:
    """Ordering keys, gaps and what is held."""


@key.command()
@click.option("--topic", help="Of this topic alone.")
@click.option("--group", help="Keys that this group cannot go on with.")
@paged
@connected
def ls(remote: http.Remote, topic: str | None, group: str | None, as_json: bool, limit: int, cursor: str | None) -> None:
    """Keys that wait for a missing number."""
    answer = remote.get("/v1/keys", topic=topic, group=group, limit=limit, cursor=cursor)
    page(answer, COLUMNS, as_json=as_json, empty="no key waits")


@key.command()
@click.argument("topic")
@click.argument("key_", metavar="KEY")
@json_option
@connected
def show(remote: http.Remote, topic: str, key_: str, as_json: bool) -> None:
    """One key: its next number, what is held, which transactions are undecided; one line a producer."""
    answer = remote.get(http.path("topics", topic, "keys", key_))
    items = answer.get("items", [answer])
    if not items:
        raise Failure(f"topic {topic} has never had a message with key {key_}", 1)
    rows(items, COLUMNS, as_json=as_json, empty="")
