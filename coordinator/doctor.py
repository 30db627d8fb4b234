"""The invariants of the store as SQL: each statement gives rows only where something is wrong, and a sentence says what that means.

Run by tests after every kill, and by operators (`halfmsg doctor`, `GET /v1/doctor`), over a read-only connection; it reads only and
repairs nothing. Each statement is one snapshot. Whole tables are walked, so a running coordinator bounds the work (`steps_max`).
It knows the schema (PROTOCOL section 4) and not how it is written. Retention and purging of records are not built yet: what they
will be allowed to delete is a violation here until then.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import msgspec
from msgspec import Struct

from .digests import message_digest
from .ids import format_id

ROWS_MAX: Final = 20
SAMPLE_MESSAGES: Final = 200
_STEP_OPS: Final = 10_000


class Invariant(Struct, frozen=True):
    """`rule`: the promise or rule it stands for. `sql` gives the violations, `meaning` says what one would mean."""

    name: str
    rule: str
    sql: str
    meaning: str


class Finding(Struct, frozen=True):
    """`ok` None: not finished within the limit of work, so nothing is known. `rows`: at most `limit` violations, ready for JSON."""

    name: str
    ok: bool | None
    rows: tuple[dict[str, Any], ...]
    meaning: str


def _open(flight: str, off: str) -> str:
    """SQL: this offset of the run is not settled. `done` is a little-endian bitmap; SQLite shows a blob's bits only through `hex`."""
    at = f"({off} - {flight}.lo)"
    nibble = f"substr(hex({flight}.done), 2 * ({at} / 8) + iif({at} % 8 < 4, 2, 1), 1)"
    return f"(((instr('0123456789ABCDEF', {nibble}) - 1) >> ({at} % 4)) & 1) = 0"


def _earlier_in_hand(retry: str) -> str:
    """SQL: an earlier message of this retry's key is open in a run of the same group."""
    return f"""EXISTS (
    SELECT 1 FROM flight f JOIN grp q ON q.id = f.grp JOIN log g ON g.topic = q.topic AND g.lane = f.lane
        AND g.off BETWEEN f.lo AND min(f.hi, {retry}.off - 1)
    WHERE f.grp = {retry}.grp AND f.lane = {retry}.lane AND g.okey = {retry}.okey AND {_open("f", "g.off")})"""


def _earlier_retry(retry: str) -> str:
    return f"EXISTS (SELECT 1 FROM retry e WHERE e.grp = {retry}.grp AND e.okey = {retry}.okey AND (e.lane, e.off) < ({retry}.lane, {retry}.off))"


