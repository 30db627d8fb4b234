-- The first schema (PROTOCOL §4). Times are integer ms of the coordinator's clock; ids 16 bytes.
CREATE TABLE migration (n INTEGER PRIMARY KEY, name TEXT NOT NULL, at INTEGER NOT NULL);
CREATE TABLE counter (name TEXT PRIMARY KEY, v INTEGER NOT NULL) WITHOUT ROWID;          -- tx n, token, highest now

CREATE TABLE source (
    id INTEGER PRIMARY KEY, ns INTEGER NOT NULL, name TEXT NOT NULL, db_id BLOB, incarnation INTEGER NOT NULL, beats TEXT,
    settled_told INTEGER NOT NULL DEFAULT 0, forgotten_before INTEGER NOT NULL DEFAULT 0, frozen INTEGER NOT NULL DEFAULT 0,
    check_url TEXT, dialect TEXT NOT NULL DEFAULT 'halfmsg', secret TEXT, said_hello INTEGER NOT NULL DEFAULT 0,
    UNIQUE (ns, name), UNIQUE (ns, db_id));
CREATE TABLE topic (
    id INTEGER PRIMARY KEY, ns INTEGER NOT NULL, name TEXT NOT NULL, kind INTEGER NOT NULL, lanes INTEGER NOT NULL, policy TEXT NOT NULL,
    UNIQUE (ns, name));

-- Small and mutable, no body: SQLite rewrites a row with its overflow pages (R30).
CREATE TABLE tx (
    n INTEGER PRIMARY KEY, ns INTEGER NOT NULL, id BLOB NOT NULL, source INTEGER NOT NULL, state INTEGER NOT NULL, digest BLOB NOT NULL,
    msgs INTEGER NOT NULL, mark INTEGER NOT NULL, first_at INTEGER NOT NULL, decided_at INTEGER, decided_by INTEGER,
    attempts INTEGER NOT NULL DEFAULT 0, next_check INTEGER, reason TEXT);
CREATE UNIQUE INDEX tx_id ON tx (ns, id);
CREATE INDEX tx_due ON tx (source, next_check) WHERE state = 0;
CREATE INDEX tx_parked ON tx (source, n) WHERE state = 3;
CREATE INDEX tx_parked_due ON tx (source, next_check) WHERE state = 3;
CREATE TABLE tx_note (id INTEGER PRIMARY KEY, n INTEGER NOT NULL, at INTEGER NOT NULL, what TEXT NOT NULL, detail TEXT);
CREATE INDEX tx_note_n ON tx_note (n, id);

-- Bodies: insert and delete only. m = n * 1024 + index.
CREATE TABLE message (
    m INTEGER PRIMARY KEY, topic INTEGER NOT NULL, okey INTEGER, tag TEXT, extra BLOB NOT NULL, digest BLOB NOT NULL, body BLOB NOT NULL);

CREATE TABLE okey (
    id INTEGER PRIMARY KEY, topic INTEGER NOT NULL, source INTEGER NOT NULL, incarnation INTEGER NOT NULL, key BLOB NOT NULL,
    next_seq INTEGER NOT NULL DEFAULT 1, stopped INTEGER NOT NULL DEFAULT 0, draining INTEGER NOT NULL DEFAULT 0,
    UNIQUE (topic, source, incarnation, key));
CREATE INDEX okey_drain ON okey (id) WHERE draining = 1 AND stopped = 0;
CREATE TABLE held (okey INTEGER NOT NULL, seq INTEGER NOT NULL, m INTEGER NOT NULL, until INTEGER, PRIMARY KEY (okey, seq)) WITHOUT ROWID;
CREATE UNIQUE INDEX held_m ON held (m);
CREATE TABLE skipped (
    okey INTEGER NOT NULL, lo INTEGER NOT NULL, hi INTEGER NOT NULL, who TEXT NOT NULL, why TEXT NOT NULL, at INTEGER NOT NULL,
    PRIMARY KEY (okey, lo)) WITHOUT ROWID;
CREATE TABLE open_key (okey INTEGER NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (okey, n)) WITHOUT ROWID;

