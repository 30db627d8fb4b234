"""`halfmsg tail`: look at messages as they become visible. It holds no place and takes nothing from anyone."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator

import click

from . import http
from .common import Item, clock, connected, emit, json_option

PAGE = 500
POLL_S = 0.3


@click.command()
@click.argument("topic", required=False)
@click.option("--group", help="All topics of this group, in place of one.")
@click.option("--from", "start", default="latest", show_default=True, help="earliest, latest, or an offset.")
@click.option("--max", "limit", type=click.IntRange(1), help="End after so many.")
@click.option("--no-follow", is_flag=True, help="End at the newest message.")
@json_option
@connected
def tail(remote: http.Remote, topic: str | None, group: str | None, start: str, limit: int | None, no_follow: bool, as_json: bool) -> None:
    """Print messages of TOPIC, or of a group's topics, as they become visible."""
    if (topic is None) == (group is None):
        raise click.UsageError("name a TOPIC, or --group G")
    if not (start in ("earliest", "latest") or start.isdigit()):
        raise click.UsageError(f"--from {start!r} is not earliest, latest or an offset")
    names = [topic] if topic else [entry["topic"] for entry in remote.get(http.path("groups", group or ""))["topics"]]
    lanes = [lane for name in names for lane in _lanes(remote, name, start)]
    shown = 0
    while True:
        found = False
        for item in _new(remote, lanes):
            found = True
            emit(item) if as_json else click.echo(line(item, named=group is not None))
            shown += 1
            if shown == limit:
                return
        if not found and no_follow:
            return
        if not found:
            time.sleep(POLL_S)


class Lane:
    """Where the look stands in one lane."""

    def __init__(self, topic: str, lane: int, offset: int) -> None:
        self.topic, self.lane, self.offset = topic, lane, offset


def _lanes(remote: http.Remote, name: str, start: str) -> list[Lane]:
    shown = remote.get(http.path("topics", name))
    count = shown.get("lanes", 1)
    if start == "latest":
        ends = shown.get("ends") or ([shown.get("messages", 0)] if count == 1 else [0] * count)
        return [Lane(name, lane, end) for lane, end in enumerate(ends)]
    return [Lane(name, lane, 0 if start == "earliest" else int(start)) for lane in range(count)]


def _new(remote: http.Remote, lanes: list[Lane]) -> Iterator[Item]:
    """One page of each lane."""
    for lane in lanes:
        answer = remote.get(http.path("topics", lane.topic, "messages"), lane=lane.lane, from_offset=lane.offset, limit=PAGE)
        for item in answer["items"]:
            lane.offset = item["offset"] + 1
            yield item


def line(item: Item, *, named: bool) -> str:
    """`12:00:01.213  4182  key=7  {"id":"7"}`"""
    words = [clock(item["time"]), item["topic"] if named else "", str(item["offset"])]
    words += [f"key={item['key']}" if item.get("key") else "", f"tag={item['tag']}" if item.get("tag") else ""]
    return "  ".join(filter(None, (*words, text_of(item))))


def text_of(item: Item) -> str:
    """The body as it can be shown: JSON, text, or how many bytes it has."""
    if "data" in item:
        return json.dumps(item["data"], ensure_ascii=False, separators=(",", ":"))
    raw = base64.b64decode(item.get("data_base64", ""))
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return f"<{len(raw)} bytes, {item.get('content_type', 'no content type')}>"
    return text if text.isprintable() else repr(text)
