"""Metrics are counted from events, gauges are read by bounded statements, and labels have an end."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from halfmsg.coordinator import gauges, metrics
from halfmsg.coordinator.errors import CODES
from halfmsg.coordinator.store.sqlite import file


class NamesOf:
    """Names as the engine keeps them: numbers make names."""

    def topic_name(self, id: int) -> str:
        return f"topic{id}"

    def group_name(self, id: int) -> tuple[str, str]:
        return f"group{id}", f"topic{id}"

    def producer_name(self, id: int) -> str:
        return f"producer{id}"


@pytest.fixture
def counted() -> metrics.Metrics:
    return metrics.Metrics(version="1.2.3", storage="sqlite")


def _value(counted: metrics.Metrics, name: str, **labels: str) -> float | None:
    return counted.registry.get_sample_value(name, labels)


def test_events_of_a_transaction_are_counted_by_name(counted: metrics.Metrics) -> None:
    """One life: stored, prepared, decided by check-back, released."""
    counted.on_events([("stored", "t", 300), ("stored", "t", 300), ("audited", "tx.park")], NamesOf())
    assert _value(counted, "halfmsg_message_size_bytes_sum", topic="t") == 600
    assert _value(counted, "halfmsg_message_size_bytes_bucket", topic="t", le="256.0") == 0
    assert _value(counted, "halfmsg_admin_actions_total", action="tx.park") == 1
    counted.on_events([("prepared", 1, "t"), ("decided", 1, "committed", "check_back", 1_500, 2), ("released", 7), ("released", 7)], NamesOf())
    assert _value(counted, "halfmsg_half_messages_received_total", topic="t", producer="producer1") == 1
    assert _value(counted, "halfmsg_resolutions_total", producer="producer1", outcome="committed", source="check_back") == 1
    assert _value(counted, "halfmsg_half_message_resolution_duration_seconds_sum", outcome="committed", source="check_back") == 1.5
    assert _value(counted, "halfmsg_checkback_attempts_sum", outcome="committed") == 3
    assert _value(counted, "halfmsg_messages_released_total", topic="topic7") == 2


def test_events_of_deliveries_are_counted_with_their_numbers(counted: metrics.Metrics) -> None:
    """Equal events are counted together and none is lost."""
    events = [("delivered", 2, 10), ("delivered", 2, 10), ("acked", 2, 5, 250), ("redelivered", 2, "nack", 1), ("dead", 3, 2, "rejected")]
    counted.on_events([*events, ("dead", 3, None, "number_taken"), ("parked", 1), ("gap", 4), ("wake", 1, 2), ("news", 1)], NamesOf())
    group = {"topic": "topic2", "group": "group2"}
    assert _value(counted, "halfmsg_messages_delivered_total", **group) == 20
    assert _value(counted, "halfmsg_messages_acked_total", **group) == 5
    assert _value(counted, "halfmsg_delivery_latency_seconds_sum", **group) == 0.25
    assert _value(counted, "halfmsg_messages_redelivered_total", **group, reason="nack") == 1
    assert _value(counted, "halfmsg_messages_dead_lettered_total", **group, reason="rejected") == 1
    assert _value(counted, "halfmsg_messages_dead_lettered_total", topic="topic3", group="", reason="number_taken") == 1
    assert _value(counted, "halfmsg_gaps_total") == 1
    assert _value(counted, "halfmsg_parkings_total", producer="producer1") == 1


def test_a_conflict_is_counted_by_who_said_it(counted: metrics.Metrics) -> None:
    """The series stands at 0 from the start, so that the first one is seen by increase()."""
    assert _value(counted, "halfmsg_conflicts_total", said_by="check_back") == 0
    counted.on_events([("conflict", "018f", "rolled_back", "committed", "check_back")], NamesOf())
    assert _value(counted, "halfmsg_conflicts_total", said_by="check_back") == 1


def test_what_an_alert_waits_for_stands_at_0_from_the_start(counted: metrics.Metrics) -> None:
    """Its first refusal is seen by increase()."""
    assert {_value(counted, "halfmsg_requests_rejected_total", code=code) for code in metrics.ALARMING} == {0}
    assert set(metrics.ALARMING) <= CODES.keys()


def test_the_201st_name_is_other(counted: metrics.Metrics) -> None:
    """P9: a label has at most 200 names of its own, whatever users make."""
    counted.on_events([("released", id) for id in range(metrics.NAMES_MAX + 5)], NamesOf())
    assert _value(counted, "halfmsg_messages_released_total", topic=f"topic{metrics.NAMES_MAX - 1}") == 1
    assert _value(counted, "halfmsg_messages_released_total", topic=f"topic{metrics.NAMES_MAX}") is None
    assert _value(counted, "halfmsg_messages_released_total", topic="other") == 5


def test_what_the_process_does_is_measured(counted: metrics.Metrics) -> None:
    """Group commits, check-backs, requests by route template, refusals, lag."""
    counted.on_group(40, 0.002)
    counted.on_group(1, 0.0)  # maintenance: no commands, no time
    counted.on_check("orders", "no_answer", 3.0)
    counted.request("GET", "/v1/topics/{topic}", 200, 0.01)
    counted.request("BREW", "", 404, 0.01)
    counted.rejected("backlog_full")
    counted.loop_lag(-0.1)
    counted.circuit("orders", True)
    counted.task_done("leases", 5_000)
    assert _value(counted, "halfmsg_storage_operation_duration_seconds_count", operation="group_commit") == 1
    assert _value(counted, "halfmsg_group_commit_commands_sum") == 40
    assert _value(counted, "halfmsg_checkbacks_total", producer="orders", result="no_answer") == 1
    route = {"http_request_method": "GET", "http_route": "/v1/topics/{topic}", "http_response_status_code": "200"}
    assert _value(counted, "http_server_request_duration_seconds_count", **route) == 1
    unknown = {"http_request_method": "_OTHER", "http_route": "unmatched", "http_response_status_code": "404"}
    assert _value(counted, "http_server_request_duration_seconds_count", **unknown) == 1
    assert _value(counted, "halfmsg_requests_rejected_total", code="backlog_full") == 1
    assert _value(counted, "halfmsg_producer_circuit_open", producer="orders") == 1
    assert _value(counted, "halfmsg_task_last_success_timestamp_seconds", task="leases") == 5


def test_rendering_has_no_created_series_and_names_the_build(counted: metrics.Metrics) -> None:
    """`_created` would double the number of series."""
    body, content_type = counted.render()
    assert content_type.startswith("text/plain")
    assert b"_created" not in body
    assert b'halfmsg_build_info{python="' in body and b'version="1.2.3"' in body


def test_two_registries_live_in_one_process() -> None:
    """Tests and embedding start several coordinators."""
    first, second = metrics.Metrics(), metrics.Metrics()
    first.rejected("overloaded")
    assert _value(second, "halfmsg_requests_rejected_total", code="overloaded") is None


# --- gauges ---


@pytest.fixture
def store(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """Two half messages and a parked one of `orders`; group `g` with a run of three in hand of ten, one retry, two dead letters."""
    conn = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    conn.execute("PRAGMA journal_mode = WAL")
    file.migrate(conn, tmp_path / "store.db", 0)
    conn.execute("INSERT INTO source (id, ns, name, incarnation) VALUES (1, 1, 'orders', 1), (2, 1, 'idle', 1)")
    conn.execute("INSERT INTO topic VALUES (1, 1, 'mail', 1, 2, '{}')")
    conn.execute("INSERT INTO lane VALUES (1, 0, 10), (1, 1, 0)")
    for n, state in ((1, 0), (2, 0), (3, 3), (4, 1)):
        conn.execute("INSERT INTO tx VALUES (?, 1, ?, 1, ?, x'00', 1, 0, ?, NULL, NULL, 0, 9, NULL)", (n, bytes([n]), state, n * 1_000))
    for off in range(10):
        conn.execute("INSERT INTO log VALUES (1, 0, ?, ?, ?, ?, 1)", (off, 4_096 + off, off + 1, 50_000 + off))
    conn.execute("INSERT INTO grp VALUES (1, 1, 'g', 1, 1, '{}', 0, NULL)")
    conn.execute("INSERT INTO place VALUES (1, 0, 5, NULL, 0, 0), (1, 1, 0, NULL, 0, 0)")
    conn.execute("INSERT INTO flight VALUES (1, 0, 2, 4, 7, 'a', 9, x'01', 0, 0, 0, NULL, 0)")
    conn.execute("INSERT INTO retry VALUES (1, 0, 1, NULL, 1, 1, 0, NULL, 0)")
    conn.execute("INSERT INTO held VALUES (1, 99, 1, NULL)")
    for grp in (1, 1, None):
        conn.execute("INSERT INTO dead (grp, topic, m, reason, attempts, at) VALUES (?, 1, 4, 1, 1, 1)", (grp,))
    yield conn
    conn.close()


def test_gauges_say_what_stands_in_the_store(store: sqlite3.Connection, tmp_path: Path) -> None:
    """Backlog = not handed out + in hand + to be tried again; the oldest is the floor's."""
    conn = sqlite3.connect(file.read_only(tmp_path / "store.db"), uri=True, isolation_level=None)
    found = gauges.snapshot(conn, 60_000, {1: 2}.__getitem__)
    conn.close()
    assert found.producers == (gauges.ProducerGauge("orders", 2, 1_000, 1), gauges.ProducerGauge("idle", 0, None, 0))
    assert found.groups == (gauges.GroupGauge("g", "mail", 5 + 2 + 1, 50_001, 2, 2, 1, 2),)
    assert (found.topic_dead_letters, found.held) == ({"mail": 1}, 1)
    assert found.db_bytes > 0 and found.wal_bytes > 0