CREATE TABLE lane (topic INTEGER NOT NULL, lane INTEGER NOT NULL, next_off INTEGER NOT NULL, PRIMARY KEY (topic, lane)) WITHOUT ROWID;
CREATE TABLE log (
    topic INTEGER NOT NULL, lane INTEGER NOT NULL, off INTEGER NOT NULL, m INTEGER NOT NULL, seq INTEGER, at INTEGER NOT NULL, okey INTEGER,
    PRIMARY KEY (topic, lane, off)) WITHOUT ROWID;
CREATE UNIQUE INDEX log_m ON log (m);

CREATE TABLE grp (
    id INTEGER PRIMARY KEY, ns INTEGER NOT NULL, name TEXT NOT NULL, topic INTEGER NOT NULL, generation INTEGER NOT NULL, policy TEXT NOT NULL,
    paused INTEGER NOT NULL DEFAULT 0, inbox BLOB, UNIQUE (ns, name, topic));
CREATE INDEX grp_topic ON grp (topic);
CREATE TABLE place (
    grp INTEGER NOT NULL, lane INTEGER NOT NULL, next_off INTEGER NOT NULL, owner TEXT, token INTEGER NOT NULL DEFAULT 0,
    until INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (grp, lane)) WITHOUT ROWID;
-- Two runs may begin at one offset (its run, and the retried message alone), so the token is part of the key.
CREATE TABLE flight (
    grp INTEGER NOT NULL, lane INTEGER NOT NULL, lo INTEGER NOT NULL, hi INTEGER NOT NULL, token INTEGER NOT NULL, member TEXT NOT NULL,
    until INTEGER NOT NULL, done BLOB NOT NULL, attempts INTEGER NOT NULL, first_out INTEGER NOT NULL, lo_at INTEGER NOT NULL, error TEXT,
    redriven INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (grp, lane, lo, token)) WITHOUT ROWID;
CREATE INDEX flight_until ON flight (until);
CREATE TABLE retry (
    grp INTEGER NOT NULL, lane INTEGER NOT NULL, off INTEGER NOT NULL, due INTEGER, okey INTEGER, attempts INTEGER NOT NULL,
    first_out INTEGER NOT NULL, error TEXT, redriven INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (grp, lane, off)) WITHOUT ROWID;
CREATE INDEX retry_due ON retry (grp, due, lane, off) WHERE due IS NOT NULL;
CREATE INDEX retry_key ON retry (grp, okey, lane, off) WHERE okey IS NOT NULL;
-- `named`: a later message of its key was acked with this number among its `missed` (R6); it need not be named again.
CREATE TABLE dead (
    id INTEGER PRIMARY KEY, grp INTEGER, topic INTEGER NOT NULL, lane INTEGER, off INTEGER, okey INTEGER, seq INTEGER, m INTEGER NOT NULL,
    reason INTEGER NOT NULL, attempts INTEGER NOT NULL, first_out INTEGER, at INTEGER NOT NULL, history TEXT, named INTEGER NOT NULL DEFAULT 0);
CREATE INDEX dead_grp ON dead (grp, id);
CREATE INDEX dead_topic ON dead (topic, id) WHERE grp IS NULL;
CREATE INDEX dead_at ON dead (topic, lane, off) WHERE grp IS NULL;
CREATE INDEX dead_m ON dead (m);
CREATE INDEX dead_key ON dead (grp, okey, seq) WHERE okey IS NOT NULL AND named = 0;
CREATE TABLE conflict (
    id INTEGER PRIMARY KEY, ns INTEGER NOT NULL, tx_id BLOB NOT NULL, stored TEXT NOT NULL, said TEXT NOT NULL, said_by TEXT NOT NULL,
    at INTEGER NOT NULL);
CREATE INDEX conflict_tx ON conflict (ns, tx_id);
CREATE TABLE audit (
    id INTEGER PRIMARY KEY, at INTEGER NOT NULL, actor TEXT NOT NULL, act TEXT NOT NULL, target TEXT NOT NULL, reason TEXT NOT NULL,
    before TEXT, after TEXT);
INSERT INTO counter VALUES ('n', 0), ('token', 0), ('now', 0);
