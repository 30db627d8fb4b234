"""`halfmsg group`: consumer groups and how far behind they are."""

from __future__ import annotations

from typing import Any

import click

from . import http
from .common import DURATION, Column, age, confirm, connected, fields, json_option, page, paged, pairs, reason_option, yes_option
from .lazy import Noun

COLUMNS: tuple[Column, ...] = (
    ("group", lambda item: item["name"]),
    ("topics", lambda item: ",".join(entry["topic"] for entry in item["topics"])),
    ("lag", lambda item: item.get("lag")),
    ("oldest", lambda item: age(item.get("oldest_at"))),
    ("in flight", lambda item: item.get("in_flight")),
    ("members", lambda item: item.get("members")),
    ("blocked keys", lambda item: item.get("blocked_keys")),
    ("dead", lambda item: item.get("dead_letters")),
    ("paused", lambda item: item.get("paused")),
)


@click.group(cls=Noun, not_built={"seek": "A new group starts at either end: halfmsg group create G --topic T --start latest (or earliest)"})
def group() -> None:
    """Consumer groups: lag, oldest age, members."""


@group.command()
@paged
@connected
def ls(remote: http.Remote, as_json: bool, limit: int, cursor: str | None) -> None:
    """All groups, by name."""
    answer = remote.get("/v1/groups", limit=limit, cursor=cursor)
    page(answer, COLUMNS, as_json=as_json, empty="no groups; make one: halfmsg group create G --topic T")


@group.command()
@click.argument("name")
@json_option
@connected
def show(remote: http.Remote, name: str, as_json: bool) -> None:
    """One group."""
    fields(remote.get(http.path("groups", name)), as_json=as_json)


@group.command()
@click.argument("name")
@click.option("--topic", "topics", multiple=True, required=True, help="Once or more.")
@click.option("--tag", help="Only messages with this tag.")
@click.option("--attribute", "attributes", multiple=True, metavar="NAME=VALUE", help="Only messages with this attribute.")
@click.option("--start", type=click.Choice(("earliest", "latest")), default="earliest", show_default=True)
@click.option("--lease", "lease_s", type=DURATION, help="How long a member may hold a message without a sign of life.")
@click.option("--max-attempts", help="Then it is a dead letter; `none`: never, it holds its key until an operator acts.")
@json_option
@connected
def create(
    remote: http.Remote, name: str, topics: tuple[str, ...], tag: str | None, attributes: tuple[str, ...], start: str, lease_s: float | None,
    max_attempts: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Make a group; the same again is fine, other topics or filters are a conflict."""
    chosen: dict[str, Any] = {"tag": tag} if tag else {}
    if wanted := pairs(attributes, "--attribute"):
        chosen["attributes"] = wanted
    body: dict[str, Any] = {"topics": [{"topic": topic} | chosen for topic in topics], "start": start}
    if lease_s is not None:
        body["lease_s"] = lease_s
    if max_attempts is not None:
        body["max_attempts"] = _attempts(max_attempts)
    stored = remote.call("PUT", http.path("groups", name), body)
    fields(stored, as_json=as_json)
    if stored.get("start") not in (None, start):
        note = f"{name} was made with start {stored['start']} and keeps its place: --start {start} changes nothing. A new name starts anywhere"
        click.echo(note, err=True)


def _attempts(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdigit() or int(text) < 1:
        raise click.UsageError(f"--max-attempts {text!r} is not a number from 1 on, or none")
    return int(text)


@group.command()
@click.argument("name")
@connected
def pause(remote: http.Remote, name: str) -> None:
    """Hand out nothing until `resume`; what is in flight may be settled."""
    remote.call("POST", http.path("groups", name, "pause"), {})
    click.echo(f"{name}  paused")


@group.command()
@click.argument("name")
@connected
def resume(remote: http.Remote, name: str) -> None:
    """Hand out again."""
    remote.call("POST", http.path("groups", name, "resume"), {})
    click.echo(f"{name}  resumed")


@group.command()
@click.argument("name")
@reason_option
@yes_option
@connected
def rm(remote: http.Remote, name: str, reason: str, yes: bool) -> None:
    """Remove a group without members and dead letters; its place is gone for good.

    Made again under this name, its inbox still knows what was done. Except on an ordered topic where it had a tag, attributes or another
    start than earliest: then it begins a new generation, and what it gets again runs again.
    """
    confirm(f"Remove group {name}, and forget what it has settled?", yes)
    remote.call("DELETE", http.path("groups", name), query={"reason": reason})
    click.echo(f"{name}  removed")
