"""`halfmsg tx`: transactions, what is known of each, and an operator's acts on a parked one (R4)."""

from __future__ import annotations

import re
from typing import Any

import click

from . import http
from .common import DURATION, Item, age, confirm, connected, emit, json_option, ms_of, page, paged, reason_option, span, yes_option
from .lazy import Noun

_MESSAGE = re.compile(r"^([0-9a-fA-F-]{36})-\d{1,4}$")
STATES = click.Choice(("prepared", "committed", "rolled_back", "parked"))


@click.group(cls=Noun)
def tx() -> None:
    """Transactions: what is decided, what is in doubt."""


@tx.command()
@click.option("--state", type=STATES)
@click.option("--producer", help="Of this producer alone.")
@click.option("--older", type=DURATION, help="Prepared longer ago than this, e.g. 60s.")
@click.option("--topic", help="With a message of this topic.")
@click.option("--key", help="With a message of this ordering key.")
@click.option("--newest", is_flag=True, help="Newest first.")
@paged
@connected
def ls(remote: http.Remote, older: float | None, newest: bool, as_json: bool, **asked: Any) -> None:
    """Transactions, oldest first."""
    asked |= {"older_than_s": None if older is None else int(older), "order": "newest" if newest else None}
    answer = remote.get("/v1/transactions", **asked)
    _warn_of_damage(answer)
    while answer.get("next") and not answer["items"]:  # it looks at a bounded number of others a page
        answer = remote.get("/v1/transactions", **asked | {"cursor": answer["next"]})
        _warn_of_damage(answer)
    page(answer, COLUMNS, as_json=as_json, empty="no such transactions")


def _warn_of_damage(answer: Item) -> None:
    for row in answer.get("damaged", ()):
        click.echo(f"damaged: {row['id']}, the row of transaction number {row['n']}, is passed over. Look: halfmsg doctor", err=True)


def _topics(item: Item) -> str:
    return ",".join(sorted({message["topic"] for message in item.get("messages", ())}))


def _remark(item: Item) -> str:
    if not item.get("producer"):
        return "plain send"
    if item["state"] in ("committed", "rolled_back"):
        return f"by {item.get('decided_by', '?')}"
    asked = f"asked {item['attempts']}x" if item.get("attempts") else ""
    return ": ".join(filter(None, (asked, item.get("reason"))))


COLUMNS = (
    ("id", lambda item: item["id"]),
    ("state", lambda item: item["state"]),
    ("age", lambda item: age(item["prepared_at"])),
    ("producer", lambda item: item.get("producer")),
    ("topics", _topics),
    ("remark", _remark),
)


@tx.command()
@click.argument("id_", metavar="ID")
@json_option
@connected
def show(remote: http.Remote, id_: str, as_json: bool) -> None:
    """One life, in order. ID is the transaction's, or that of a message of it."""
    item = remote.get(http.path("transactions", _MESSAGE.sub(r"\1", id_)))
    if as_json:
        emit(item)
        return
    for line in life(item):
        click.echo(line)


def life(item: Item) -> list[str]:
    """What happened, each with the time since prepare; what comes next; where each message stands."""
    began = ms_of(item["prepared_at"])
    lines = [f"{item['id']}  {item['state']}  {item.get('producer') or 'plain send'}  prepared {item['prepared_at']}"]
    for entry in item.get("history") or ():
        when = "now" if entry["at"] == "now" else f"+{span(ms_of(entry['at']) - began)}"
        lines.append(f"  {when:<8}  {entry['what']}{'  ' + entry['detail'] if entry.get('detail') else ''}")
    if item.get("next_check_at"):
        lines.append(f"  next check {item['next_check_at']}")
    if item.get("reason"):
        lines.append(f"  {item['reason']}")
    return lines + [f"  {message['id']}  {message['topic']}{standing(message)}" for message in item.get("messages", ())]


def standing(message: Item) -> str:
    """`  key=7  number 5  lane 3 offset 41`, or held, or dead."""
    words = [f"key={message['key']}" if message.get("key") else "", f"number {message['sequence']}" if message.get("sequence") else ""]
    if message.get("offset") is not None:
        words.append(f"lane {message.get('lane', 0)} offset {message['offset']}")
    words.append(f"held: {message['held']}" if message.get("held") else "")
    words.append(f"dead letter: {message['dead']}" if message.get("dead") else "")
    return "".join(f"  {word}" for word in words if word)


if_state_option = click.option("--if-state", type=STATES, help="Only if it is in this state now.")


@tx.command()
@click.argument("id_", metavar="ID")
@reason_option
@if_state_option
@json_option
@connected
def park(remote: http.Remote, id_: str, reason: str, if_state: str | None, as_json: bool) -> None:
    """Give up asking for now; nothing is decided."""
    _act(remote, id_, "park", {"reason": reason, "if_state": if_state}, as_json)


@tx.command()
@click.argument("id_", metavar="ID")
@reason_option
@if_state_option
@click.option("--numbers", help="Numbers of its ordered messages by index, `-` for none: 5,-,6.")
@yes_option
@json_option
@connected
def commit(remote: http.Remote, id_: str, reason: str, if_state: str | None, numbers: str | None, yes: bool, as_json: bool) -> None:
    """Decide a parked one in its producer's place: its messages are delivered, flagged `forced`."""
    confirm(f"Deliver the messages of {id_} although its producer did not say committed?", yes)
    _act(remote, id_, "commit", {"force": True, "reason": reason, "if_state": if_state, "numbers": _numbers(numbers)}, as_json)


@tx.command()
@click.argument("id_", metavar="ID")
@reason_option
@if_state_option
@yes_option
@json_option
@connected
def rollback(remote: http.Remote, id_: str, reason: str, if_state: str | None, yes: bool, as_json: bool) -> None:
    """Decide a parked one in its producer's place: its messages are never delivered."""
    confirm(f"Never deliver the messages of {id_} although its producer did not say rolled_back?", yes)
    _act(remote, id_, "rollback", {"force": True, "reason": reason, "if_state": if_state}, as_json)


def _numbers(text: str | None) -> list[int | None] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part == "-" or part.isdigit() for part in parts):
        raise click.UsageError(f"--numbers {text!r} is not a list such as 5,-,6")
    return [None if part == "-" else int(part) for part in parts]


def _act(remote: http.Remote, id_: str, verb: str, body: dict[str, Any], as_json: bool) -> None:
    item = remote.call("POST", http.path("transactions", id_, verb), {name: value for name, value in body.items() if value is not None})
    if as_json:
        emit(item)
        return
    by = f"  by {item['decided_by']}" if item.get("decided_by") else ""
    click.echo(f"{item['id']}  -> {item['state']}{by}")
