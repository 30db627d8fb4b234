"""`halfmsg topic`: topics, made on purpose, of one kind for life (R10)."""

from __future__ import annotations

from typing import Any

import click

from . import http
from .common import DURATION, Column, confirm, connected, fields, json_option, page, paged, reason_option, span, yes_option
from .lazy import Noun

SETTABLE = ("kind", "lanes", "retention_s", "max_message_bytes", "max_backlog", "allow_no_group")
COLUMNS: tuple[Column, ...] = (
    ("topic", lambda item: item["name"]),
    ("kind", lambda item: item["kind"]),
    ("lanes", lambda item: item["lanes"]),
    ("messages", lambda item: item.get("messages")),
    ("kept", lambda item: span(item["retention_s"] * 1000) if item.get("retention_s") else ""),
    ("groups", lambda item: ",".join(item.get("groups", ()))),
)


@click.group(cls=Noun)
def topic() -> None:
    """Topics: `unordered`, `sequence` (order of local commits per key) or `arrival` (plain sends, order of arrival per key)."""


@topic.command()
@paged
@connected
def ls(remote: http.Remote, as_json: bool, limit: int, cursor: str | None) -> None:
    """All topics, by name."""
    answer = remote.get("/v1/topics", limit=limit, cursor=cursor)
    page(answer, COLUMNS, as_json=as_json, empty="no topics; make one: halfmsg topic create T --kind unordered (or sequence, arrival)")


@topic.command()
@click.argument("name")
@json_option
@connected
def show(remote: http.Remote, name: str, as_json: bool) -> None:
    """One topic."""
    fields(remote.get(http.path("topics", name)), as_json=as_json)


def _options(command: Any) -> Any:
    for option in (
        click.option("--allow-no-group/--need-group", default=None, help="Take messages before there is a consumer group."),
        click.option("--max-backlog", type=click.IntRange(1), help="Messages that a group may leave untaken."),
        click.option("--max-message-bytes", type=click.IntRange(1)),
        click.option("--retention", "retention_s", type=DURATION, help="How long messages are kept, e.g. 7d."),
    ):
        command = option(command)
    return command


@topic.command()
@click.argument("name")
@click.option("--kind", type=click.Choice(("unordered", "sequence", "arrival")), required=True, help="For life.")
@click.option("--lanes", type=click.IntRange(1, 1_024), help="For life; how many members of a group can work on an ordered topic.")
@_options
@json_option
@connected
def create(remote: http.Remote, name: str, as_json: bool, **wanted: Any) -> None:
    """Make a topic; the same again is fine, another kind is a conflict."""
    fields(remote.call("PUT", http.path("topics", name), _given(wanted)), as_json=as_json)


@topic.command("set")
@click.argument("name")
@_options
@json_option
@connected
def set_(remote: http.Remote, name: str, as_json: bool, **wanted: Any) -> None:
    """Change a topic's limits."""
    changes = _given(wanted)
    if not changes:
        raise click.UsageError("nothing to change; see --help")
    now = remote.get(http.path("topics", name))
    kept = {field: now[field] for field in SETTABLE if now.get(field) is not None}
    fields(remote.call("PUT", http.path("topics", name), kept | changes), as_json=as_json)


def _given(wanted: dict[str, Any]) -> dict[str, Any]:
    return {field: value for field, value in wanted.items() if value is not None}


@topic.command()
@click.argument("name")
@reason_option
@yes_option
@connected
def rm(remote: http.Remote, name: str, reason: str, yes: bool) -> None:
    """Remove an empty topic without groups."""
    confirm(f"Remove topic {name}?", yes)
    remote.call("DELETE", http.path("topics", name), query={"reason": reason})
    click.echo(f"{name}  removed")
