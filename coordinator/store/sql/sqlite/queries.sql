-- Every statement of the SQLite store, by name. A test reads each plan: a key look-up or a bounded range of an index, no scan, no sort.
-- Names and their order are the same in every backend's file.

-- == names ==
-- name: topic_insert
INSERT INTO topic (ns, name, kind, lanes, policy) VALUES (1, ?, ?, ?, ?) RETURNING id;
-- name: topic_by_name
SELECT id, name, kind, lanes, policy FROM topic WHERE ns = 1 AND name = ?;
-- name: topic_by_id
SELECT id, name, kind, lanes, policy FROM topic WHERE id = ?;
-- name: topic_update
UPDATE topic SET policy = ? WHERE id = ?;
-- name: topic_delete
DELETE FROM topic WHERE id = ?;
-- name: topic_any_prepared
SELECT 1 FROM tx t INDEXED BY tx_due CROSS JOIN message x ON x.m BETWEEN t.n << 10 AND (t.n << 10) + 1023 WHERE t.state = 0 AND +x.topic = ? LIMIT 1;
-- name: topic_any_parked
SELECT 1 FROM tx t INDEXED BY tx_parked CROSS JOIN message x ON x.m BETWEEN t.n << 10 AND (t.n << 10) + 1023 WHERE t.state = 3 AND +x.topic = ? LIMIT 1;
-- name: topic_page
SELECT id, name, kind, lanes, policy FROM topic WHERE ns = 1 AND name > ? ORDER BY name LIMIT ?;
-- name: lane_insert
INSERT INTO lane (topic, lane, next_off) VALUES (?, ?, 0);
-- name: lane_delete
DELETE FROM lane WHERE topic = ?;
-- name: lanes_of
SELECT lane, next_off FROM lane WHERE topic = ? ORDER BY lane;
-- name: lane_next
SELECT next_off FROM lane WHERE topic = ? AND lane = ?;
-- name: lane_set
UPDATE lane SET next_off = ? WHERE topic = ? AND lane = ?;
-- name: source_insert
INSERT INTO source (ns, name, incarnation) VALUES (1, ?, 1) RETURNING id;
-- name: source_by_name
SELECT id, name, db_id, incarnation, frozen, settled_told, forgotten_before, check_url, dialect, secret, said_hello FROM source WHERE ns = 1 AND name = ?;
-- name: source_by_id
SELECT id, name, db_id, incarnation, frozen, settled_told, forgotten_before, check_url, dialect, secret, said_hello FROM source WHERE id = ?;
-- name: source_by_db
SELECT id, name, db_id, incarnation, frozen, settled_told, forgotten_before, check_url, dialect, secret, said_hello FROM source WHERE ns = 1 AND db_id = ?;
-- name: source_bind
UPDATE source SET db_id = ? WHERE id = ? AND db_id IS NULL;
-- name: source_hello
UPDATE source SET said_hello = 1 WHERE id = ?;
-- name: source_beats
UPDATE source SET beats = ? WHERE id = ?;
-- name: source_set
UPDATE source SET check_url = ?, dialect = ?, secret = ? WHERE id = ?;
-- name: source_delete
DELETE FROM source WHERE id = ?;
-- name: source_page
SELECT id, name, db_id, incarnation, frozen, settled_told, forgotten_before, check_url, dialect, secret, said_hello FROM source WHERE ns = 1 AND name > ? ORDER BY name LIMIT ?;
-- name: source_any_tx
SELECT 1 FROM tx WHERE source = ? AND state = 0 UNION ALL SELECT 1 FROM tx WHERE source = ? AND state = 3 LIMIT 1;
-- name: source_any_tx_ever
SELECT 1 FROM tx WHERE source = ? LIMIT 1;
-- name: source_open_count
SELECT count(*) FROM tx WHERE source = ? AND state = 0;