_DECISIONS: Final = (
    Invariant(
        "log_is_committed", "P1",
        "SELECT g.topic, g.lane, g.off, g.m, t.state FROM log g LEFT JOIN tx t ON t.n = g.m >> 10 WHERE t.state IS NOT 1",
        "a message is visible although its transaction is not committed",
    ),
    Invariant(
        "held_and_dead_are_committed", "P1",
        """SELECT 'held' AS place, h.m, t.state FROM held h LEFT JOIN tx t ON t.n = h.m >> 10 WHERE t.state IS NOT 1
        UNION ALL SELECT 'dead', d.m, t.state FROM dead d LEFT JOIN tx t ON t.n = d.m >> 10 WHERE d.m >= 0 AND t.state IS NOT 1""",
        "a message waits for its turn or is a dead letter although its transaction is not committed",
    ),
    Invariant(
        "committed_is_somewhere", "P2",
        """SELECT x.m, x.topic FROM message x JOIN tx t ON t.n = x.m >> 10 AND t.state = 1
        WHERE NOT EXISTS (SELECT 1 FROM log g WHERE g.m = x.m) AND NOT EXISTS (SELECT 1 FROM held h WHERE h.m = x.m)
            AND NOT EXISTS (SELECT 1 FROM dead d WHERE d.m = x.m)""",
        "a committed message is neither released, nor held behind a gap, nor a dead letter: nobody will ever get it",
    ),
    Invariant(
        "bodies_are_all_there", "P2",
        """SELECT t.n, hex(t.id) AS id, t.state, t.msgs FROM tx t WHERE t.state <> 2
            AND (SELECT count(*) FROM message x WHERE x.m BETWEEN t.n * 1024 AND t.n * 1024 + 1023) <> t.msgs""",
        "a transaction that is not rolled back has lost bodies, or has more than it was stored with",
    ),
    Invariant(
        "rolled_back_has_no_bodies", "P1",
        """SELECT t.n, hex(t.id) AS id FROM tx t WHERE t.state = 2 AND t.decided_by IS NOT 3
            AND EXISTS (SELECT 1 FROM message x WHERE x.m BETWEEN t.n * 1024 AND t.n * 1024 + 1023)""",
        "a transaction was rolled back, not by an operator, and its bodies are still stored",
    ),
    Invariant(
        "message_has_its_transaction", "P2",
        "SELECT x.m, x.topic FROM message x LEFT JOIN tx t ON t.n = x.m >> 10 WHERE t.n IS NULL",
        "a body belongs to no transaction",
    ),
    Invariant(
        "undecided_is_asked_about", "P2",
        "SELECT n, hex(id) AS id, state FROM tx WHERE state IN (0, 3) AND next_check IS NULL",
        "an undecided transaction has no next check: nobody will ask its producer",
    ),
    Invariant(
        "decided_is_not_asked_about", "P4",
        "SELECT n, hex(id) AS id, state, next_check FROM tx WHERE state IN (1, 2) AND next_check IS NOT NULL",
        "a decided transaction is still due for a check-back",
    ),
    Invariant(
        "decision_is_whole", "P4",
        """SELECT n, hex(id) AS id, state, decided_at, decided_by FROM tx WHERE state NOT IN (0, 1, 2, 3)
            OR (state IN (1, 2)) <> (decided_at IS NOT NULL) OR (state IN (1, 2)) <> (decided_by IS NOT NULL)""",
        "a transaction says that it is decided and not when or by whom, or the other way round",
    ),
    Invariant(
        "undecided_has_a_producer", "P5",
        "SELECT t.n, hex(t.id) AS id, t.source FROM tx t LEFT JOIN source s ON s.id = t.source WHERE t.state IN (0, 3) AND s.id IS NULL",
        "an undecided transaction belongs to no producer: there is nobody to ask",
    ),
    Invariant(
        "open_key_is_undecided", "R5",
        "SELECT o.okey, o.n, t.state FROM open_key o LEFT JOIN tx t ON t.n = o.n WHERE t.state IS NULL OR t.state NOT IN (0, 3)",
        "a key is marked as having an undecided transaction that is decided or unknown",
    ),
    Invariant(
        "undecided_key_is_open", "R5",
        """SELECT t.n, hex(t.id) AS id, x.okey FROM tx t JOIN message x ON x.m BETWEEN t.n * 1024 AND t.n * 1024 + 1023
        WHERE t.state IN (0, 3) AND x.okey IS NOT NULL AND NOT EXISTS (SELECT 1 FROM open_key o WHERE o.okey = x.okey AND o.n = t.n)""",
        "an undecided transaction is not marked on its key: a gap there would not ask about it",
    ),
)  # fmt: skip

