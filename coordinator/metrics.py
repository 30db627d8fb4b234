"""What Prometheus scrapes: counted from events of durable groups, set from gauge snapshots (gauges.py), in a registry of its own.

Everything here runs on the event loop, but `stalled`. An event was emitted inside a transaction function and arrives after its COMMIT, so nothing is
counted that was rolled back. Labels are declared names only, never an id, a key or a path; past 200 names of one kind the rest
is counted as `other`, so that a series count has an end. Ages are told as time stamps, which stay right between two scrapes.
"""

from __future__ import annotations

import platform
from collections import Counter as CountOf
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from .gauges import GroupGauge, ProducerGauge, Snapshot

NAMES_MAX: Final = 200
OTHER: Final = "other"

CHECK_RESULTS: Final = ("committed", "rolled_back", "running", "unknown", "no_answer")
OPERATOR_ACTS: Final = ("tx.park", "tx.commit", "tx.rollback", "topic.rm", "group.rm", "producer.rm")
ALARMING: Final = ("storage_full", "storage_unavailable", "outcome_unknown", "row_damaged", "internal")
"""Refusals that stand at 0 from the start: a series that begins at 1 hides its first event from `increase()`."""
REDELIVERY_REASONS: Final = ("nack", "lease_expired")
DEAD_REASONS: Final = ("attempts", "rejected")
_METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))

RESOLUTION_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
DELIVERY_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)
STORAGE_BUCKETS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
SIZE_BUCKETS: Final = tuple(float(4**n) for n in range(3, 12))
HTTP_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
ATTEMPT_BUCKETS: Final = (1, 2, 3, 5, 8, 15, 30, 60)
COMMAND_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
LAG_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

Event = tuple[Any, ...]


class Names(Protocol):
    """Names behind the numbers in events. An id that is not known any more has the name `other`."""

    def topic_name(self, id: int) -> str: ...
    def group_name(self, id: int) -> tuple[str, str]:
        """(group, topic)"""

    def producer_name(self, id: int) -> str: ...


class _Children:
    """Label children by their values: `labels()` locks and builds strings on each call, this is one look-up."""

    __slots__ = ("_by_values", "_family")

    def __init__(self, family: Any) -> None:
        self._family = family
        self._by_values: dict[tuple[str, ...], Any] = {}

    def __call__(self, *values: str) -> Any:
        child = self._by_values.get(values)
        if child is None:
            child = self._by_values[values] = self._family.labels(*values)
        return child