-- == transactions ==
-- name: tx_insert
INSERT INTO tx (n, ns, id, source, state, digest, msgs, mark, first_at, decided_at, decided_by, attempts, next_check, reason)
VALUES (?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?) ON CONFLICT (ns, id) DO NOTHING;
-- name: tx_by_id
SELECT n, id, source, state, digest, msgs, mark, first_at, decided_at, decided_by, attempts, next_check, reason FROM tx WHERE ns = 1 AND id = ?;
-- name: tx_by_n
SELECT n, id, source, state, digest, msgs, mark, first_at, decided_at, decided_by, attempts, next_check, reason FROM tx WHERE n = ?;
-- name: tx_decide
UPDATE tx SET state = ?, decided_at = ?, decided_by = ?, next_check = NULL, reason = ? WHERE n = ? AND state IN (0, 3);
-- name: tx_park
UPDATE tx SET state = 3, next_check = ?, reason = ? WHERE n = ? AND state = 0;
-- name: tx_reschedule
UPDATE tx SET attempts = ?, next_check = ?, reason = ? WHERE n = ? AND state IN (0, 3);
-- name: tx_claim_due
UPDATE tx SET next_check = ?, reason = ? WHERE n IN (SELECT n FROM tx WHERE source = ? AND state = 0 AND next_check <= ? ORDER BY next_check LIMIT ?)
RETURNING n, id, source, state, digest, msgs, mark, first_at, decided_at, decided_by, attempts, next_check, reason;
-- name: tx_unclaim
UPDATE tx SET next_check = ? WHERE source = ? AND state = 0 AND reason = ?;
-- name: tx_unclaim_parked
UPDATE tx SET next_check = ? WHERE source = ? AND state = 3 AND reason = ?;
-- name: tx_parked_of
SELECT n, id, source, state, digest, msgs, mark, first_at, decided_at, decided_by, attempts, next_check, reason FROM tx WHERE source = ? AND state = 3 AND n > ? ORDER BY n LIMIT ?;
-- name: tx_parked_due
SELECT n, id, source, state, digest, msgs, mark, first_at, decided_at, decided_by, attempts, next_check, reason FROM tx
WHERE source = ? AND state = 3 AND next_check <= ? ORDER BY next_check LIMIT ?;
-- name: tx_wake_parked
UPDATE tx SET next_check = ? WHERE source = ? AND state = 3 AND next_check > ?;
-- name: tx_open_of
SELECT n, id, source, state, digest, msgs, mark, first_at, decided_at, decided_by, attempts, next_check, reason FROM tx WHERE source = ? AND state = 0 ORDER BY next_check LIMIT ?;
-- name: tx_ask_soon
UPDATE tx SET next_check = ? WHERE state = 0 AND n = ? AND next_check > ?;
-- name: tx_after
SELECT n, id, source, state, digest, msgs, mark, first_at, decided_at, decided_by, attempts, next_check, reason FROM tx WHERE n > ? ORDER BY n LIMIT ?;
-- name: tx_before
SELECT n, id, source, state, digest, msgs, mark, first_at, decided_at, decided_by, attempts, next_check, reason FROM tx WHERE n < ? ORDER BY n DESC LIMIT ?;
-- name: note_insert
INSERT INTO tx_note (n, at, what, detail) VALUES (?, ?, ?, ?);
-- name: notes_of
SELECT at, what, detail FROM tx_note WHERE n = ? ORDER BY id LIMIT 200;
-- name: note_count
SELECT count(*) FROM (SELECT 1 FROM tx_note WHERE n = ? LIMIT 100);
-- name: message_insert
INSERT INTO message (m, topic, okey, tag, extra, digest, body) VALUES (?, ?, ?, ?, ?, ?, ?);
-- name: message_heads
SELECT m, topic, okey FROM message WHERE m BETWEEN ? AND ? ORDER BY m;
-- name: message_delete_range
DELETE FROM message WHERE m BETWEEN ? AND ?;
-- name: conflict_insert
INSERT INTO conflict (ns, tx_id, stored, said, said_by, at) VALUES (1, ?, ?, ?, ?, ?);
-- name: conflict_of
SELECT 1 FROM conflict WHERE ns = 1 AND tx_id = ? AND said = ? LIMIT 1;
-- name: conflict_page
SELECT id, tx_id, stored, said, said_by, at FROM conflict WHERE id > ? ORDER BY id LIMIT ?;
-- name: audit_insert
INSERT INTO audit (at, actor, act, target, reason, before, after) VALUES (?, ?, ?, ?, ?, ?, ?);