_ORDER: Final = (
    Invariant(
        "held_waits_for_a_gap", "R11",
        """SELECT h.okey, h.seq, h.m FROM held h JOIN okey k ON k.id = h.okey AND k.next_seq = h.seq
        WHERE k.stopped = 0 AND k.draining = 0 AND h.until IS NULL""",
        "a held message's number is the next one of its key and nothing holds it: it is stuck and nobody sees it",
    ),
    Invariant(
        "held_is_above_next", "R11",
        "SELECT h.okey, h.seq, h.m, k.next_seq FROM held h LEFT JOIN okey k ON k.id = h.okey WHERE k.id IS NULL OR h.seq < k.next_seq",
        "a held message's number has passed, or its key is unknown: it will never be released",
    ),
    Invariant(
        "held_has_its_body", "P8",
        "SELECT h.okey, h.seq, h.m FROM held h LEFT JOIN message x ON x.m = h.m WHERE x.m IS NULL",
        "a held message has no body",
    ),
    Invariant(
        "log_has_its_body", "P8",
        "SELECT g.topic, g.lane, g.off, g.m FROM log g LEFT JOIN message x ON x.m = g.m WHERE x.m IS NULL",
        "a released message has no body",
    ),
    Invariant(
        "log_is_below_lane_end", "R11",
        """SELECT g.topic, g.lane, g.off, l.next_off FROM log g LEFT JOIN lane l ON l.topic = g.topic AND l.lane = g.lane
        WHERE l.topic IS NULL OR g.off < 0 OR g.off >= l.next_off""",
        "an offset is at or beyond the end of its lane: the next release would collide with it, or groups never read it",
    ),
    Invariant(
        "log_has_no_hole", "P2",
        """SELECT l.topic, l.lane, l.next_off, c.lo, c.hi, c.n FROM lane l
        JOIN (SELECT topic, lane, count(*) AS n, min(off) AS lo, max(off) AS hi FROM log GROUP BY topic, lane) c USING (topic, lane)
        WHERE c.hi - c.lo + 1 <> c.n OR c.hi + 1 <> l.next_off""",
        "a lane has a hole: an offset was given out and no message stands there",
    ),
    Invariant(
        "log_fits_its_kind", "R10",
        """SELECT g.topic, g.lane, g.off, t.kind, g.okey, g.seq FROM log g JOIN topic t ON t.id = g.topic
        WHERE (t.kind = 0) <> (g.okey IS NULL) OR (t.kind = 0) <> (g.seq IS NULL)""",
        "an ordered message has no key or number, or an unordered one has one",
    ),
    Invariant(
        "number_is_released_once", "P7",
        "SELECT okey, seq, count(*) AS times FROM log WHERE okey IS NOT NULL GROUP BY okey, seq HAVING count(*) > 1",
        "two messages were released with the same number of one key",
    ),
    Invariant(
        "key_is_released_in_order", "P7",
        """SELECT * FROM (SELECT okey, topic, lane, off, seq, lag(seq) OVER (PARTITION BY okey ORDER BY lane, off) AS before
            FROM log WHERE okey IS NOT NULL) WHERE before >= seq""",
        "a key's messages stand in the log in another order than its producer committed them",
    ),
    Invariant(
        "key_has_no_unnamed_hole", "P2",
        """SELECT * FROM (SELECT okey, topic, lane, off, seq, lag(seq) OVER (PARTITION BY okey ORDER BY lane, off) AS before
            FROM log WHERE okey IS NOT NULL) n WHERE before < seq - 1
            AND NOT EXISTS (SELECT 1 FROM skipped s WHERE s.okey = n.okey AND s.lo <= before + 1 AND s.hi >= before + 1)""",
        "a key moved on over a number that no operator skipped",
    ),
    Invariant(
        "key_stays_in_one_lane", "P7",
        "SELECT okey, min(lane) AS lo, max(lane) AS hi FROM log WHERE okey IS NOT NULL GROUP BY okey HAVING min(lane) <> max(lane)",
        "messages of one key stand in two lanes: two members could run them at once",
    ),
    Invariant(
        "released_number_is_below_next", "R5",
        """SELECT g.okey, g.seq, k.next_seq FROM log g LEFT JOIN okey k ON k.id = g.okey
        WHERE g.okey IS NOT NULL AND (k.id IS NULL OR g.seq >= k.next_seq)""",
        "a released number is not below the next one of its key: it would be released again",
    ),
)  # fmt: skip

