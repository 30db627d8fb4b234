"""The tables in the service's own database, and every statement on them. `{p}` is the prefix of the tables' names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from halfmsg.txclient import UsageError

from .effects import Dialect, Rows, Sql, Steps

SCHEMA_VERSION: Final = 1
PREFIX: Final = "halfmsg_"
LANES: Final = 64
_PREFIX: Final = re.compile(r"[a-z][a-z0-9_]{0,30}")

_DDL: Final = """
CREATE TABLE IF NOT EXISTS {p}meta (k VARCHAR(32) PRIMARY KEY, v {blob}, n BIGINT NOT NULL);
CREATE TABLE IF NOT EXISTS {p}tx (id {blob} PRIMARY KEY, verdict SMALLINT NOT NULL, digest {blob}, mark BIGINT NOT NULL, unsent SMALLINT,
    refused TEXT);
CREATE INDEX IF NOT EXISTS {p}unsent ON {p}tx (unsent, mark, id) WHERE unsent IS NOT NULL;
CREATE TABLE IF NOT EXISTS {p}out (tx_id {blob} NOT NULL, idx INTEGER NOT NULL, topic VARCHAR(128) NOT NULL, okey {blob}, seq BIGINT,
    meta {blob} NOT NULL, body {blob}, PRIMARY KEY (tx_id, idx));
CREATE INDEX IF NOT EXISTS {p}who ON {p}out (topic, okey, seq) WHERE seq IS NOT NULL;
CREATE TABLE IF NOT EXISTS {p}seq (topic VARCHAR(128) NOT NULL, okey {blob} NOT NULL, n BIGINT NOT NULL, PRIMARY KEY (topic, okey));
CREATE TABLE IF NOT EXISTS {p}lane (lane INTEGER PRIMARY KEY, owner {blob}, until BIGINT NOT NULL);
CREATE TABLE IF NOT EXISTS {p}inbox (grp VARCHAR(128) NOT NULL, generation INTEGER NOT NULL, msg {blob} NOT NULL, at BIGINT NOT NULL,
    PRIMARY KEY (grp, generation, msg));
CREATE INDEX IF NOT EXISTS {p}inbox_at ON {p}inbox (at);
CREATE TABLE IF NOT EXISTS {p}key (grp VARCHAR(128) NOT NULL, generation INTEGER NOT NULL, source VARCHAR(200) NOT NULL, topic VARCHAR(128) NOT NULL,
    okey {blob} NOT NULL, last BIGINT NOT NULL, PRIMARY KEY (grp, generation, source, topic, okey));
CREATE TABLE IF NOT EXISTS {p}missed (grp VARCHAR(128) NOT NULL, generation INTEGER NOT NULL, source VARCHAR(200) NOT NULL,
    topic VARCHAR(128) NOT NULL,
    okey {blob} NOT NULL, seq BIGINT NOT NULL, PRIMARY KEY (grp, generation, source, topic, okey, seq))
