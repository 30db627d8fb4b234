"""`halfmsg producer`: who is asked about transactions, and how that goes (R7)."""

from __future__ import annotations

import click

from . import http
from .common import Column, Item, connected, fields, json_option, page, paged
from .lazy import Noun


def _ways(item: Item) -> str:
    """How it can be asked now; a library that said hello once and has no stream open is `stream (gone)`."""
    stream = f"{item['streams']} stream" if item.get("streams") else "stream (gone)" if item.get("said_hello") else ""
    return "+".join(filter(None, (stream, "http" if item.get("check_url") else ""))) or "none"


COLUMNS: tuple[Column, ...] = (
    ("producer", lambda item: item["name"]),
    ("asked by", _ways),
    ("in doubt", lambda item: item.get("in_doubt")),
    ("parked", lambda item: item.get("parked")),
    ("circuit", lambda item: "open" if item.get("circuit_open") else "closed"),
    ("frozen", lambda item: item.get("frozen")),
    ("source", lambda item: item.get("source")),
)


@click.group(cls=Noun, not_built={"rotate-secret": ""})
def producer() -> None:
    """Who is asked, and how that goes."""


@producer.command()
@paged
@connected
def ls(remote: http.Remote, as_json: bool, limit: int, cursor: str | None) -> None:
    """All producers, by name."""
    answer = remote.get("/v1/producers", limit=limit, cursor=cursor)
    page(answer, COLUMNS, as_json=as_json, empty="no producers; make one: halfmsg producer set P")


@producer.command()
@click.argument("name")
@json_option
@connected
def show(remote: http.Remote, name: str, as_json: bool) -> None:
    """One producer."""
    fields(remote.get(http.path("producers", name)), as_json=as_json)


@producer.command("set")
@click.argument("name")
@click.option("--check-url", help="Where it is asked over HTTP; a library on a stream needs none.")
@click.option("--dialect", type=click.Choice(("halfmsg", "dtm")), help="How it answers.")
@json_option
@connected
def set_(remote: http.Remote, name: str, check_url: str | None, dialect: str | None, as_json: bool) -> None:
    """Make or change a producer. The first time it prints the secret that signs questions and answers over HTTP; it is shown once."""
    body = {field: value for field, value in (("check_url", check_url), ("dialect", dialect)) if value is not None}
    answer = remote.call("PUT", http.path("producers", name), _kept(remote, name) | body)
    fields(answer, as_json=as_json)
    if answer.get("secret") and not as_json:
        click.echo("Keep the secret now: it is not shown again. The producer reads it from HALFMSG_CHECK_SECRET.", err=True)


def _kept(remote: http.Remote, name: str) -> Item:
    """PUT replaces: what is not named again would be lost."""
    try:
        now = remote.get(http.path("producers", name))
    except http.Refused as error:
        if error.status != 404:
            raise
        return {}
    return {field: now[field] for field in ("check_url", "dialect") if now.get(field) is not None}
