"""The calls behind the routes: wire value -> command -> service -> wire value, a few lines each."""

from __future__ import annotations

import base64
import contextlib
import os
import platform
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from halfmsg import __version__

from . import doctor, ops, parse, render, wire
from .checks import Checks
from .clock import rfc3339
from .engine import Engine
from .errors import Problem
from .gaps import Gaps
from .ids import format_id, parse_id, parse_message_id
from .messages import Force, Group
from .service import groups, looking, producers, settling, topics, transactions, verdicts
from .service.naming import Removal
from .store.sqlite.base import Q
from .store.sqlite.deliveries import Deliveries
from .store.sqlite.names import source_of
from .stream import Streams

Answer = tuple[int, Any]
LIMIT_DEFAULT, LIMIT_MAX = 100, 1_000
DOCTOR_STEPS_MAX = 20_000_000


def _int(query: Any, name: str, default: int, *, least: int = 0, most: int = 2**53) -> int:
    text = query.get(name)
    if text is None or text == "":
        return default
    if not (text.isascii() and text.isdigit()) or not least <= int(text) <= most:
        raise Problem("bad_request", f"{name}={text!r} is not a whole number from {least} to {most}")
    return int(text)


def _limit(query: Any) -> int:
    return _int(query, "limit", LIMIT_DEFAULT, least=1, most=LIMIT_MAX)


def _wait_s(query: Any) -> float:
    try:
        return msgspec.convert(query.get("wait_s") or "0", wire.WaitSeconds, strict=False)
    except msgspec.ValidationError as error:
        raise Problem("bad_request", f"wait_s={query['wait_s'][:80]!r}: {error}") from error


def _reason(query: Any) -> str:
    """Why something is removed: for the audit."""
    return str(query.get("reason", ""))[: wire.MAX_REASON_CHARS]


def _name(text: str) -> str:
    """A name in a path has the same rule as one in a body."""
    try:
        return msgspec.convert(text, wire.Name)
    except msgspec.ValidationError as error:
        raise Problem("bad_name", f"{text[:150]!r} is not a name: {wire.NAME_TEXT}") from error


def _page(items: list[Any], next_cursor: Any) -> Answer:
    return 200, {"items": items, "next": None if next_cursor is None else str(next_cursor)}