"""
NAMES: Final = ("meta", "tx", "out", "seq", "lane", "inbox", "key", "missed")

META_NAMES: Final = ("source", "beats", "purged_before", "schema")
"""In the order of their numbers in the statement."""

_SQL: Final = {
    # Numbers, whatever the text factory or the encoding of the caller's connection, or that of the file, makes of text.
    "meta": "SELECT CASE k WHEN 'source' THEN 0 WHEN 'beats' THEN 1 WHEN 'purged_before' THEN 2 WHEN 'schema' THEN 3 ELSE -1 END, v, n FROM {p}meta",
    "meta_put": "INSERT INTO {p}meta (k, v, n) VALUES (?, ?, ?) ON CONFLICT (k) DO NOTHING",
    "meta_set": "UPDATE {p}meta SET v = ? WHERE k = ?",
    "lane_put": "INSERT INTO {p}lane (lane, until) VALUES (?, 0) ON CONFLICT (lane) DO NOTHING",
    "draw": "INSERT INTO {p}seq (topic, okey, n) VALUES (?, ?, 1) ON CONFLICT (topic, okey) DO UPDATE SET n = {p}seq.n + 1 RETURNING n",
    "out_put": "INSERT INTO {p}out (tx_id, idx, topic, okey, seq, meta, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
    "out_of": "SELECT idx, topic, okey, seq, meta, body FROM {p}out WHERE tx_id = ? ORDER BY idx",
    "numbers_of": "SELECT idx, seq, meta FROM {p}out WHERE tx_id = ? ORDER BY idx",
    "who": "SELECT tx_id FROM {p}out WHERE topic = ? AND okey = ? AND seq = ?",
    "verdict": "SELECT verdict, digest FROM {p}tx WHERE id = ?",
    "hold": "SELECT 1 FROM {p}tx WHERE id = ? AND verdict = 1 AND digest IS NULL",
    "close_fence": "UPDATE {p}tx SET digest = ? WHERE id = ? AND verdict = 1 RETURNING 1",
    "unsent": "SELECT id, digest, mark FROM {p}tx WHERE unsent = 1 AND (mark, id) > (?, ?) ORDER BY mark, id LIMIT ?",
    "refused": "SELECT id, refused FROM {p}tx WHERE unsent = 2 ORDER BY mark, id LIMIT ?",
    "sent": "UPDATE {p}tx SET unsent = NULL WHERE id = ? AND unsent = 1",
    "refuse": "UPDATE {p}tx SET unsent = 2, refused = ? WHERE id = ? AND unsent = 1",
    "retry": "UPDATE {p}tx SET unsent = 1, refused = NULL WHERE unsent = 2 RETURNING id",
    # A mark at purged_before is no time: the process had none yet, or never asks the coordinator for one (a WSGI worker beside its relay).
    "resend": "UPDATE {p}tx SET unsent = 1 WHERE verdict = 1 AND unsent IS NULL"
    " AND (mark >= ? OR mark <= (SELECT n FROM {p}meta WHERE k = 'purged_before'))"
    " AND EXISTS (SELECT 1 FROM {p}out o WHERE o.tx_id = {p}tx.id)"
    " AND NOT EXISTS (SELECT 1 FROM {p}out o WHERE o.tx_id = {p}tx.id AND o.body IS NULL) RETURNING id",
    "bodiless": "SELECT id FROM {p}tx WHERE verdict = 1 AND unsent IS NULL"
    " AND (mark >= ? OR mark <= (SELECT n FROM {p}meta WHERE k = 'purged_before'))"
    " AND EXISTS (SELECT 1 FROM {p}out o WHERE o.tx_id = {p}tx.id AND o.body IS NULL) ORDER BY mark, id LIMIT ?",
    "claim_lane": "UPDATE {p}lane SET owner = ?, until = ? WHERE lane = ? AND (owner IS NULL OR owner = ? OR until < ? OR until > ?) RETURNING lane",
    "free_lanes": "UPDATE {p}lane SET owner = NULL WHERE owner = ?",
    "inbox_put": "INSERT INTO {p}inbox (grp, generation, msg, at) VALUES (?, ?, ?, ?) ON CONFLICT (grp, generation, msg) DO NOTHING RETURNING 1",
    "inbox_has": "SELECT 1 FROM {p}inbox WHERE grp = ? AND generation = ? AND msg = ?",
    "key_has": "SELECT 1 FROM {p}key WHERE grp = ? AND generation = ? AND source = ? AND topic = ? AND okey = ? AND last >= ?",
    "missed_has": "SELECT 1 FROM {p}missed WHERE grp = ? AND generation = ? AND source = ? AND topic = ? AND okey = ? AND seq = ?",
    "key_put": "INSERT INTO {p}key (grp, generation, source, topic, okey, last) VALUES (?, ?, ?, ?, ?, 0) ON CONFLICT DO NOTHING",
    "key_set": "UPDATE {p}key SET last = ? WHERE grp = ? AND generation = ? AND source = ? AND topic = ? AND okey = ?",
    "missed_put": "INSERT INTO {p}missed (grp, generation, source, topic, okey, seq) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
    "missed_take": "DELETE FROM {p}missed WHERE grp = ? AND generation = ? AND source = ? AND topic = ? AND okey = ? AND seq = ? RETURNING 1",
}
_FENCE: Final = (
    "INTO {p}tx (id, verdict, digest, mark, unsent, refused) SELECT ?, 1, ?, ?, ?, NULL WHERE ? >= (SELECT n FROM {p}meta WHERE k = 'purged_before')"
)
_FENCE_PG: Final = (
    _FENCE.replace("SELECT ?, 1, ?, ?, ?,", "SELECT CAST(? AS bytea), 1, CAST(? AS bytea), CAST(? AS bigint), CAST(? AS smallint),").replace(
        "WHERE ? >=", "WHERE CAST(? AS bigint) >="
    )
)
_BY_DIALECT: Final[dict[Dialect, dict[str, str]]] = {
    "sqlite": {
        # A conflict takes the whole transaction with it in one step: nothing can be swallowed between error and rollback (R8).
        "fence": f"INSERT OR ROLLBACK {_FENCE} RETURNING 1",
        "fence_in_block": f"INSERT {_FENCE} ON CONFLICT (id) DO NOTHING RETURNING 1",
        "key_last": "SELECT last FROM {p}key WHERE grp = ? AND generation = ? AND source = ? AND topic = ? AND okey = ?",
        "exists": "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE ?",
        "lock_wait": "PRAGMA busy_timeout = 50",
    },
    "postgresql": {
        "fence": f"INSERT {_FENCE_PG} ON CONFLICT (id) DO NOTHING RETURNING 1",
        "fence_in_block": f"INSERT {_FENCE_PG} ON CONFLICT (id) DO NOTHING RETURNING 1",
        "hold": "SELECT 1 FROM {p}tx WHERE id = ? AND verdict = 1 AND digest IS NULL FOR UPDATE",
        "key_last": "SELECT last FROM {p}key WHERE grp = ? AND generation = ? AND source = ? AND topic = ? AND okey = ? FOR UPDATE",
        "exists": "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema() AND table_name LIKE ?",
        "lock_wait": "SET LOCAL lock_timeout = '50ms'",
        "claim_wait": "SET LOCAL lock_timeout = '2s'",
        "claim_waited": "SET LOCAL lock_timeout TO DEFAULT",
    },
}
_TOMBSTONE: Final = (
    "INSERT INTO {p}tx (id, verdict, digest, mark, unsent, refused) SELECT ?, 2, NULL, ?, NULL, NULL"
    " WHERE ? >= (SELECT n FROM {p}meta WHERE k = 'purged_before') ON CONFLICT (id) DO NOTHING RETURNING 1"
)
_TOMBSTONE_PG: Final = _TOMBSTONE.replace("SELECT ?, 2, NULL, ?,", "SELECT CAST(? AS bytea), 2, NULL, CAST(? AS bigint),").replace(
    "WHERE ? >=", "WHERE CAST(? AS bigint) >="
)


class Tables:
    """The statements for one dialect and prefix: `tables.sql("fence", …)` is an effect."""

    def __init__(self, dialect: Dialect, prefix: str) -> None:
        self.dialect = dialect
        self.prefix = checked_prefix(prefix)
        texts = _SQL | _BY_DIALECT[dialect] | {"tombstone": _TOMBSTONE if dialect == "sqlite" else _TOMBSTONE_PG}
        self._texts = {name: text.replace("{p}", prefix) for name, text in texts.items()}

    def sql(self, name: str, *args: object) -> Sql:
        return Sql(self._texts[name], args)

    def install(self, source_id: bytes) -> Steps[None]:
        """Make what is missing; a second run changes nothing. `source_id`: 16 random bytes that name this database for ever (R7)."""
        for statement in statements(self.dialect, self.prefix):
            yield Sql(statement)
        yield self.sql("meta_put", "source", source_id, 1)
        yield self.sql("meta_put", "beats", b"", 0)
        yield self.sql("meta_put", "purged_before", b"", 0)
        yield self.sql("meta_put", "schema", b"", SCHEMA_VERSION)
        for lane in range(LANES):
            yield self.sql("lane_put", lane)

    def install_command(self, url: str = "URL") -> str:
        """What to run where they are missing."""
        return f"halfmsg outbox install {url}" + ("" if self.prefix == PREFIX else f" --tables {self.prefix}")

    def is_filled(self) -> Steps[bool]:
        """Whether `install` has been here, beyond the tables."""
        rows: Rows = yield self.sql("meta")
        return bool(rows)

    def missing(self) -> Steps[list[str]]:
        """Names of our tables that are not there."""
        rows: Rows = yield self.sql("exists", f"{self.prefix}%")
        have = {row[0] for row in rows}
        return [self.prefix + name for name in NAMES if self.prefix + name not in have]


def checked_prefix(prefix: str) -> str:
    if _PREFIX.fullmatch(prefix) is None:
        raise UsageError("bad_name", f"tables={prefix!r}: a prefix is lower-case letters, digits and underscores, 31 in all")
    return prefix


def statements(dialect: Dialect, prefix: str = "halfmsg_") -> Iterator[str]:
    """The DDL, a statement at a time."""
    text = _DDL.replace("{p}", checked_prefix(prefix)).replace("{blob}", "BLOB" if dialect == "sqlite" else "BYTEA")
    for statement in text.split(";"):
        if statement.strip():
            yield statement.strip()