_DELIVERIES: Final = (
    Invariant(
        "group_has_a_place_in_each_lane", "P2",
        """SELECT q.id AS grp, l.lane FROM grp q JOIN lane l ON l.topic = q.topic
        LEFT JOIN place p ON p.grp = q.id AND p.lane = l.lane WHERE p.grp IS NULL""",
        "a group has no place in a lane of its topic: it will never be handed what is there",
    ),
    Invariant(
        "place_is_within_lane", "P2",
        """SELECT p.grp, p.lane, p.next_off, l.next_off AS lane_end FROM place p LEFT JOIN grp q ON q.id = p.grp
        LEFT JOIN lane l ON l.topic = q.topic AND l.lane = p.lane WHERE l.topic IS NULL OR p.next_off > l.next_off OR p.next_off < 0""",
        "a group's place is beyond the end of the lane: it would pass over messages to come",
    ),
    Invariant(
        "flight_is_behind_its_place", "P2",
        """SELECT f.grp, f.lane, f.lo, f.hi, f.token, p.next_off FROM flight f LEFT JOIN place p ON p.grp = f.grp AND p.lane = f.lane
        WHERE p.grp IS NULL OR f.hi >= p.next_off""",
        "a run in flight reaches beyond its group's place: its messages would be handed out twice",
    ),
    Invariant(
        "flight_is_well_formed", "R24",
        """SELECT grp, lane, lo, hi, token, hex(done) AS done FROM flight
        WHERE lo < 0 OR hi < lo OR hi - lo >= 256 OR length(done) <> (hi - lo) / 8 + 1""",
        "a run in flight has an impossible range or bitmap",
    ),
    Invariant(
        "retry_is_behind_its_place", "P2",
        """SELECT r.grp, r.lane, r.off, p.next_off FROM retry r LEFT JOIN place p ON p.grp = r.grp AND p.lane = r.lane
        LEFT JOIN grp q ON q.id = r.grp LEFT JOIN log g ON g.topic = q.topic AND g.lane = r.lane AND g.off = r.off
        WHERE p.grp IS NULL OR r.off >= p.next_off OR (g.off IS NULL AND coalesce(r.error, '') NOT LIKE 'stuck: %')""",
        "a message to be tried again is beyond its group's place, or is not in the log",
    ),
    Invariant(
        "message_is_in_one_run", "R13",  # CROSS JOIN keeps SQLite to this order: offsets are counted only where two runs overlap
        f"""WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 255)
        SELECT a.grp, a.lane, a.lo + n.i AS off, a.token, b.token AS other FROM flight a
        CROSS JOIN flight b ON b.grp = a.grp AND b.lane = a.lane AND b.lo BETWEEN a.lo - 255 AND a.hi AND b.hi >= a.lo AND b.token > a.token
        CROSS JOIN n ON a.lo + n.i BETWEEN max(a.lo, b.lo) AND min(a.hi, b.hi)
        WHERE {_open("a", "(a.lo + n.i)")} AND {_open("b", "(a.lo + n.i)")}""",
        "one message is open in two runs of a group: two members have it in hand",
    ),
    Invariant(
        "message_is_in_hand_or_waits", "R13",
        f"""SELECT r.grp, r.lane, r.off, f.token FROM retry r JOIN flight f ON f.grp = r.grp AND f.lane = r.lane
            AND f.lo BETWEEN r.off - 255 AND r.off AND f.hi >= r.off WHERE {_open("f", "r.off")}""",
        "one message is in a member's hand and waits to be tried again at the same time",
    ),
    Invariant(
        "dead_is_settled", "P2",
        f"""SELECT d.id, d.grp, d.lane, d.off, 'retry' AS place FROM dead d JOIN retry r ON r.grp = d.grp AND r.lane = d.lane AND r.off = d.off
        UNION ALL SELECT d.id, d.grp, d.lane, d.off, 'run' FROM dead d JOIN flight f ON f.grp = d.grp AND f.lane = d.lane
            AND f.lo BETWEEN d.off - 255 AND d.off AND f.hi >= d.off WHERE {_open("f", "d.off")}""",
        "a group's dead letter is still being handed out",
    ),
    Invariant(
        "key_has_one_head", "R13",
        f"""SELECT r.grp, r.okey, r.lane, r.off, r.due FROM retry r WHERE r.okey IS NOT NULL AND r.due IS NOT NULL
            AND ({_earlier_retry("r")} OR {_earlier_in_hand("r")})""",
        "a message is due although an earlier one of its key is still open: they could run in the wrong order",
    ),
    Invariant(
        "waiting_key_is_woken", "R13",
        f"""SELECT r.grp, r.okey, r.lane, r.off FROM retry r WHERE r.okey IS NOT NULL AND r.due IS NULL
            AND coalesce(r.error, '') NOT LIKE 'stuck: %' AND NOT {_earlier_retry("r")} AND NOT {_earlier_in_hand("r")}""",
        "a message waits behind an earlier one of its key that is not there any more: the key is stuck",
    ),
    Invariant(
        "ordered_lane_is_in_one_hand", "P7",
        """SELECT f.grp, f.lane, f.lo, f.member, p.owner FROM flight f JOIN grp q ON q.id = f.grp JOIN topic t ON t.id = q.topic AND t.kind <> 0
        JOIN place p ON p.grp = f.grp AND p.lane = f.lane WHERE p.owner IS NOT f.member""",
        "a member has messages of an ordered lane that it does not own",
    ),
    Invariant(
        "dead_has_its_body", "P2",
        "SELECT d.id, d.grp, d.topic, d.m, d.reason FROM dead d LEFT JOIN message x ON x.m = d.m WHERE x.m IS NULL AND d.reason <> 5",
        "a dead letter has no body, so nobody can look at it or send it again",
    ),
)  # fmt: skip

