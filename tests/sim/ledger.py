"""What became durable at the coordinator, group by group in the order of its commits, judged as it happens; and which rare paths were met.

It reads commands and answers, never the coordinator's tables, and has its own words for what may not be.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

DECIDED = (1, 2)
Spot = tuple[str, ...]
"""Group, lane and offset of one delivery."""


def spot_of(token: str) -> tuple[Spot, str]:
    grp, lane, lo, off, number = token.split(".")
    return (grp, lane, off), f"{lo}.{number}"


def run_of(token: str) -> str:
    """What was handed out together with it, under one lease."""
    grp, lane, lo, _, number = token.split(".")
    return f"{grp}.{lane}.{lo}.{number}"


@dataclass(slots=True)
class Open:
    """One ordered message in a member's hand, from `since` until `until` of the coordinator's time. `doubtful`: it may have come back."""

    group: str
    member: str
    token: str
    since: int
    until: int
    doubtful: bool = False

    @property
    def run(self) -> str:
        return run_of(self.token)


class Ledger:
    """`wrong` are broken promises, a line each; `marks` counts what was met."""

    def __init__(self, max_attempts: int) -> None:
        self._max_attempts = max_attempts
        self.wrong: list[str] = []
        self.marks: Counter[str] = Counter()
        self.lost: set[tuple[Spot, str]] = set()
        """Spots, with the hand whose word came when it had ended."""
        self.hands: Counter[Spot] = Counter()
        """How often each was handed out."""
        self.rejected: set[Spot] = set()
        self.parked: list[str] = []
        """Rulings that parked a transaction."""
        self._now: int | None = None
        self._nacks: Counter[Spot] = Counter()
        self._until: dict[str, int] = {}
        self._over: set[tuple[Spot, str]] = set()
        """Hands that have ended by a word that was taken."""
        self._by_rows: set[bytes] = set()
        self._states: dict[bytes, int] = {}
        self._handed: dict[Spot, str] = {}
        self._done: set[Spot] = set()
        self._paused: set[str] = set()
        self._lanes: dict[tuple[str, str], dict[Spot, Open]] = {}
        """What is open in each lane of an ordered topic, by group and lane."""

    def durable(self, name: str, command: Any, result: Any, now: int | None = None) -> None:
        """One command of a group that is committed, and its answer, whether or not it ever reached anybody. `now` is the group's time."""
        self._now = now
        reader = getattr(self, f"_on_{name}", None)
        if reader is not None:
            reader(command, result)

    def _on_store_content(self, command: Any, result: Any) -> None:
        if not hasattr(result, "tx"):
            return
        known = self._states.get(result.tx.id)
        if known is not None and not result.created:
            self.marks["repeated_content"] += 1
            if not command.submit and result.tx.id in self._by_rows:
                self.marks["late_prepare"] += 1
        elif command.submit:
            self._by_rows.add(result.tx.id)
        self._see(result)

    def _on_decide(self, command: Any, result: Any) -> None:
        if hasattr(result, "tx"):
            if result.tx.decided_by is not None and int(result.tx.decided_by) == 2:
                self.marks["commit_against_check_back"] += 1
            self._see(result)
        else:
            self.marks["decision_refused"] += 1

    def _see(self, view: Any) -> None:
        """I3: a decision never changes."""
        state, before = int(view.tx.state), self._states.get(view.tx.id)
        if before in DECIDED and state != before:
            self.wrong.append(f"decision changed: {view.tx.id.hex()} was {before} and is {state}")
        self._states[view.tx.id] = state

    def _on_apply_ruling(self, command: Any, result: Any) -> None:
        self.marks[f"verdict_{command.verdict}"] += 1
        if result == "parked":
            self.parked.append(str(command))
        if result == "ignored":
            self.marks["check_back_against_commit"] += 1

    def _on_fetch(self, command: Any, result: Any) -> None:
        if not isinstance(result, list):
            return
        if result and command is not None and command.group in self._paused:
            self.wrong.append(f"{len(result)} deliveries for {command.group}, which is paused")
        for delivery in result:
            spot, hand = spot_of(delivery.token)
            if spot in self._done:
                self.wrong.append(f"handed out again after its ack: {spot} of {delivery.group}")
            if spot in self._handed:
                self.marks["redelivered"] += 1
            if delivery.attempt > self._max_attempts:
                self.wrong.append(f"attempt {delivery.attempt} of {spot}, at most {self._max_attempts}")
            if delivery.missed:
                self.marks["missed_named"] += 1
            self._handed[spot] = hand
            self.hands[spot] += 1
            self._until[run_of(delivery.token)] = delivery.lease_until
            if delivery.row.okey is not None:
                self._one_hand(command, delivery, spot)

    def _one_hand(self, command: Any, delivery: Any, spot: Spot) -> None:
        """I8: what is open in an ordered lane is in one member's hand. Another gets of it only after a lease in it has ended."""
        lane = self._lanes.setdefault(spot[:2], {})
        now = delivery.lease_until if command.lease_ms is None else delivery.lease_until - command.lease_ms
        if spot in lane and lane[spot].until <= now:
            self._came_back(lane, lane[spot].until)
        others = {at: held for at, held in lane.items() if held.member != command.member}
        sure = {at: held for at, held in others.items() if not held.doubtful}
        if sure and command.lease_ms is not None and all(held.until > now for held in others.values()):
            at, held = min(sure.items())
            self.wrong.append(f"two hands: {spot} of {delivery.group} for {command.member}, while {held.member} has {at} for {held.until - now} ms")
        for at in others:
            del lane[at]
        lane[spot] = Open(delivery.group, command.member, delivery.token, now, delivery.lease_until)

    @staticmethod
    def _came_back(lane: dict[Spot, Open], ended: int) -> None:
        """A lease in it had ended, and all that was open in the lane came back; what was handed out since did so, or did not."""
        for at, held in list(lane.items()):
            if held.since <= ended:
                del lane[at]
            else:
                held.doubtful = True

    def _on_pause(self, command: Any, result: Any) -> None:
        (self._paused.add if command.paused else self._paused.discard)(command.name)

    def _on_extend(self, command: Any, result: Any) -> None:
        if not isinstance(result, list):
            return
        for token, answer in zip(command.tokens, result, strict=True):
            if answer.error is None and token.count(".") == 4:
                (spot, hand), run = spot_of(token), run_of(token)
                self._until[run] = max(self._until.get(run, 0), answer.lease_until)
                if (spot, hand) in self._over:
                    self.wrong.append(f"extended behind its end: {token}")
                for held in self._lanes.get(spot[:2], {}).values():
                    if held.run == run:
                        held.until = max(held.until, answer.lease_until)

    def _on_rejoin(self, command: Any, result: Any) -> None:
        """What a member does not hold any more was lost with its connection, and given back."""
        if isinstance(result, list):
            kept = command.holding - set(result)
            for lane in self._lanes.values():
                for at, held in list(lane.items()):
                    if (held.group, held.member) == (command.group, command.member) and held.token not in kept:
                        del lane[at]

    def _let_go(self, token: str) -> None:
        spot, _ = spot_of(token)
        self._lanes.get(spot[:2], {}).pop(spot, None)

    def _may_be_gone(self, spot: Spot, token: str) -> None:
        """Lost: an earlier word of it was taken, and nobody has heard the answer (a crash behind the commit), or its lease has ended."""
        held = self._lanes.get(spot[:2], {}).get(spot)
        if held is not None and held.token == token:
            held.doubtful = True

    def is_done(self, spot: Spot) -> bool:
        """Was its ack taken?"""
        return spot in self._done

    def is_lost_in_its_last_hand(self, spot: Spot) -> bool:
        """Did a word come for it that was too late, of the hand that it was given to last?"""
        return (spot, self._handed.get(spot, "")) in self.lost

    def _on_settle(self, command: Any, result: Any) -> None:
        if not isinstance(result, list):
            return
        for item, answer in zip(command.items, result, strict=True):
            if item.token.count(".") != 4:
                continue
            spot, hand = spot_of(item.token)
            if answer.error is not None:
                self.marks[f"settle_{answer.error[0]}"] += 1
                if answer.error[0] == "lease_lost":
                    self.lost.add((spot, hand))
                    self._may_be_gone(spot, item.token)
                continue
            if self._handed.get(spot) != hand:
                self.wrong.append(f"stale token taken: {item.what} of {spot} with {hand}, handed out last as {self._handed.get(spot)}")
            if spot in self._done:
                self.wrong.append(f"settled again after its ack: {spot}")
            self.marks[f"settled_{item.what}"] += 1
            self._taken(item, spot, hand)
            self._let_go(item.token)
            for token in answer.given_back:
                self._over.add(spot_of(token))
                self._let_go(token)
            if answer.given_back:
                self.marks["given_back"] += 1

    def _taken(self, item: Any, spot: Spot, hand: str) -> None:
        """A word that counts: before the end of its lease, once a hand, and as often as a message may be tried (I8, I9)."""
        until = self._until.get(run_of(item.token), 0)
        if self._now is not None and until <= self._now:
            self.wrong.append(f"taken {self._now - until} ms after its lease: {item.what} of {spot}")
        if (spot, hand) in self._over and spot not in self._done:
            self.wrong.append(f"taken from a hand that has ended: {item.what} of {spot} with {hand}")
        self._over.add((spot, hand))
        match item.what:
            case "ack":
                self._done.add(spot)
            case "reject":
                self.rejected.add(spot)
            case _:
                self._nacks[spot] += item.counts
                if self._nacks[spot] > self._max_attempts:
                    self.wrong.append(f"{self._nacks[spot]} attempts of {spot} were nacked, at most {self._max_attempts}")

    def _on_expire_tick(self, command: Any, result: Any) -> None:
        if isinstance(result, int) and result:
            self.marks["lease_ended"] += result

    def _on_drain_tick(self, command: Any, result: Any) -> None:
        if isinstance(result, int) and result:
            self.marks["drained_later"] += 1