-- == order ==
-- name: okey_insert
INSERT INTO okey (topic, source, incarnation, key) VALUES (?, ?, ?, ?) ON CONFLICT (topic, source, incarnation, key) DO NOTHING;
-- name: okey_find
SELECT id FROM okey WHERE topic = ? AND source = ? AND incarnation = ? AND key = ?;
-- name: okey_last
SELECT max(id) FROM okey;
-- name: okey_state
SELECT id, next_seq, stopped, draining FROM okey WHERE id = ?;
-- name: okey_advance
UPDATE okey SET next_seq = ? WHERE id = ?;
-- name: okey_stop
UPDATE okey SET stopped = 1 WHERE id = ?;
-- name: okey_draining
UPDATE okey SET draining = ? WHERE id = ?;
-- name: okey_drain_next
SELECT id, next_seq, stopped, draining FROM okey INDEXED BY okey_drain WHERE draining = 1 AND stopped = 0 LIMIT ?;
-- name: okey_row
SELECT topic, source, incarnation, key FROM okey WHERE id = ?;
-- name: okey_any_of_topic
SELECT 1 FROM okey WHERE topic = ? LIMIT 1;
-- name: held_insert
INSERT INTO held (okey, seq, m) VALUES (?, ?, ?);
-- name: held_at
SELECT m FROM held WHERE okey = ? AND seq = ?;
-- name: held_take
DELETE FROM held WHERE okey = ? AND seq = ? RETURNING m;
-- name: held_of_message
SELECT okey, seq FROM held WHERE m = ?;
-- name: held_next_key
SELECT okey, seq FROM held WHERE okey > ? ORDER BY okey, seq LIMIT 1;
-- name: held_of_key
SELECT seq, m FROM held WHERE okey = ? ORDER BY seq LIMIT ?;
-- name: skipped_insert
INSERT INTO skipped (okey, lo, hi, who, why, at) VALUES (?, ?, ?, ?, ?, ?);
-- name: skipped_at
SELECT 1 FROM skipped WHERE okey = ? AND lo <= ? AND hi >= ? LIMIT 1;
-- name: open_key_insert
INSERT INTO open_key (okey, n) VALUES (?, ?) ON CONFLICT DO NOTHING;
-- name: open_key_delete
DELETE FROM open_key WHERE okey = ? AND n = ?;
-- name: open_key_of
SELECT n FROM open_key WHERE okey = ? ORDER BY n LIMIT ?;
-- name: log_insert
INSERT INTO log (topic, lane, off, m, seq, at, okey) VALUES (?, ?, ?, ?, ?, ?, ?);
-- name: log_of_message
SELECT topic, lane, off, seq, at FROM log WHERE m = ?;
-- name: log_keys
SELECT off, okey, seq FROM log WHERE topic = ? AND lane = ? AND off BETWEEN ? AND ?;
-- name: log_row
SELECT okey, seq, m FROM log WHERE topic = ? AND lane = ? AND off = ?;
-- name: log_last_at
SELECT at FROM log WHERE topic = ? AND lane = ? AND off = ?;
-- name: log_run
SELECT g.off, g.m, g.seq, g.at, g.okey, k.key, CAST(x.tag AS BLOB), CAST(x.extra AS BLOB), CAST(x.body AS BLOB), CAST(x.digest AS BLOB), t.id, t.source, k.incarnation, t.decided_by, t.mark, t.state, t.first_at
FROM log g JOIN message x ON x.m = g.m JOIN tx t ON t.n = g.m >> 10 LEFT JOIN okey k ON k.id = g.okey
WHERE g.topic = ? AND g.lane = ? AND g.off >= ? AND g.off < ? ORDER BY g.off LIMIT ?;