_REST: Final = (
    Invariant(
        "names_exist", "P2",
        """SELECT 'log' AS place, topic AS id FROM log WHERE topic NOT IN (SELECT id FROM topic)
        UNION SELECT 'lane', topic FROM lane WHERE topic NOT IN (SELECT id FROM topic)
        UNION SELECT 'message', topic FROM message WHERE topic NOT IN (SELECT id FROM topic)
        UNION SELECT 'okey', topic FROM okey WHERE topic NOT IN (SELECT id FROM topic)
        UNION SELECT 'grp', topic FROM grp WHERE topic NOT IN (SELECT id FROM topic)
        UNION SELECT 'place', grp FROM place WHERE grp NOT IN (SELECT id FROM grp)
        UNION SELECT 'flight', grp FROM flight WHERE grp NOT IN (SELECT id FROM grp)
        UNION SELECT 'retry', grp FROM retry WHERE grp NOT IN (SELECT id FROM grp)
        UNION SELECT 'dead', grp FROM dead WHERE grp IS NOT NULL AND grp NOT IN (SELECT id FROM grp)
        UNION SELECT 'message key', okey FROM message WHERE okey IS NOT NULL AND okey NOT IN (SELECT id FROM okey)""",
        "a row names a topic, group or key that does not exist",
    ),
    Invariant(
        "counters_are_ahead", "R30",
        """SELECT c.name, c.v, s.v AS stored FROM counter c JOIN (
            SELECT 'n' AS name, max(n) AS v FROM tx UNION ALL SELECT 'token', max(token) FROM flight
            UNION ALL SELECT 'token', max(token) FROM place UNION ALL SELECT 'n', max(m) >> 10 FROM message
            UNION ALL SELECT 'now', max(first_at) FROM tx UNION ALL SELECT 'now', max(at) FROM log) s ON s.name = c.name
        WHERE s.v > c.v AND NOT (c.name = 'now' AND c.v = 0) UNION ALL SELECT w.name, NULL, NULL FROM (SELECT 'n' AS name UNION ALL SELECT 'token') w
        WHERE NOT EXISTS (SELECT 1 FROM counter c WHERE c.name = w.name)""",
        "a counter is behind what is stored: a number would be given out a second time, or the coordinator's time would go back",
    ),
)  # fmt: skip

