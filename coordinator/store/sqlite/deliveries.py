"""Places, runs in flight, exceptions and dead letters on SQLite. The bitmap of a run is a little-endian blob of its done offsets."""

from __future__ import annotations

from typing import Any

from ...messages import Flight, Place, Reason, Retry
from .. import failpoints
from .base import Q
from .order import Order


def flight_of(row: tuple[Any, ...]) -> Flight:
    grp, lane, lo, hi, token, member, until, done, attempts, first_out, lo_at, error, redriven = row
    return Flight(grp, lane, lo, hi, token, member, until, int.from_bytes(done, "little"), attempts, first_out, lo_at, error, bool(redriven))


def done_bits(flight: Flight, done: int) -> bytes:
    return done.to_bytes((flight.hi - flight.lo) // 8 + 1, "little")


def retry_of(row: tuple[Any, ...]) -> Retry:
    lane, off, due, okey, attempts, first_out, error, redriven = row
    return Retry(lane, off, due, okey, attempts, first_out, error, bool(redriven))


class Deliveries(Order):
    def places(self, grp: int) -> list[Place]:
        return [Place(*row) for row in self.all(Q.places_of, grp)]

    def move_place(self, grp: int, lane: int, next_off: int) -> None:
        self.run(Q.place_move, next_off, grp, lane)

    def own_place(self, grp: int, lane: int, owner: str | None, token: int, until: int) -> None:
        self.run(Q.place_own, owner, token, until, grp, lane)

    def renew_places(self, grp: int, owner: str, until: int) -> None:
        self.run(Q.place_renew, until, grp, owner, until)

    def own_longer(self, grp: int, lane: int, owner: str, until: int) -> None:
        self.run(Q.place_longer, until, grp, lane, owner, until)

    def new_token(self) -> int:
        return self.next_counter("token")

    def fly(self, flight: Flight) -> None:
        f = flight
        bits = done_bits(f, f.done)
        redriven = int(f.redriven)
        self.run(Q.flight_insert, f.grp, f.lane, f.lo, f.hi, f.token, f.member, f.until, bits, f.attempts, f.first_out, f.lo_at, f.error, redriven)
        failpoints.hit("handed_out")

    def flight(self, grp: int, lane: int, lo: int, token: int) -> Flight | None:
        row = self.one(Q.flight_get, grp, lane, lo, token)
        return None if row is None else flight_of(row)

    def set_done(self, flight: Flight, done: int) -> None:
        if done == (1 << flight.hi - flight.lo + 1) - 1:
            self.drop_flight(flight)
        else:
            self.run(Q.flight_done, done_bits(flight, done), flight.grp, flight.lane, flight.lo, flight.token)
        failpoints.hit("settled")

    def drop_flight(self, flight: Flight) -> None:
        self.run(Q.flight_delete, flight.grp, flight.lane, flight.lo, flight.token)

    def flights_of_lane(self, grp: int, lane: int) -> list[Flight]:
        return [flight_of(row) for row in self.all(Q.flights_of_lane, grp, lane)]

    def free_all_places(self) -> None:
        self.run("UPDATE place SET owner = NULL, token = 0, until = 0 WHERE owner IS NOT NULL")

    def has_flights(self, grp: int) -> bool:
        return self.one(Q.flight_any_of_grp, grp) is not None

    def expired_flights(self, now: int, limit: int) -> list[Flight]:
        return [flight_of(row) for row in self.all(Q.flights_expired, now, limit)]

    def extend_flight(self, flight: Flight, until: int) -> None:
        self.run(Q.flight_extend, until, flight.grp, flight.lane, flight.lo, flight.token, until)

    def put_retry(self, grp: int, retry: Retry) -> None:
        r = retry
        self.run(Q.retry_put, grp, r.lane, r.off, r.due, r.okey, r.attempts, r.first_out, r.error, int(r.redriven))

    def due_retries(self, grp: int, now: int, limit: int) -> list[Retry]:
        return [retry_of(row) for row in self.all(Q.retry_due, grp, now, limit)]

    def due_retries_of_lane(self, grp: int, lane: int, now: int, limit: int) -> list[Retry]:
        return [retry_of(row) for row in self.all(Q.retry_due_of_lane, grp, lane, now, limit)]

    def take_retry(self, grp: int, retry: Retry) -> None:
        self.run(Q.retry_take, grp, retry.lane, retry.off)

    def first_retry_of_key(self, grp: int, okey: int) -> Retry | None:
        row = self.one(Q.retry_first_of_key, grp, okey)
        return None if row is None else retry_of(row)

    def set_retry_due(self, grp: int, retry: Retry, due: int | None) -> None:
        self.run(Q.retry_set_due, due, grp, retry.lane, retry.off)

    def has_retries(self, grp: int) -> bool:
        return self.one(Q.retry_any, grp) is not None

    def count_retries(self, grp: int, lane: int, limit: int) -> int:
        return int(self.one(Q.retry_count, grp, lane, limit)[0])

    def count_moving_retries(self, grp: int, lane: int, limit: int) -> int:
        return int(self.one(Q.retry_count_moving, grp, lane, grp, lane, limit)[0])

    def count_failing(self, grp: int, limit: int) -> int:
        return int(self.one(Q.retry_count_grp, grp, limit)[0])

    def next_retry_due(self, grp: int) -> int | None:
        row = self.one(Q.retry_next_due, grp)
        return None if row is None else int(row[0])

    def add_dead(
        self, *, grp: int | None, topic: int, lane: int | None, off: int | None, okey: int | None, seq: int | None, m: int, reason: Reason,
        attempts: int, first_out: int | None, at: int, history: str | None,
    ) -> None:  # fmt: skip
        self.run(Q.dead_insert, grp, topic, lane, off, okey, seq, m, int(reason), attempts, first_out, at, history)
        self.emit(("dead", topic, grp, reason.word))

    def dead_of_message(self, m: int) -> list[tuple[int, int | None, Reason, int | None]]:
        return [(id, grp, Reason(reason), seq) for id, grp, reason, seq in self.all(Q.dead_of_message, m)]

    def is_quarantined(self, topic: int, lane: int, off: int) -> bool:
        return self.one(Q.dead_at, topic, lane, off) is not None

    def unnamed_dead(self, grp: int, okey: int, below: int, limit: int) -> list[int]:
        return [row[0] for row in self.all(Q.dead_unnamed, grp, okey, below, limit)]

    def name_dead(self, grp: int, okey: int, below: int) -> None:
        self.run(Q.dead_name, grp, okey, below)

    def count_dead(self, grp: int, limit: int) -> int:
        return int(self.one(Q.dead_count, grp, limit)[0])
