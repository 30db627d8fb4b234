"""Looking without taking: pages, one transaction's life, a group's state. Run on the reader; everything is bounded."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from ..digests import lane_of
from ..errors import Problem
from ..ids import format_id
from ..messages import Group, Kind, Logged, Reason, Source, Topic, TransactionView, Tx
from ..states import State
from ..store.base import RowDamaged
from ..store.sqlite.base import Q
from ..store.sqlite.deliveries import Deliveries
from ..store.sqlite.transactions import tx_of
from . import producers, topics, transactions
from .settling import groups_of

SCAN_MAX, STEP = 20_000, 1_000
DEAD_COUNT_MAX = 100_000
NEWEST = 2**53
DAMAGED_MAX = 100
LOOK_MAX, LOOK_STEP, LOOK_BYTES_MAX = 10_000, 100, 4 * 1024 * 1024


class Listing(Struct, frozen=True):
    """Which transactions, oldest or newest first. `after` is the number of the last one seen; 0: none yet."""

    state: str | None
    producer: str | None
    topic: str | None
    key: bytes | None
    prepared_before: int | None
    newest: bool
    after: int
    limit: int


class Listed(Struct):
    """A page. `after`: where the next one begins; `damaged`: rows passed over, (number, id) of the first hundred, whatever was asked for."""

    found: list[TransactionView]
    damaged: list[tuple[int, str]]
    after: int | None = None


def list_transactions(tx: Deliveries, want: Listing) -> Listed:
    """Looks at no more than 20,000 rows a page, then gives what it has and where to go on. A damaged row hides no other."""
    state = None if want.state is None else _state(want.state)
    source = None if want.producer is None else producers.get(tx, want.producer)
    page = Listed([], [])
    statement = Q.tx_before if want.newest else Q.tx_after
    after, seen = want.after or (NEWEST if want.newest else 0), 0
    while seen < SCAN_MAX and len(page.found) < want.limit:
        rows = tx.all(statement, after, STEP)
        for row in rows:
            after = row[0]
            try:
                _take(tx, page, tx_of(row), want, state, source)
            except RowDamaged:
                page.damaged += [(row[0], _id_text(row[1]))] if len(page.damaged) < DAMAGED_MAX else []
            if len(page.found) == want.limit:
                break
        seen += len(rows)
        if len(rows) < STEP:
            page.after = after if len(page.found) == want.limit else None
            return page
    page.after = after
    return page


def _take(tx: Deliveries, page: Listed, row: Tx, want: Listing, state: State | None, source: Source | None) -> None:
    if _wanted(tx, row, want, state, source):
        page.found.append(_view(tx, row))


def _id_text(id: object) -> str:
    """Of a row that is damaged, so it may be anything."""
    return format_id(id) if isinstance(id, bytes) and len(id) == 16 else repr(id)[:80]


def _state(word: str) -> State:
    try:
        return State[word.upper()]
    except KeyError as error:
        raise Problem("bad_request", f"state is one of prepared, committed, rolled_back, parked; not {word!r}") from error


def _wanted(tx: Deliveries, row: Tx, want: Listing, state: State | None, source: Source | None) -> bool:
    if (state is not None and row.state is not state) or (source is not None and row.source != source.id):
        return False
    if want.prepared_before is not None and row.first_at > want.prepared_before:
        return False
    if want.topic is None and want.key is None:
        return True
    return any(_holds(tx, topic, okey, want) for _, topic, okey in tx.message_heads(row.n))


def _holds(tx: Deliveries, topic: int, okey: int | None, want: Listing) -> bool:
    """Has one message both, the topic and the key?"""
    if want.topic is not None and tx.topic_by_id(topic).name != want.topic:
        return False
    return want.key is None or (okey is not None and tx.key_name(okey)[3] == want.key)


def _view(tx: Deliveries, row: Tx) -> TransactionView:
    name = None if row.source == transactions.PLAIN else tx.source_by_id(row.source).name
    return TransactionView(row, name, transactions.places_of(tx, row))


class Life(Struct, frozen=True):
    view: TransactionView
    notes: list[tuple[int, str, str | None]]
    conflicts: list[tuple[str, str, str, int]]
    deliveries: list[tuple[str, str]]


def one_transaction(tx: Deliveries, id: bytes) -> Life:
    """One life in order: notes of checks and operators, conflicts, and where each group stands with its messages."""
    view = transactions.show(tx, 0, id)
    conflicts = tx.all("SELECT stored, said, said_by, at FROM conflict WHERE ns = 1 AND tx_id = ? ORDER BY id LIMIT 100", id)
    standing = [(place.topic, word) for place in view.messages for word in _standing(tx, view.tx.n, place.index)]
    return Life(view, tx.all(Q.notes_of, view.tx.n), conflicts, standing)


def _standing(tx: Deliveries, n: int, index: int) -> list[str]:
    return [f"{name}: {word}" for name, word in message_deliveries(tx, (n << 10) + index)]


def message_deliveries(tx: Deliveries, m: int) -> list[tuple[str, str]]:
    """(group, where it stands) for a released message: waiting, in_flight, retry, dead, settled."""
    at = tx.where_is(m)
    if at is None:
        return []
    topic, lane, off = at[0], at[1], at[2]
    dead = {grp for _, grp, _, _ in tx.dead_of_message(m)}
    return [(group.name, "dead" if group.id in dead else _where(tx, group, lane, off)) for group in tx.groups_of_topic(topic)]


def _where(tx: Deliveries, group: Group, lane: int, off: int) -> str:
    place = next(place for place in tx.places(group.id) if place.lane == lane)
    if off >= place.next_off:
        return "waiting"
    if any(off in flight.open_offsets() for flight in tx.flights_of_lane(group.id, lane) if flight.lo <= off <= flight.hi):
        return "in_flight"
    if tx.one("SELECT 1 FROM retry WHERE grp = ? AND lane = ? AND off = ?", group.id, lane, off):
        return "retry"
    return "settled"


def one_message(tx: Deliveries, id: bytes, index: int) -> tuple[Logged, str, int, str | None, list[tuple[str, str]]]:
    """(message, topic, lane, producer, deliveries). One that is not released is message_not_found: invisible is invisible (P1)."""
    row = tx.find(id)
    m = -1 if row is None else (row.n << 10) + index
    at = tx.where_is(m)
    if at is None:
        raise Problem("message_not_found", f"no released message {format_id(id)}-{index}")
    topic = tx.topic_by_id(at[0])
    logged = tx.read_run(at[0], at[1], at[2], at[2] + 1, 1)
    if not logged:
        raise Problem("message_not_found", f"message {format_id(id)}-{index} is damaged; see the dead letters of topic {topic.name}")
    return logged[0], topic.name, at[1], _producer(tx, logged[0]), message_deliveries(tx, m)


def _producer(tx: Deliveries, row: Logged) -> str | None:
    return tx.source_by_id(row.source).name if row.source else None


class Window(Struct, frozen=True):
    topic: str
    lane: int | None
    start: int
    limit: int
    key: str | None


def look(tx: Deliveries, want: Window) -> tuple[list[tuple[Logged, int, str | None]], str, int | None]:
    """(messages with lane and producer, topic, next offset) of one lane; takes nothing from anyone.

    A page may be short or empty and not the last: it looks at no more than 10,000 offsets, ends with the message that makes 4 MiB, and
    reads 100 at a time.
    """
    topic = topics.get(tx, want.topic)
    lane = want.lane if want.lane is not None else (0 if want.key is None else lane_of(want.key.encode(), topic.lanes))
    if lane >= topic.lanes:
        raise Problem("bad_request", f"topic {topic.name} has lanes 0 to {topic.lanes - 1}")
    end = tx.lane_end(topic.id, lane)
    key = None if want.key is None else want.key.encode()
    found: list[tuple[Logged, int, str | None]] = []
    size, at, last = 0, want.start, min(want.start + LOOK_MAX, end)
    while at < last and len(found) < want.limit and size < LOOK_BYTES_MAX:
        till = min(at + LOOK_STEP, last)
        for row in tx.read_run(topic.id, lane, at, till, LOOK_STEP):
            if key is None or row.key == key:
                found.append((row, lane, _producer(tx, row)))
                size += len(row.body)
                if len(found) == want.limit or size >= LOOK_BYTES_MAX:
                    at = row.off + 1
                    break
        else:
            at = till
    return found, topic.name, at if at < end else None


def topic_page(tx: Deliveries, after: str, limit: int) -> list[tuple[Topic, dict[str, Any]]]:
    return [(topic, topic_numbers(tx, topic)) for topic in tx.topics_after(after, limit)]


def topic_numbers(tx: Deliveries, topic: Topic) -> dict[str, Any]:
    ends = [next_off for _, next_off in tx.all(Q.lanes_of, topic.id)]
    return {"messages": sum(ends), "ends": ends, "groups": sorted({group.name for group in tx.groups_of_topic(topic.id)})}


def group_numbers(tx: Deliveries, groups: list[Group], now: int) -> dict[str, Any]:
    """Lag, oldest, in flight, members, blocked keys, dead letters: bounded look-ups, a few a lane."""
    lag = in_flight = blocked = dead = 0
    oldest: int | None = None
    for group in groups:
        for place in tx.places(group.id):
            end = tx.lane_end(group.topic, place.lane)
            flights = tx.flights_of_lane(group.id, place.lane)
            open_now = sum(len(flight.open_offsets()) for flight in flights)
            in_flight += open_now
            lag += end - place.next_off + open_now
            retried = tx.one("SELECT min(off) FROM retry WHERE grp = ? AND lane = ?", group.id, place.lane)[0]
            first = [] if retried is None else [retried]
            floor = min([place.next_off, *first, *(off for flight in flights for off in flight.open_offsets()[:1])])
            if floor < end and (row := tx.one(Q.log_last_at, group.topic, place.lane, floor)):
                oldest = row[0] if oldest is None else min(oldest, row[0])
        retries = tx.one("SELECT count(*) FROM (SELECT 1 FROM retry WHERE grp = ? LIMIT 100000)", group.id)[0]
        lag += retries
        blocked += tx.one("SELECT count(DISTINCT okey) FROM (SELECT okey FROM retry WHERE grp = ? AND okey IS NOT NULL LIMIT 10000)", group.id)[0]
        dead += tx.count_dead(group.id, DEAD_COUNT_MAX)
    members = tx.env.members.count((group.id for group in groups), now)
    return {"lag": lag, "oldest_at": oldest, "in_flight": in_flight, "members": members, "blocked_keys": blocked, "dead_letters": dead}


def group_page(tx: Deliveries, after: str, limit: int) -> list[list[Group]]:
    pages: dict[str, list[Group]] = {}
    for group in tx.groups_after(after, limit * 64):
        pages.setdefault(group.name, []).append(group)
    return list(pages.values())[:limit]


def dead_letters(tx: Deliveries, name: str, after: int, limit: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for group in groups_of(tx, name).values():
        rows += [_dead(tx, row) for row in tx.all(Q.dead_page, group.id, after, limit)]
    return sorted(rows, key=lambda row: row["id"])[:limit]


def topic_dead_letters(tx: Deliveries, name: str, after: int, limit: int) -> list[dict[str, Any]]:
    topic = topics.get(tx, name)
    return [_dead(tx, row) for row in tx.all(Q.dead_page_topic, topic.id, after, limit)]


def dead_letter(tx: Deliveries, name: str, id: int) -> dict[str, Any]:
    row = tx.one(Q.dead_get, id)
    if row is None or row[1] not in groups_of(tx, name):
        raise Problem("dead_letter_not_found", f"no dead letter {id} in group {name}")
    return _dead(tx, row)


def _dead(tx: Deliveries, row: tuple[Any, ...]) -> dict[str, Any]:
    id, _, topic, lane, off, okey, seq, m, reason, attempts, first_out, at, history = row
    owner, _ = _owner(tx, m >> 10)
    return {
        "id": id, "topic": tx.topic_by_id(topic).name, "message_id": None if owner is None else f"{format_id(owner.id)}-{m & 1023}", "lane": lane,
        "offset": off, "key": None if okey is None else tx.key_name(okey)[3].decode(), "sequence": seq, "reason": Reason(reason).word,
        "attempts": attempts, "first_out": first_out, "at": at, "history": history,
    }  # fmt: skip


def _owner(tx: Deliveries, n: int) -> tuple[Tx | None, bool]:
    """(the transaction of this number, is its row damaged): a list of something else goes on over it."""
    try:
        return tx.find_n(n), False
    except RowDamaged:
        return None, True


def keys_with_gaps(tx: Deliveries, after: int, limit: int, topic: str | None = None) -> list[dict[str, Any]]:
    """Keys that wait for a number (or are stopped), with what is held behind it."""
    found: list[dict[str, Any]] = []
    while len(found) < limit and (row := tx.next_held_key(after)) is not None:
        after = row[0]
        state = key_state(tx, after)
        if topic is None or state["topic"] == topic:
            found.append(state)
    return found


def blocked_keys(tx: Deliveries, name: str, after: int, limit: int) -> list[dict[str, Any]]:
    """Keys of a group that wait behind a failed message: its error, its next attempt, and how many wait (at most 100 are counted)."""
    found: list[dict[str, Any]] = []
    for group in groups_of(tx, name).values():
        for (okey,) in tx.all(Q.retry_keys, group.id, after, limit):
            first = tx.first_retry_of_key(group.id, okey)
            waiting = tx.one(Q.retry_behind, group.id, okey)[0]
            if first is not None:
                blocked = {"attempts": first.attempts, "due": first.due, "error": first.error, "waiting": waiting - 1}
                found.append(key_state(tx, okey) | {"blocked": blocked})
    return sorted(found, key=lambda state: state["id"])[:limit]


def key_state(tx: Deliveries, okey: int) -> dict[str, Any]:
    topic, source, incarnation, name = tx.key_name(okey)
    key = tx.key(okey)
    open_now = {n: _owner(tx, n) for n in tx.open_on_key(okey, 20)}
    damaged = [n for n, (_, is_damaged) in open_now.items() if is_damaged]
    return {
        "id": okey, "topic": tx.topic_by_id(topic).name, "key": name.decode(), "producer": tx.source_by_id(source).name if source else None,
        "incarnation": incarnation, "next": key.next_seq, "stopped": key.stopped, "draining": key.draining,
        "held": [seq for seq, _ in tx.all(Q.held_of_key, okey, 100)],
        "undecided": [format_id(row.id) for row, _ in open_now.values() if row is not None],
    } | ({"damaged": damaged} if damaged else {})  # fmt: skip


def keys_named(tx: Deliveries, topic_name: str, key: str) -> list[dict[str, Any]]:
    topic = topics.get(tx, topic_name)
    if topic.kind is Kind.UNORDERED:
        raise Problem("combination_refused", f"topic {topic_name} is unordered; it has no keys")
    rows = []
    for source in [(0, 0), *((row[0], row[3]) for row in tx.all(Q.source_page, "", 1_000))]:
        found = tx.one(Q.okey_find, topic.id, source[0], source[1], key.encode())
        if found is not None:
            rows.append(key_state(tx, found[0]))
    return rows


def producer_numbers(tx: Deliveries, source: Source) -> dict[str, Any]:
    parked = tx.one("SELECT count(*) FROM (SELECT 1 FROM tx WHERE source = ? AND state = 3 LIMIT 10000)", source.id)[0]
    return {"in_doubt": tx.open_count(source.id), "parked": parked}