INVARIANTS: Final[tuple[Invariant, ...]] = _DECISIONS + _ORDER + _DELIVERIES + _REST

BODY_MEANING: Final = "a stored body is not what was sent: its digest differs (a sample of all messages was looked at)"
FILE_MEANING: Final = "SQLite finds damage in the file; keep a copy before anything else"


def run(
    conn: sqlite3.Connection, *, limit: int = ROWS_MAX, sample: int = SAMPLE_MESSAGES, steps_max: int | None = None, integrity: bool = False
) -> list[Finding]:
    """Every invariant, then the digests of `sample` messages, then (with `integrity`) SQLite's own check of the file.

    `steps_max` bounds the virtual-machine steps of each statement (about 50 million a second); past it the finding has `ok` None.
    """
    findings = [look(conn) for look in looks(limit=limit, sample=sample, steps_max=steps_max)]
    if integrity:
        findings.append(integrity_check(conn, limit=limit, steps_max=steps_max))
    return findings


def looks(*, limit: int = ROWS_MAX, sample: int = SAMPLE_MESSAGES, steps_max: int | None = None) -> list[Callable[[sqlite3.Connection], Finding]]:
    """Each invariant by itself, then the digests: each may be read in a snapshot of its own, so that none is held for long."""
    found: list[Callable[[sqlite3.Connection], Finding]] = [
        partial(check, invariant=invariant, limit=limit, steps_max=steps_max) for invariant in INVARIANTS
    ]
    return [*found, partial(check_bodies, limit=limit, sample=sample)]


def check(conn: sqlite3.Connection, invariant: Invariant, *, limit: int = ROWS_MAX, steps_max: int | None = None) -> Finding:
    return _asked(conn, invariant.name, f"SELECT * FROM ({invariant.sql}) LIMIT {int(limit)}", invariant.meaning, steps_max)


def integrity_check(conn: sqlite3.Connection, *, limit: int = ROWS_MAX, steps_max: int | None = None, full: bool = False) -> Finding:
    """`PRAGMA quick_check`: pages and rows; `full` also whether indexes agree with tables (`PRAGMA integrity_check`, about twice the time)."""
    found = _asked(conn, "file_is_sound", f"PRAGMA {'integrity' if full else 'quick'}_check({int(limit)})", FILE_MEANING, steps_max)
    rows = tuple(row for row in found.rows if list(row.values()) != ["ok"])
    return Finding(found.name, None if found.ok is None else not rows, rows, found.meaning)


def _asked(conn: sqlite3.Connection, name: str, sql: str, meaning: str, steps_max: int | None) -> Finding:
    steps = 0

    def tired() -> int:
        nonlocal steps
        steps += _STEP_OPS
        return int(steps_max is not None and steps > steps_max)

    conn.set_progress_handler(tired if steps_max is not None else None, _STEP_OPS)
    try:
        cursor = conn.execute(sql)
        columns = [column[0] for column in cursor.description]
        rows = tuple(_named(conn, dict(zip(columns, map(_plain, row), strict=True))) for row in cursor.fetchall())
    except sqlite3.DatabaseError as error:
        if _code(error) == sqlite3.SQLITE_INTERRUPT:
            return Finding(name, None, (), meaning)
        return _unreadable(name, meaning, error)
    finally:
        conn.set_progress_handler(None, 0)
    return Finding(name, not rows, rows, meaning)


