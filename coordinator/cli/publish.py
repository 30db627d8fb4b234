"""`halfmsg publish`: one committed message, a plain send. What belongs to a local transaction goes through halfmsg.Outbox."""

from __future__ import annotations

import base64
import json
import sys
from typing import Any

import click

from ..ids import format_id, new_id
from . import http
from .common import DURATION, connected, emit, json_option, now_ms, pairs

JSON_TYPE = "application/json"


@click.command()
@click.argument("topic")
@click.argument("body", default="")
@click.option("--key", help="Ordering key; `arrival` topics need one.")
@click.option("--tag", help="Consumers may choose by it.")
@click.option("--attribute", "attributes", multiple=True, metavar="NAME=VALUE")
@click.option("--content-type", help="Default: application/json where the body is JSON, else text/plain.")
@click.option("--delay", type=DURATION, help="Make it visible later.")
@click.option("--id", "id_", help="Transaction id (UUID): repeating the command with it sends nothing twice.")
@click.option("--n", type=click.IntRange(1, 1_000_000), default=1, show_default=True, help="How many times.")
@json_option
@connected
def publish(
    remote: http.Remote, topic: str, body: str, key: str | None, tag: str | None, attributes: tuple[str, ...], content_type: str | None,
    delay: float | None, id_: str | None, n: int, as_json: bool,
) -> None:  # fmt: skip
    """Send BODY (- reads it from stdin, none is an empty one) to TOPIC as one committed message."""
    if id_ is not None and n > 1:
        raise click.UsageError("--id names one message, so it cannot go with --n")
    raw = sys.stdin.buffer.read() if body == "-" else body.encode()
    named: dict[str, Any] = {"key": key, "tag": tag, "attributes": pairs(attributes, "--attribute") or None, "delay_s": delay}
    for _ in range(n):
        sent = {"id": id_ or format_id(new_id(now_ms()))} | {name: value for name, value in named.items() if value is not None}
        answer = remote.call("POST", http.path("topics", topic, "messages"), message(sent, raw, content_type))
        _tell(answer or {}, topic, as_json)


def message(head: dict[str, Any], body: bytes, content_type: str | None) -> bytes:
    """The request: a JSON body stands in it byte for byte (P8), anything else as base64."""
    if content_type in (None, JSON_TYPE) and is_json(body):
        return json.dumps(head, ensure_ascii=False).encode()[:-1] + b', "data": ' + body + b"}"
    kind = content_type or ("application/octet-stream" if is_binary(body) else "text/plain; charset=utf-8")
    return json.dumps(head | {"content_type": kind, "data_base64": base64.b64encode(body).decode()}, ensure_ascii=False).encode()


def is_json(body: bytes) -> bool:
    try:
        json.loads(body.decode(), parse_constant=_refuse)
    except ValueError:
        return False
    return body[:1] not in b" \t\r\n" and body[-1:] not in b" \t\r\n"


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def is_binary(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return True
    return False


def _tell(answer: dict[str, Any], topic: str, as_json: bool) -> None:
    if as_json:
        emit(answer)
        return
    where = "" if answer.get("offset") is None else f"  offset {answer['offset']}"
    click.echo(f"{answer.get('id', '?')}  {topic}{where}")
