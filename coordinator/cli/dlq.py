"""`halfmsg dlq`: dead letters of a group, with their history."""

from __future__ import annotations

import click

from . import http
from .common import Column, Item, age, connected, emit, fields, json_option, page, paged
from .lazy import Failure, Noun
from .tail import text_of

NOT_BUILT = {
    "redrive": "Look at them: halfmsg dlq ls --group G",
    "drop": "They stay, and hold up nobody",
}
COLUMNS: tuple[Column, ...] = (
    ("id", lambda item: item["id"]),
    ("topic", lambda item: item["topic"]),
    ("message", lambda item: item.get("message_id")),
    ("key", lambda item: item.get("key")),
    ("reason", lambda item: item["reason"]),
    ("attempts", lambda item: item.get("attempts")),
    ("age", lambda item: age(item.get("at"))),
    ("last", lambda item: (item.get("history") or "").rpartition("\n")[2]),
)


@click.group(cls=Noun, not_built=NOT_BUILT)
def dlq() -> None:
    """Dead letters: what a group gave up or rejected, and what a topic could not place."""


@dlq.command()
@click.option("--group", help="Dead letters of this group.")
@click.option("--topic", help="Dead letters of the topic itself: number taken, late after a skip, damaged.")
@paged
@connected
def ls(remote: http.Remote, group: str | None, topic: str | None, as_json: bool, limit: int, cursor: str | None) -> None:
    """Oldest first."""
    if (group is None) == (topic is None):
        raise click.UsageError("name --group G or --topic T")
    where = http.path("groups", group, "dead-letters") if group is not None else http.path("topics", topic or "", "dead-letters")
    page(remote.get(where, limit=limit, cursor=cursor), COLUMNS, as_json=as_json, empty="no dead letters")


@dlq.command()
@click.argument("id_", metavar="ID", type=click.IntRange(1))
@click.option("--group", help="A dead letter of this group.")
@click.option("--topic", help="A dead letter of the topic itself.")
@json_option
@connected
def show(remote: http.Remote, id_: int, group: str | None, topic: str | None, as_json: bool) -> None:
    """One dead letter: its body, and what happened at each attempt."""
    if (group is None) == (topic is None):
        raise click.UsageError("name --group G or --topic T")
    item = remote.get(http.path("groups", group, "dead-letters", str(id_))) if group is not None else _of_topic(remote, topic or "", id_)
    body = _body(remote, item.get("message_id"))
    if as_json:
        emit(item | ({"message": body} if body else {}))
        return
    fields(item, as_json=False, leave_out=("history",))
    for line in (item.get("history") or "").splitlines():
        click.echo(f"  {line}")
    if body:
        click.echo(text_of(body))


def _of_topic(remote: http.Remote, topic: str, id: int) -> Item:
    """The first of the page that begins there."""
    for item in remote.get(http.path("topics", topic, "dead-letters"), cursor=id - 1, limit=1)["items"]:
        if item["id"] == id:
            return dict(item)
    raise Failure(f"no dead letter {id} of topic {topic} itself. List them: halfmsg dlq ls --topic {topic}", 1)


def _body(remote: http.Remote, message_id: str | None) -> Item | None:
    """The message itself, where it can still be looked at."""
    try:
        found: Item | None = remote.get(http.path("messages", message_id)) if message_id else None
    except http.Refused:
        return None
    return found