-- == deliveries ==
-- name: grp_insert
INSERT INTO grp (ns, name, topic, generation, policy) VALUES (1, ?, ?, ?, ?) RETURNING id;
-- name: grp_by_name
SELECT id, name, topic, generation, policy, paused, inbox FROM grp WHERE ns = 1 AND name = ? ORDER BY topic;
-- name: grp_by_id
SELECT id, name, topic, generation, policy, paused, inbox FROM grp WHERE id = ?;
-- name: grp_of_topic
SELECT id, name, topic, generation, policy, paused, inbox FROM grp WHERE topic = ?;
-- name: grp_page
SELECT id, name, topic, generation, policy, paused, inbox FROM grp WHERE ns = 1 AND name > ? ORDER BY name, topic LIMIT ?;
-- name: grp_update
UPDATE grp SET policy = ? WHERE id = ?;
-- name: grp_pause
UPDATE grp SET paused = ? WHERE id = ?;
-- name: grp_inbox
UPDATE grp SET inbox = ? WHERE id = ?;
-- name: grp_delete
DELETE FROM grp WHERE id = ?;
-- name: place_insert
INSERT INTO place (grp, lane, next_off) VALUES (?, ?, ?);
-- name: places_of
SELECT lane, next_off, owner, token, until FROM place WHERE grp = ? ORDER BY lane;
-- name: place_move
UPDATE place SET next_off = ? WHERE grp = ? AND lane = ?;
-- name: place_own
UPDATE place SET owner = ?, token = ?, until = ? WHERE grp = ? AND lane = ?;
-- name: place_renew
UPDATE place SET until = ? WHERE grp = ? AND owner = ? AND until < ?;
-- name: place_longer
UPDATE place SET until = ? WHERE grp = ? AND lane = ? AND owner = ? AND until < ?;
-- name: place_delete
DELETE FROM place WHERE grp = ?;
-- name: flight_insert
INSERT INTO flight (grp, lane, lo, hi, token, member, until, done, attempts, first_out, lo_at, error, redriven) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);
-- name: flight_get
SELECT grp, lane, lo, hi, token, member, until, done, attempts, first_out, lo_at, error, redriven FROM flight WHERE grp = ? AND lane = ? AND lo = ? AND token = ?;
-- name: flight_done
UPDATE flight SET done = ? WHERE grp = ? AND lane = ? AND lo = ? AND token = ?;
-- name: flight_delete
DELETE FROM flight WHERE grp = ? AND lane = ? AND lo = ? AND token = ?;
-- name: flights_of_lane
SELECT grp, lane, lo, hi, token, member, until, done, attempts, first_out, lo_at, error, redriven FROM flight WHERE grp = ? AND lane = ? ORDER BY lo, token;
-- name: flight_any_of_grp
SELECT 1 FROM flight WHERE grp = ? LIMIT 1;
-- name: flights_expired
SELECT grp, lane, lo, hi, token, member, until, done, attempts, first_out, lo_at, error, redriven FROM flight WHERE until <= ? ORDER BY until LIMIT ?;
-- name: flight_extend
UPDATE flight SET until = ? WHERE grp = ? AND lane = ? AND lo = ? AND token = ? AND until < ?;
-- name: flight_delete_grp
DELETE FROM flight WHERE grp = ?;
-- name: retry_put
INSERT INTO retry (grp, lane, off, due, okey, attempts, first_out, error, redriven) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (grp, lane, off) DO NOTHING;
-- name: retry_due
SELECT lane, off, due, okey, attempts, first_out, error, redriven FROM retry WHERE grp = ? AND due <= ? ORDER BY due, lane, off LIMIT ?;
-- name: retry_due_of_lane
SELECT lane, off, due, okey, attempts, first_out, error, redriven FROM retry WHERE grp = ? AND lane = ? AND +due <= ? ORDER BY off LIMIT ?;
-- name: retry_take
DELETE FROM retry WHERE grp = ? AND lane = ? AND off = ?;
-- name: retry_first_of_key
SELECT lane, off, due, okey, attempts, first_out, error, redriven FROM retry WHERE grp = ? AND okey = ? ORDER BY lane, off LIMIT 1;
-- name: retry_keys
SELECT DISTINCT okey FROM retry WHERE grp = ? AND okey > ? ORDER BY okey LIMIT ?;
-- name: retry_behind
SELECT count(*) FROM (SELECT 1 FROM retry WHERE grp = ? AND okey = ? LIMIT 100);
-- name: retry_set_due
UPDATE retry SET due = ? WHERE grp = ? AND lane = ? AND off = ?;
-- name: retry_any
SELECT 1 FROM retry WHERE grp = ? LIMIT 1;
-- name: retry_count
SELECT count(*) FROM (SELECT 1 FROM retry WHERE grp = ? AND lane = ? LIMIT ?);
-- name: retry_count_moving
SELECT count(*) FROM (SELECT 1 FROM retry r WHERE r.grp = ? AND r.lane = ? AND (r.okey IS NULL OR r.okey NOT IN
    (SELECT s.okey FROM retry s WHERE s.grp = ? AND s.lane = ? AND s.error LIKE 'stuck: %' AND s.okey IS NOT NULL)) LIMIT ?);