def test_set_gauges_replaces_what_is_gone(store: sqlite3.Connection, counted: metrics.Metrics) -> None:
    """A group that was removed must not keep its last backlog."""
    counted.set_gauges(gauges.snapshot(store, 60_000, lambda grp: 0))
    assert _value(counted, "halfmsg_group_backlog_messages", topic="mail", group="g") == 8
    assert _value(counted, "halfmsg_group_oldest_unacked_timestamp_seconds", topic="mail", group="g") == 50.001
    assert _value(counted, "halfmsg_half_messages_oldest_timestamp_seconds", producer="orders") == 1
    assert _value(counted, "halfmsg_half_messages_oldest_timestamp_seconds", producer="idle") is None
    assert _value(counted, "halfmsg_dead_letter_messages", topic="mail", group="") == 1
    assert _value(counted, "halfmsg_checkbacks_total", producer="orders", result="unknown") == 0
    store.execute("DELETE FROM grp")
    counted.set_gauges(gauges.snapshot(store, 60_000, lambda grp: 0))
    assert _value(counted, "halfmsg_group_backlog_messages", topic="mail", group="g") is None


@pytest.mark.parametrize("sql", gauges.STATEMENTS)
def test_no_gauge_walks_a_table(store: sqlite3.Connection, sql: str) -> None:
    """A scrape of ten million messages costs what one of ten costs: only names, held and lanes are walked, each bounded."""
    plan = [row[3] for row in store.execute(f"EXPLAIN QUERY PLAN {sql}", (1,) * sql.count("?"))]
    scans = [
        line for line in plan if line.startswith("SCAN") and not line.startswith(("SCAN source", "SCAN topic", "SCAN grp", "SCAN held", "SCAN ("))
    ]
    assert not [line for line in scans if "subquery" not in line.lower()], plan
    assert not [line for line in plan if "TEMP B-TREE" in line and "count(DISTINCT)" not in line], plan


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_memory_and_descriptors_of_the_process_are_there_by_their_common_names(counted: metrics.Metrics) -> None:
    """What an operator's dashboards for any process look for."""
    assert (_value(counted, "process_resident_memory_bytes") or 0) > 2**20
    assert (_value(counted, "process_open_fds") or 0) > 0