class Calls:
    def __init__(self, engine: Engine, checks: Checks, streams: Streams, gaps: Gaps) -> None:
        self.engine, self.checks, self.streams, self.gaps = engine, checks, streams, gaps

    # --- transactions ---

    async def put_transaction(self, req: Any) -> Answer:
        submit = req.body.state == "committed"
        if not submit and req.body.producer is None:
            raise Problem("bad_request", "a half message names its producer, who is asked about it - at `$.producer`")
        command = parse.content(req.body, submit=submit, packed=False, now_ms=self.engine.clock.now_ms())
        view = await self.engine.store_content(command)
        return (201 if view.created else 200), render.transaction(view)

    async def send(self, req: Any) -> Answer:
        command = parse.plain(req.body, _name(req.path["topic"]), now_ms=self.engine.clock.now_ms())
        view = await self.engine.store_content(command)
        sent = {"id": f"{format_id(command.id)}-0", "transaction_id": format_id(command.id)}
        for place in view.messages:
            sent |= {} if place.offset is None else {"lane": place.lane, "offset": place.offset}
        return (201 if view.created else 200), sent

    async def commit(self, req: Any) -> Answer:
        return await self._decide(parse.decision(req.path["id"], req.body))

    async def rollback(self, req: Any) -> Answer:
        return await self._decide(parse.decision(req.path["id"], req.body))

    async def _decide(self, command: Any) -> Answer:
        fn = verdicts.force if isinstance(command, Force) else transactions.decide
        return 200, render.transaction(await self.engine.call(fn, command))

    async def park(self, req: Any) -> Answer:
        return 200, render.transaction(await self.engine.call(verdicts.park, parse.park(req.path["id"], req.body)))

    async def check_transaction(self, req: Any) -> Answer:
        due = await self.engine.call(verdicts.claim_one, parse_id(req.path["id"]))
        return 202, {"items": await self.checks.ask_now(due.producer.name, [req.path["id"]])}

    async def get_transaction(self, req: Any) -> Answer:
        until = req.query.get("until", "decided")
        if until == "settled":
            raise Problem("not_supported", "until=settled is known but not built yet; use until=decided")
        if until != "decided":
            raise Problem("bad_request", f"until is decided or settled, not {until[:80]!r}")
        id, wait_s = parse_id(req.path["id"]), _wait_s(req.query)
        life = await self.engine.read_until(lambda tx: looking.one_transaction(tx, id), lambda life: life.view.tx.decided_at is not None, wait_s)
        out = render.transaction(life.view)
        out.history = _history(life)
        return 200, out

    async def list_transactions(self, req: Any) -> Answer:
        older = req.query.get("older_than_s")
        before = None if older is None else self.engine.clock.now_ms() - _int(req.query, "older_than_s", 0) * 1000
        order, key = req.query.get("order", "oldest"), req.query.get("key")
        if order not in ("oldest", "newest"):
            raise Problem("bad_request", f"order is oldest or newest, not {order[:80]!r}")
        want = looking.Listing(
            req.query.get("state"), req.query.get("producer"), req.query.get("topic"), None if key is None else key.encode(errors="replace"),
            before, order == "newest", _int(req.query, "cursor", 0), _limit(req.query),
        )  # fmt: skip
        page = await self.engine.read(lambda tx: looking.list_transactions(tx, want))
        status, out = _page([render.transaction(view) for view in page.found], page.after)
        return status, out | ({"damaged": [{"n": n, "id": id} for n, id in page.damaged]} if page.damaged else {})

    async def batch(self, req: Any) -> Answer:
        plan = ops.Plan(self.engine, req.body.ops, packed=False)
        if plan.calls:
            plan.fill(await self.engine.submit(plan.calls))
        return 200, {"results": plan.results}

    async def list_conflicts(self, req: Any) -> Answer:
        after, limit = _int(req.query, "cursor", 0), _limit(req.query)
        rows = await self.engine.read(lambda tx: tx.all(Q.conflict_page, after, limit))
        items = [
            {"id": id, "transaction_id": format_id(tx), "stored": stored, "said": said, "said_by": by, "at": rfc3339(at)}
            for id, tx, stored, said, by, at in rows
        ]
        return _page(items, items[-1]["id"] if len(items) == limit else None)

    # --- topics and keys ---

    async def list_topics(self, req: Any) -> Answer:
        limit = _limit(req.query)
        found = await self.engine.read(lambda tx: looking.topic_page(tx, req.query.get("cursor", ""), limit))
        return _page([render.topic(topic, extra) for topic, extra in found], found[-1][0].name if len(found) == limit else None)

    async def get_topic(self, req: Any) -> Answer:
        def read(tx: Deliveries) -> dict[str, Any]:
            topic = topics.get(tx, req.path["topic"])
            return render.topic(topic, looking.topic_numbers(tx, topic))

        return 200, await self.engine.read(read)

    async def put_topic(self, req: Any) -> Answer:
        topic, made = await self.engine.make(topics.put, parse.topic(_name(req.path["topic"]), req.body))
        return (201 if made else 200), render.topic(topic)

    async def delete_topic(self, req: Any) -> Answer:
        await self.engine.call(topics.remove, Removal(req.path["topic"], _reason(req.query)))
        return 204, None

    async def look(self, req: Any) -> Answer:
        if "from_time" in req.query:
            raise Problem("not_supported", "start at a time is known but not built yet")
        lane = _int(req.query, "lane", 0) if "lane" in req.query else None
        start = _int(req.query, "cursor", _int(req.query, "from_offset", 0))
        want = looking.Window(req.path["topic"], lane, start, _limit(req.query), req.query.get("key"))
        found, topic, cursor = await self.engine.read(lambda tx: looking.look(tx, want))
        return _page([render.logged(row, topic, at, producer) for row, at, producer in found], cursor)

    async def get_key(self, req: Any) -> Answer:
        items = await self.engine.read(lambda tx: looking.keys_named(tx, req.path["topic"], req.path["key"]))
        return 200, {"items": [item | self.gaps.of(item["id"]) for item in items]}

    async def list_keys(self, req: Any) -> Answer:
        after, limit = _int(req.query, "cursor", 0), _limit(req.query)
        topic, group = req.query.get("topic"), req.query.get("group")

        def read(tx: Deliveries) -> list[dict[str, Any]]:
            return looking.keys_with_gaps(tx, after, limit, topic) if group is None else looking.blocked_keys(tx, group, after, limit)

        items = [item | self.gaps.of(item["id"]) for item in await self.engine.read(read)]
        return _page(items, items[-1]["id"] if len(items) == limit else None)

    async def get_message(self, req: Any) -> Answer:
        id, index = parse_message_id(req.path["id"])
        row, topic, lane, producer, standing = await self.engine.read(lambda tx: looking.one_message(tx, id, index))
        out = msgspec.to_builtins(render.logged(row, topic, lane, producer, packed=True), builtin_types=(bytes,))
        body = out.pop("data")
        if wire.is_bare_json(out.get("content_type", wire.JSON_TYPE), body):
            out["data"] = msgspec.Raw(body)
        else:
            out["data_base64"] = base64.b64encode(body).decode()
        return 200, out | {"deliveries": [{"group": group, "state": state} for group, state in standing]}

    async def topic_dead_letters(self, req: Any) -> Answer:
        after, limit = _int(req.query, "cursor", 0), _limit(req.query)
        rows = await self.engine.read(lambda tx: looking.topic_dead_letters(tx, req.path["topic"], after, limit))
        return _page([_dead(row) for row in rows], rows[-1]["id"] if len(rows) == limit else None)

    # --- groups ---

    async def list_groups(self, req: Any) -> Answer:
        limit = _limit(req.query)

        def read(tx: Deliveries) -> list[dict[str, Any]]:
            return [self._group(tx, each) for each in looking.group_page(tx, req.query.get("cursor", ""), limit)]

        items = await self.engine.read(read)
        return _page(items, items[-1]["name"] if len(items) == limit else None)

    def _group(self, tx: Deliveries, found: list[Group]) -> dict[str, Any]:
        numbers = looking.group_numbers(tx, found, self.engine.clock.now_ms())
        numbers["oldest_at"] = None if numbers["oldest_at"] is None else rfc3339(numbers["oldest_at"])
        return render.group(found, {each.topic: tx.topic_by_id(each.topic).name for each in found}, numbers)

    async def get_group(self, req: Any) -> Answer:
        return 200, await self.engine.read(lambda tx: self._group(tx, list(settling.groups_of(tx, req.path["group"]).values())))

    async def put_group(self, req: Any) -> Answer:
        wanted = parse.group(_name(req.path["group"]), req.body)
        _, made = await self.engine.make(groups.put, wanted)
        return (201 if made else 200), await self._stored_group(req)

    async def _stored_group(self, req: Any) -> Any:
        """The group after a change, which is stored: a read that fails now is no word about that."""
        try:
            return (await self.get_group(req))[1]
        except Problem as problem:
            if problem.code != "storage_unavailable":
                raise
            raise Problem("outcome_unknown", f"the change was stored, and cannot be read back: {problem.detail}") from problem

    async def delete_group(self, req: Any) -> Answer:
        await self.engine.call(groups.remove, Removal(req.path["group"], _reason(req.query)))
        return 204, None

    async def fetch(self, req: Any) -> Answer:
        found = await self.engine.fetch(parse.fetch(req.path["group"], req.body), req.body.wait_s)
        return 200, wire.DeliveriesOut(render.deliveries(found, packed=False))

    async def ack(self, req: Any) -> Answer:
        return await self._settle(parse.acks(req.path["group"], req.body))

    async def nack(self, req: Any) -> Answer:
        return await self._settle(parse.nacks(req.path["group"], req.body))

    async def reject(self, req: Any) -> Answer:
        return await self._settle(parse.rejects(req.path["group"], req.body))

    async def _settle(self, command: Any) -> Answer:
        return 200, render.items(await self.engine.call(settling.settle, command))

    async def extend(self, req: Any) -> Answer:
        return 200, render.items(await self.engine.call(settling.extend, parse.extension(req.path["group"], req.body)))

    async def pause(self, req: Any) -> Answer:
        await self.engine.call(groups.pause, groups.Pause(req.path["group"], True))
        return 200, await self._stored_group(req)

    async def resume(self, req: Any) -> Answer:
        await self.engine.call(groups.pause, groups.Pause(req.path["group"], False))
        return 200, await self._stored_group(req)

    async def dead_letters(self, req: Any) -> Answer:
        after, limit = _int(req.query, "cursor", 0), _limit(req.query)
        rows = await self.engine.read(lambda tx: looking.dead_letters(tx, req.path["group"], after, limit))
        return _page([_dead(row) for row in rows], rows[-1]["id"] if len(rows) == limit else None)

    async def dead_letter(self, req: Any) -> Answer:
        id = _int(req.path, "id", 0)
        return 200, _dead(await self.engine.read(lambda tx: looking.dead_letter(tx, req.path["group"], id)))

    # --- producers ---

    async def list_producers(self, req: Any) -> Answer:
        limit = _limit(req.query)

        def read(tx: Deliveries) -> list[dict[str, Any]]:
            return [self._producer(tx, row[1]) for row in tx.all(Q.source_page, req.query.get("cursor", ""), limit)]

        items = await self.engine.read(read)
        return _page(items, items[-1]["name"] if len(items) == limit else None)

    def _producer(self, tx: Deliveries, name: str) -> dict[str, Any]:
        source = producers.get(tx, name)
        extra = looking.producer_numbers(tx, source) | {
            "streams": len(self.streams.of_producer(name)),
            "circuit_open": self.checks.poller.breaker_open(name),
        }
        return render.producer(source, extra)

    async def get_producer(self, req: Any) -> Answer:
        return 200, await self.engine.read(lambda tx: self._producer(tx, req.path["producer"]))

    async def put_producer(self, req: Any) -> Answer:
        if req.body.limits is not msgspec.UNSET:
            raise Problem("not_supported", "limits of one producer are known but not built yet; the setting is producer.max_in_doubt")
        if req.body.check_url is not None:
            self.checks.check_url(req.body.check_url)
        wanted = producers.ProducerWanted(_name(req.path["producer"]), req.body.check_url, req.body.dialect, os.urandom)
        source, made, drawn = await self.engine.make(producers.put, wanted)
        with contextlib.suppress(Problem):  # the answer has the secret, once; the ways are read again each second
            await self.checks.ways.refresh()
        return (201 if made else 200), render.producer(source, None if drawn is None else {"secret": drawn})

    async def delete_producer(self, req: Any) -> Answer:
        await self.engine.call(producers.remove, Removal(req.path["producer"], _reason(req.query)))
        return 204, None

    async def check_producer(self, req: Any) -> Answer:
        ids = req.body.ids
        if ids is None:
            source = await self.engine.read(lambda tx: source_of(tx.one(Q.source_by_name, producers.get(tx, req.path["producer"]).name)))
            ids = await self.engine.read(lambda tx: [format_id(row.id) for row in tx.open_of(source.id, 50)])
        return 200, {"items": await self.checks.ask_now(req.path["producer"], ids)}

    # --- the rest ---

    async def not_built(self, req: Any) -> Answer:
        raise Problem("not_supported", "known, but not built yet; nothing was stored")

    async def info(self, req: Any) -> Answer:
        return 200, {
            "server": f"halfmsg/{__version__}",
            "time": rfc3339(self.engine.clock.now_ms()),
            "limits": {
                "key_bytes": wire.MAX_KEY_BYTES, "attributes": wire.MAX_ATTRIBUTES,
                "messages": wire.MAX_MESSAGES, "transaction_bytes": wire.MAX_TRANSACTION_BYTES,
                "frame_bytes": wire.MAX_FRAME_BYTES, "ops": wire.MAX_BATCH_OPS, "message_bytes": self.engine.settings.message.max_bytes,
            },
            "features": ["half", "submit", "sequence", "arrival", "unordered", "stream", "batch", "check_back"],
            "dev": self.engine.settings.dev,
            "store": {"kind": "sqlite", "library": sqlite3.sqlite_version, "synchronous": self.engine.settings.storage.synchronous},
            "python": platform.python_version(),
        }  # fmt: skip

    async def doctor(self, req: Any) -> Answer:
        findings = [await self.engine.read_long(partial(_doctor, look)) for look in doctor.looks(steps_max=DOCTOR_STEPS_MAX)]
        restored = await self.engine.read_long(lambda tx: doctor.restored(tx.conn))
        return 200, {"items": [msgspec.to_builtins(finding) for finding in findings], "restored": restored}


def _history(life: looking.Life) -> list[wire.HistoryEntry]:
    tx = life.view.tx
    entries: list[tuple[int, str, str | None]] = [(tx.first_at, "prepared" if life.view.producer else "sent", None)]
    entries += [(at, what, detail) for at, what, detail in life.notes]
    if tx.decided_at is not None:
        by = "" if tx.decided_by is None or not life.view.producer else f"by {tx.decided_by.word}"
        entries.append((tx.decided_at, tx.state.word, by))
    entries += [(at, "conflict", f"{by} said {said} while {stored}") for stored, said, by, at in life.conflicts]
    found = [wire.HistoryEntry(at=rfc3339(at), what=what, detail=detail) for at, what, detail in sorted(entries, key=lambda each: each[0])]
    return found + [wire.HistoryEntry(at="now", what=f"{topic}", detail=word) for topic, word in life.deliveries]


def _doctor(look: Callable[[sqlite3.Connection], doctor.Finding], tx: Deliveries) -> doctor.Finding:
    return look(tx.conn)


def _dead(row: dict[str, Any]) -> dict[str, Any]:
    first = row["first_out"]
    return row | {"at": rfc3339(row["at"]), "first_out": None if first is None else rfc3339(first)}