-- name: retry_count_grp
SELECT count(*) FROM (SELECT 1 FROM retry WHERE grp = ? LIMIT ?);
-- name: retry_next_due
SELECT due FROM retry WHERE grp = ? AND due IS NOT NULL ORDER BY due LIMIT 1;
-- name: retry_delete_grp
DELETE FROM retry WHERE grp = ?;
-- name: dead_insert
INSERT INTO dead (grp, topic, lane, off, okey, seq, m, reason, attempts, first_out, at, history) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);
-- name: dead_of_message
SELECT id, grp, reason, seq FROM dead WHERE m = ? LIMIT 100;
-- name: dead_at
SELECT 1 FROM dead WHERE grp IS NULL AND topic = ? AND lane = ? AND off = ? LIMIT 1;
-- name: dead_unnamed
SELECT seq FROM dead WHERE grp = ? AND okey = ? AND named = 0 AND seq < ? ORDER BY seq LIMIT ?;
-- name: dead_name
UPDATE dead SET named = 1 WHERE grp = ? AND okey = ? AND named = 0 AND seq < ?;
-- name: dead_count
SELECT count(*) FROM (SELECT 1 FROM dead WHERE grp = ? LIMIT ?);
-- name: dead_page
SELECT id, grp, topic, lane, off, okey, seq, m, reason, attempts, first_out, at, history FROM dead WHERE grp = ? AND id > ? ORDER BY id LIMIT ?;
-- name: dead_page_topic
SELECT id, grp, topic, lane, off, okey, seq, m, reason, attempts, first_out, at, history FROM dead WHERE topic = ? AND grp IS NULL AND id > ? ORDER BY id LIMIT ?;
-- name: dead_get
SELECT id, grp, topic, lane, off, okey, seq, m, reason, attempts, first_out, at, history FROM dead WHERE id = ?;
-- name: dead_delete_grp
DELETE FROM dead WHERE grp = ?;
-- name: counter_get
SELECT v FROM counter WHERE name = ?;
-- name: counter_put
INSERT INTO counter (name, v) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET v = excluded.v;
-- name: counter_set
UPDATE counter SET v = ? WHERE name = ?;
-- name: counter_raise
UPDATE counter SET v = max(v, ?) WHERE name = ?;