def _code(error: sqlite3.Error) -> int:
    """0: not of SQLite but of Python's module, which cannot make a text of damaged bytes."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _unreadable(name: str, meaning: str, error: sqlite3.DatabaseError) -> Finding:
    """Damage is a finding; whatever else SQLite says is raised."""
    if _code(error) not in (0, sqlite3.SQLITE_CORRUPT):
        raise error
    return Finding(name, False, ({"error": str(error)},), meaning)


def _named(conn: sqlite3.Connection, row: dict[str, Any]) -> dict[str, Any]:
    """A row that numbers a message names it too, where its transaction can be read: that is what other commands take."""
    if isinstance(m := row.get("m"), int) and m >= 0:
        with contextlib.suppress(sqlite3.DatabaseError):
            owner = conn.execute("SELECT id FROM tx WHERE n = ?", (m >> 10,)).fetchone()
            if owner is not None and isinstance(owner[0], bytes) and len(owner[0]) == 16:
                return {"message": f"{format_id(owner[0])}-{m & 1023}"} | row
    return row


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


_decode_extra = msgspec.msgpack.Decoder(tuple[str, dict[str, str] | None, str | None]).decode
_BODY = """
SELECT x.m, t.name, k.key, CAST(x.tag AS BLOB), x.extra, x.body, x.digest FROM message x JOIN topic t ON t.id = x.topic
LEFT JOIN okey k ON k.id = x.okey WHERE x.m >= ? ORDER BY x.m LIMIT 1"""


def check_bodies(conn: sqlite3.Connection, *, limit: int = ROWS_MAX, sample: int = SAMPLE_MESSAGES) -> Finding:
    """P8: compute the digest anew from the stored bytes of `sample` messages, spread evenly over all; `sample` 0 looks at none."""
    try:
        return _check_bodies(conn, limit, sample)
    except sqlite3.DatabaseError as error:
        return _unreadable("body_is_as_sent", BODY_MEANING, error)


def _check_bodies(conn: sqlite3.Connection, limit: int, sample: int) -> Finding:
    first, last = conn.execute("SELECT (SELECT min(m) FROM message), (SELECT max(m) FROM message)").fetchone()
    wrong: list[dict[str, Any]] = []
    after = -1
    for step in range(min(sample, last - first + 1) if first is not None else 0):
        wanted = max(first + (last - first) * step // max(sample - 1, 1), after + 1)
        row = conn.execute(_BODY, (wanted,)).fetchone()
        if row is None or len(wrong) >= limit:
            break
        after = row[0]
        if not _is_sound(*row[1:]):
            wrong.append(_named(conn, {"m": after, "topic": row[1]}))
    return Finding("body_is_as_sent", not wrong, tuple(wrong), BODY_MEANING)


def _is_sound(topic: str, key: bytes | None, tag: bytes | None, extra: bytes, body: bytes, digest: bytes) -> bool:
    try:
        content_type, attributes, _ = _decode_extra(extra)
        words = None if tag is None else tag.decode()
        return message_digest(topic=topic, key=key, tag=words, content_type=content_type, body=body, attributes=attributes) == digest
    except (msgspec.MsgspecError, ValueError, TypeError):
        return False  # damage may reach the types of columns and the UTF-8 of texts


def restored(conn: sqlite3.Connection, *, limit: int = ROWS_MAX) -> dict[str, Any] | None:
    """Of a store that was made from a backup: since when, what was handed in again, and how many keys wait for a number (W15)."""
    told = dict(conn.execute("SELECT name, v FROM counter WHERE name LIKE 'restored_%'").fetchall())
    if not told:
        return None
    again = "SELECT hex(id) FROM tx WHERE n > ? AND mark < ?"
    since = (told["restored_n"], told["restored_at"])
    return {
        "at": told["restored_at"],
        "backup_at": told["restored_backup_at"],
        "again": conn.execute(f"SELECT count(*) FROM ({again} LIMIT 100000)", since).fetchone()[0],
        "again_ids": [row[0].lower() for row in conn.execute(f"{again} ORDER BY n LIMIT ?", (*since, limit)).fetchall()],
        "waiting_keys": conn.execute("SELECT count(*) FROM (SELECT DISTINCT okey FROM held LIMIT 100000)").fetchone()[0],
    }
