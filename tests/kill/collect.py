"""After the load: the truth from the producers' databases, the effects from the consumers', and what the coordinator says; as one history."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, LiteralString
from uuid import UUID

from halfmsg.coordinator import doctor
from tests.kill import load
from tests.kill.processes import Api
from tests.support import history
from tests.support.history import Writer

VERDICTS = {1: "committed", 2: "rolled_back"}
DECIDED = ("committed", "rolled_back")


class Watcher:
    """Looks at the coordinator's transactions now and then; notes each state of each when first seen, so that a change shows."""

    def __init__(self, api: Api, book: Writer) -> None:
        self.api, self.book = api, book
        self._cursor = ""
        self._seen: dict[str, str] = {}

    def look(self) -> None:
        """What is new since the last full page, and that page again."""
        for cursor, items in self.api.pages("/v1/transactions", self._cursor):
            self._cursor = cursor
            for item in items:
                if self._seen.get(item["id"]) != item["state"]:
                    self._seen[item["id"]] = item["state"]
                    self._add(item)

    def last_look(self) -> None:
        """All of them, and this is how they stand."""
        for item in self.api.items("/v1/transactions"):
            self._add(item, final=True)
            for message in item.get("messages", ()):
                if message.get("held"):
                    self.book.add("held", message=message["id"], process="coordinator")

    def _add(self, item: dict[str, Any], **more: Any) -> None:
        event = "decided" if item["state"] in DECIDED else "undecided"
        self.book.add(event, transaction=item["id"], state=item["state"], by=item.get("decided_by"), process="coordinator", **more)


def coordinator(api: Api, watcher: Watcher, book: Writer) -> int:
    """Lists that an operator would look at, the state at rest, and the invariants. Gives the number of dead letters."""
    watcher.last_look()
    count = 0
    for group, path in [(name, f"/v1/groups/{name}") for name in load.GROUPS] + [(None, f"/v1/topics/{name}") for name in load.TOPICS]:
        for item in api.items(f"{path}/dead-letters"):
            count += 1
            book.add("dead", group=group, topic=item["topic"], message=item["message_id"], reason=item["reason"], process="coordinator")
    for item in api.items("/v1/conflicts"):
        book.add("conflict", transaction=item["transaction_id"], stored=item["stored"], said=item["said"], process="coordinator")
    for item in api.must("GET", "/v1/doctor")["items"]:
        if item["ok"] is False:  # None: not finished within the limit of work of a running coordinator; `findings` has no such limit
            book.add("finding", name=item["name"], rows=item["rows"], process="coordinator")
    return count


def findings(store: Path) -> list[doctor.Finding]:
    """Every invariant that does not hold, over the file of a coordinator that has ended: each is run to its end, and SQLite's check too."""
    with closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=30)) as conn:
        return [finding for finding in doctor.run(conn, integrity=True) if finding.ok is not True]


def truth(folder: Path, book: Writer) -> int:
    """What stands in the producers' databases, in the order of their commits. Gives the number of messages."""
    count = 0
    for name in load.PRODUCERS:
        with closing(sqlite3.connect(load.database(folder, name), timeout=30)) as conn:
            for event in _rows(conn, 'SELECT tx AS "transaction", message, way, topic, key, sequence, digest, at FROM work ORDER BY n'):
                count += 1
                book.add("committed", process=name, producer=name, **event)
            _fences(conn, name, book)
    return count


def _fences(conn: sqlite3.Connection, name: str, book: Writer) -> None:
    for id, verdict, unsent in conn.execute("SELECT id, verdict, unsent FROM halfmsg_tx"):
        transaction = str(UUID(bytes=id))
        book.add("decided", process=name, transaction=transaction, state=VERDICTS[verdict], by="fence")
        if unsent == 2:
            book.add("refused", process=name, transaction=transaction)


def unsent(folder: Path) -> int:
    """Rows that no relay has handed over yet."""
    total = 0
    for name in load.PRODUCERS:
        with closing(sqlite3.connect(load.database(folder, name), timeout=30)) as conn:
            total += conn.execute("SELECT count(*) FROM halfmsg_tx WHERE unsent = 1").fetchone()[0]
    return total


def effects(folder: Path, book: Writer) -> int:
    """Each group's effects in the order of their commits. Gives their number."""
    count = 0
    for group in load.GROUPS:
        with closing(sqlite3.connect(load.database(folder, group), timeout=30)) as conn:
            for event in _rows(conn, "SELECT * FROM effect ORDER BY n"):
                count += 1
                book.add("effect", group=group, **event | {"redriven": bool(event["redriven"])})
    return count


def _rows(conn: sqlite3.Connection, sql: LiteralString) -> Iterator[dict[str, Any]]:
    cursor = conn.execute(sql)
    columns = [column[0] for column in cursor.description]
    for row in cursor:
        yield dict(zip(columns, row, strict=True))


def told(folder: Path, book: Writer) -> list[str]:
    """What the producers wrote down while they ran. Gives the odd ones: errors that a service need not expect."""
    odd = []
    for name in load.PRODUCERS:
        events = list(history.read(folder / f"{name}.events"))
        odd += [f"{event['process']}: {event['error']}" for event in events if event["event"] == "odd"]
        book.copy(events)
    return odd


def damage(path: Path) -> list[str]:
    """What SQLite itself finds wrong with a file."""
    with closing(sqlite3.connect(path, timeout=30)) as conn:
        found = [row[0] for row in conn.execute("PRAGMA integrity_check")]
    return [] if found == ["ok"] else found