class _Few:
    """At most `NAMES_MAX` names of one kind; later ones are `other`."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, name: str) -> str:
        if name in self._seen:
            return name
        if len(self._seen) >= NAMES_MAX or name == OTHER:
            return OTHER
        self._seen.add(name)
        return name


class Metrics:
    """Every family that the coordinator exports. `version` and `storage` go to `halfmsg_build_info`."""

    def __init__(self, *, version: str = "", storage: str = "") -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.registry)  # memory, descriptors, CPU, by the names that every dashboard knows; on Linux
        self._topic, self._group, self._producer = _Few(), _Few(), _Few()
        self._groups_known: set[tuple[str, str]] = set()
        self._producers_known: set[str] = set()
        self._make_producer_families()
        self._make_topic_families()
        self._make_gauges()
        self._make_process_families()
        self._gauge("build_info", "Always 1; versions are in the labels.", "version", "storage", "python").labels(
            version, storage, platform.python_version()
        ).set(1)
        self._handlers: dict[str, Callable[[Event, int, Names], None]] = {
            "prepared": self._on_prepared,
            "stored": self._on_stored,
            "audited": self._on_audited,
            "decided": self._on_decided,
            "parked": self._on_parked,
            "released": self._on_released,
            "delivered": self._on_delivered,
            "acked": self._on_acked,
            "redelivered": self._on_redelivered,
            "dead": self._on_dead,
            "gap": self._on_gap,
            "conflict": self._on_conflict,
        }

    # --- families ---

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"halfmsg_{name}", help, labels, registry=self.registry)

    def _gauge(self, name: str, help: str, *labels: str) -> Gauge:
        return Gauge(f"halfmsg_{name}", help, labels, registry=self.registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"halfmsg_{name}", help, labels, buckets=buckets, registry=self.registry)

    def _make_producer_families(self) -> None:
        counter, histogram = self._counter, self._histogram
        self._received = _Children(counter("half_messages_received", "Half messages stored by prepare.", "topic", "producer"))
        self._resolutions = _Children(counter("resolutions", "Transactions decided, by outcome and by who decided.", "producer", "outcome", "source"))
        self._resolution_s = _Children(
            histogram("half_message_resolution_duration_seconds", "From prepare to decision.", RESOLUTION_BUCKETS, "outcome", "source")
        )
        self._checkbacks = _Children(counter("checkbacks", "Answers to check-backs, one for each transaction asked about.", "producer", "result"))
        self._checkback_s = _Children(histogram("checkback_duration_seconds", "From question to answer.", HTTP_BUCKETS, "producer"))
        self._checkback_attempts = _Children(
            histogram("checkback_attempts", "Charged questions (answered unknown) and the one that decided.", ATTEMPT_BUCKETS, "outcome")
        )
        self._parkings = _Children(counter("parkings", "Transactions parked after their last check-back.", "producer"))
        self._conflicts = _Children(counter("conflicts", "Decisions that contradict a stored one; each is listed.", "said_by"))
        for said_by in ("producer", "check_back", "operator"):
            self._conflicts(said_by)

    def _make_topic_families(self) -> None:
        counter = self._counter
        self._released = _Children(counter("messages_released", "Messages that became visible.", "topic"))
        self._delivered = _Children(counter("messages_delivered", "Messages handed out, repeats included.", "topic", "group"))
        self._acked = _Children(counter("messages_acked", "Messages settled by an ack.", "topic", "group"))
        self._redelivered = _Children(counter("messages_redelivered", "Messages that came back to be handed out again.", "topic", "group", "reason"))
        self._dead = _Children(
            counter("messages_dead_lettered", "Messages put on a dead-letter list; group empty: the topic's own.", "topic", "group", "reason")
        )
        self._delivery_s = _Children(
            self._histogram(
                "delivery_latency_seconds", "From visible to acked; the oldest message of each ack call.", DELIVERY_BUCKETS, "topic", "group"
            )
        )
        self._size_bytes = _Children(self._histogram("message_size_bytes", "Size of a body when it was stored.", SIZE_BUCKETS, "topic"))
        self._gaps = counter("gaps", "Messages held because a smaller number of their key was missing.")

    def _make_gauges(self) -> None:
        gauge = self._gauge
        self._half = gauge("half_messages", "Transactions prepared and not decided.", "producer")
        self._half_oldest = gauge("half_messages_oldest_timestamp_seconds", "When the oldest of them was prepared; absent if none.", "producer")
        self._parked_now = gauge("parked_transactions", "Transactions that a person has to look at.", "producer")
        self._backlog = gauge("group_backlog_messages", "Messages that a group has not settled.", "topic", "group")
        self._oldest = gauge(
            "group_oldest_unacked_timestamp_seconds", "When the oldest of them became visible; absent when there is none.", "topic", "group"
        )
        self._inflight = gauge("group_inflight_messages", "Messages in the hands of a group's members.", "topic", "group")
        self._consumers = gauge("group_consumers", "Members that fetched, acked or extended within their lease.", "topic", "group")
        self._blocked = gauge("group_blocked_keys", "Ordering keys with messages that wait behind a failed one.", "topic", "group")
        self._dead_now = gauge("dead_letter_messages", "Dead letters; group is empty for a topic's own list.", "topic", "group")
        self._held = gauge("held_messages", "Committed messages that wait for a smaller number of their key.")
        self._storage_bytes = gauge("storage_size_bytes", "Size of the store's files.", "kind")
        self._circuit = gauge("producer_circuit_open", "1 while a producer is asked rarely because it did not answer.", "producer")
        self._task_at = gauge("task_last_success_timestamp_seconds", "When a background task last finished.", "task")

    def _make_process_families(self) -> None:
        self._storage_s = self._histogram(
            "storage_operation_duration_seconds", "Time of one operation of the store, made durable.", STORAGE_BUCKETS, "operation"
        ).labels("group_commit")
        self._group_commands = self._histogram("group_commit_commands", "Commands made durable by one COMMIT.", COMMAND_BUCKETS)
        self._lag_s = self._histogram("event_loop_lag_seconds", "How late a timer of the event loop fired.", LAG_BUCKETS)
        self._stalls = _Children(self._counter("stalls", "Times that the event loop or the writer was found stuck for stuck_s.", "part"))
        for part in ("loop", "writer"):
            self._stalls(part)
        self._clock_ahead = self._gauge("clock_ahead_seconds", "How far the coordinator's time is ahead of this machine's wall clock.")
        self._acts = _Children(self._counter("admin_actions", "Acts of an operator, as in the audit: force, park, removals, restore.", "action"))
        for act in OPERATOR_ACTS:
            self._acts(act)
        self._rejected = _Children(self._counter("requests_rejected", "Operations refused, by error code.", "code"))
        for code in ALARMING:
            self._rejected(code)
        self._http_s = _Children(
            Histogram(
                "http_server_request_duration_seconds",
                "HTTP requests by route template.",
                ("http_request_method", "http_route", "http_response_status_code"),
                buckets=HTTP_BUCKETS,
                registry=self.registry,
            )
        )

    # --- events of durable groups ---

    def on_events(self, events: Iterable[Event], names: Names) -> None:
        """Count what one durable group did. Equal events are counted together; kinds that nobody counts are passed over."""
        for event, times in CountOf(events).items():
            handler = self._handlers.get(event[0])
            if handler is not None:
                handler(event, times, names)

    def _on_prepared(self, event: Event, times: int, names: Names) -> None:
        _, source, topic = event
        self._received(self._topic(topic), self._producer(names.producer_name(source))).inc(times)

    def _on_stored(self, event: Event, times: int, names: Names) -> None:
        _, topic, size = event
        of_topic = self._size_bytes(self._topic(topic))
        for _ in range(times):
            of_topic.observe(size)

    def _on_audited(self, event: Event, times: int, names: Names) -> None:
        self._acts(event[1]).inc(times)

    def _on_decided(self, event: Event, times: int, names: Names) -> None:
        _, source, state, by, since_ms, attempts = event
        self._resolutions(self._producer(names.producer_name(source)), state, by).inc(times)
        duration = self._resolution_s(state, by)
        for _ in range(times):
            duration.observe(since_ms / 1000)
            if by == "check_back":
                self._checkback_attempts(state).observe(attempts + 1)

    def _on_parked(self, event: Event, times: int, names: Names) -> None:
        self._parkings(self._producer(names.producer_name(event[1]))).inc(times)

    def _on_released(self, event: Event, times: int, names: Names) -> None:
        self._released(self._topic(names.topic_name(event[1]))).inc(times)

    def _labels(self, grp: int, names: Names) -> tuple[str, str]:
        group, topic = names.group_name(grp)
        return self._topic(topic), self._group(group)

    def _on_delivered(self, event: Event, times: int, names: Names) -> None:
        _, grp, count = event
        self._delivered(*self._labels(grp, names)).inc(count * times)

    def _on_acked(self, event: Event, times: int, names: Names) -> None:
        _, grp, count, waited_ms = event
        labels = self._labels(grp, names)
        self._acked(*labels).inc(count * times)
        latency = self._delivery_s(*labels)
        for _ in range(times):
            latency.observe(waited_ms / 1000)

    def _on_redelivered(self, event: Event, times: int, names: Names) -> None:
        _, grp, reason, count = event
        self._redelivered(*self._labels(grp, names), reason).inc(count * times)

    def _on_dead(self, event: Event, times: int, names: Names) -> None:
        _, topic, grp, reason = event
        labels = (self._topic(names.topic_name(topic)), "") if grp is None else self._labels(grp, names)
        self._dead(*labels, reason).inc(times)

    def _on_gap(self, event: Event, times: int, names: Names) -> None:
        self._gaps.inc(times)

    def _on_conflict(self, event: Event, times: int, names: Names) -> None:
        self._conflicts(event[4]).inc(times)

    # --- what the process does ---

    def on_group(self, calls: int, seconds: float) -> None:
        """One group commit: how many commands, and how long until it was durable. Maintenance (no time) is not counted."""
        if seconds > 0:
            self._storage_s.observe(seconds)
            self._group_commands.observe(calls)

    def on_check(self, producer: str, result: str, seconds: float) -> None:
        """One transaction's answer; `result` is a verdict or `no_answer`."""
        name = self._producer(producer)
        self._checkbacks(name, result).inc()
        self._checkback_s(name).observe(seconds)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """One HTTP request. `route` is the template (`/v1/topics/{topic}`), never the path; empty where none matched."""
        self._http_s(method if method in _METHODS else "_OTHER", route or "unmatched", str(status)).observe(seconds)

    def rejected(self, code: str) -> None:
        """An operation was refused with this error code (errors.CODES), by any face: a call, one of a batch or a stream, a hello, a subscription."""
        self._rejected(code).inc()

    def loop_lag(self, seconds: float) -> None:
        self._lag_s.observe(max(seconds, 0.0))

    def stalled(self, part: str) -> None:
        """From any thread."""
        self._stalls(part).inc()

    def clock_ahead(self, seconds: float) -> None:
        self._clock_ahead.set(seconds)

    def task_done(self, task: str, at_ms: int) -> None:
        """A background loop finished one turn without an error. `task` is one of a fixed few."""
        self._task_at.labels(task).set(at_ms / 1000)

    def circuit(self, producer: str, is_open: bool) -> None:
        self._circuit.labels(self._producer(producer)).set(int(is_open))

    # --- gauges ---

    def set_gauges(self, snapshot: Snapshot) -> None:
        """Replace every gauge of the store. What is gone since the last one loses its series."""
        for gauge in (self._half, self._half_oldest, self._parked_now, self._backlog, self._oldest, self._inflight, self._consumers, self._blocked):
            gauge.clear()
        self._dead_now.clear()
        for producer in snapshot.producers:
            self._set_producer(producer)
        for group in snapshot.groups:
            self._set_group(group)
        _set_oldest(self._half_oldest, (((self._producer(p.name),), p.oldest_at_ms) for p in snapshot.producers))
        _set_oldest(self._oldest, (((self._topic(g.topic), self._group(g.name)), g.oldest_at_ms) for g in snapshot.groups))
        for topic, count in snapshot.topic_dead_letters.items():
            self._dead_now.labels(self._topic(topic), "").inc(count)
        self._held.set(snapshot.held)
        self._storage_bytes.labels("db").set(snapshot.db_bytes)
        self._storage_bytes.labels("wal").set(snapshot.wal_bytes)

    def _set_producer(self, producer: ProducerGauge) -> None:
        """`inc`, since several names may share `other`."""
        name = self._producer(producer.name)
        self._half.labels(name).inc(producer.half_messages)
        self._parked_now.labels(name).inc(producer.parked)
        if name not in self._producers_known:
            self._producers_known.add(name)
            for result in CHECK_RESULTS:
                self._checkbacks(name, result)
            self._parkings(name)

    def _set_group(self, group: GroupGauge) -> None:
        labels = (self._topic(group.topic), self._group(group.name))
        self._backlog.labels(*labels).inc(group.backlog)
        self._inflight.labels(*labels).inc(group.in_flight)
        self._consumers.labels(*labels).inc(group.members)
        self._blocked.labels(*labels).inc(group.blocked_keys)
        self._dead_now.labels(*labels).inc(group.dead_letters)
        if labels not in self._groups_known:
            self._start_at_zero(labels)

    def _start_at_zero(self, labels: tuple[str, str]) -> None:
        """A series that begins at 1 hides its first event from `increase()`."""
        self._groups_known.add(labels)
        self._delivered(*labels)
        self._acked(*labels)
        for reason in REDELIVERY_REASONS:
            self._redelivered(*labels, reason)
        for reason in DEAD_REASONS:
            self._dead(*labels, reason)

    def render(self) -> tuple[bytes, str]:
        """(exposition text, its content type)"""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def families(self) -> dict[str, str]:
        """Name -> type of every family, as a dashboard may ask for them (`_total`, `_bucket` … not added)."""
        return {family.name: family.type for family in self.registry.collect()}


def _set_oldest(gauge: Gauge, times: Iterable[tuple[tuple[str, ...], int | None]]) -> None:
    """Of several names that share `other`, the oldest counts; a name without one has no series."""
    oldest: dict[tuple[str, ...], int] = {}
    for labels, at_ms in times:
        if at_ms is not None:
            oldest[labels] = min(at_ms, oldest.get(labels, at_ms))
    for labels, at_ms in oldest.items():
        gauge.labels(*labels).set(at_ms / 1000)
