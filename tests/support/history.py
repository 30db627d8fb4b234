"""The one form of a history: JSON lines, one event each, written by test processes and harnesses, read by `checker.py`.

Every event has `at` (seconds), `process` and `event`; what else it has follows from `event`:

    topic           topic, kind
    group           group, topics                    the group stood from `at` on
    committed       transaction, producer, message, topic, key, sequence, digest       a message of a local transaction that stands;
                                                     the lines of a producer are in the order of its local commits
    rolled_back     transaction, producer            its local transaction was undone, as far as its process knows
    sent            transaction, message, topic, key, digest     a plain send was begun; it may have arrived
    acknowledged    what (prepare, submit, commit, rollback, send), transaction, state   a success answer that a client got
    answered        transaction, state               a refusal that named the decision that stands
    decided         transaction, state, by, final?   committed or rolled_back, as seen at the coordinator or in a producer's fence
    forced          transaction, state               decided by hand, over the head of its producer
    undecided       transaction, state, final?       prepared or parked, as seen at the coordinator
    effect          group, generation, message, topic, key, sequence, producer, digest, redriven    a group's lines are in commit order
    dead            group (None: the topic's list), topic, message, reason
    held            message                          stored behind a gap
    conflict        transaction                      in the coordinator's list of contrary words
    refused         transaction                      set aside by a relay, listed
    finding         name, rows                       an invariant of the store that does not hold
    killed, stopped, continued, started              process, pid, how
    odd                                              error, that a service need not expect

`final` marks what stood when everything had come to rest. Imports nothing of halfmsg: what the library computes is what is judged.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]
ALWAYS = -1e12
"""`at` of a group that stood before anybody published, in a history whose clocks are wrong: times of two processes cannot be compared there."""


class Writer:
    """Appends events; each is one write of one line, so it outlives a kill -9 of its process and lines of two processes do not mix."""

    def __init__(self, path: Path, process: str) -> None:
        self.process = process
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def add(self, event: str, **fields: Any) -> None:
        line = {"at": fields.pop("at", None) or time.time(), "process": fields.pop("process", self.process), "event": event} | fields
        os.write(self._fd, json.dumps(line, ensure_ascii=False).encode() + b"\n")

    def copy(self, events: Iterable[Event]) -> None:
        for event in events:
            os.write(self._fd, json.dumps(event, ensure_ascii=False).encode() + b"\n")

    def close(self) -> None:
        os.close(self._fd)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Its events, in the file's order. A last line that was cut by a power failure is left out; any other damage is an error."""
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")
    for line in lines[:-1]:
        if line:
            yield json.loads(line)


def content_digest(
    topic: str, key: str | None, tag: str | None, content_type: str, attributes: Mapping[str, str], body: bytes
) -> str:  # fmt: skip
    """What a message is to its reader, in 32 hex digits; of the harness's own making, so that a mistake in the library's cannot hide in it."""
    head = json.dumps([topic, key, tag, content_type, sorted(attributes.items())]).encode()
    return hashlib.sha256(len(head).to_bytes(4, "big") + head + body).hexdigest()[:32]
