"""The hand: which delivery may start, and what the end of one means for its key. First by example, then against a model coordinator."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from halfmsg.txclient import Delivery
from halfmsg.txclient._hand import Action, End, Hand, Settle, Start

LEASE_S = 30.0
WHEN = datetime(2030, 1, 1, tzinfo=UTC)


def delivery(offset: int, key: str | None = "k", token: str | None = None) -> Delivery:
    return Delivery(id=f"i-{offset}", transaction_id="i", topic="t", lane=0, offset=offset, time=WHEN, key=key, token=token or f"t{offset}")


def hand_with(*deliveries: Delivery, places: int = 16) -> Hand:
    hand = Hand(places=places, lease_s=LEASE_S)
    hand.receive(deliveries, 0.0)
    return hand


def told(actions: Sequence[Action]) -> list[str]:
    """Actions in short: `start 3`, `ack t3`, `nack t3`."""
    return [f"start {one.delivery.offset}" if isinstance(one, Start) else f"{one.end} {one.delivery.token}" for one in actions]


def test_one_key_runs_in_order_one_at_a_time() -> None:
    """The next of a key starts when the one before has ended, without waiting for the answer to its ack."""
    hand = hand_with(delivery(1), delivery(2))
    assert told(hand.next(0)) == ["start 1"]
    assert told(hand.finish("t1", End.ACK)) == ["ack t1"]
    assert told(hand.next(0)) == ["start 2"]


def test_keys_run_side_by_side_up_to_the_places() -> None:
    """Places limit all handlers, whatever their keys; messages without a key wait for nothing else."""
    hand = hand_with(delivery(1, "a"), delivery(2, "b"), delivery(3, None), delivery(4, None), places=3)
    assert told(hand.next(0)) == ["start 1", "start 2", "start 3"]
    hand.finish("t2", End.ACK)
    assert told(hand.next(0)) == ["start 4"]


def test_failure_blocks_its_key_and_drops_what_was_behind() -> None:
    """After a nack nothing of the key starts until the answer; what was in hand then is gone, what is newer goes on."""
    hand = hand_with(delivery(1), delivery(2))
    hand.next(0)
    assert told(hand.finish("t1", End.NACK, reason="no")) == ["nack t1"]
    hand.receive([delivery(3)], 0)
    assert hand.next(0) == []
    hand.receive([delivery(1, token="t1b")], 0)
    assert hand.answered("t1", True, ["t2", "t3"]) == []
    assert told(hand.next(0)) == ["start 1"]
    assert len(hand) == 1 and hand.take_released() == 3


def test_other_keys_go_on_beside_a_blocked_one() -> None:
    """A failing key holds itself alone."""
    hand = hand_with(delivery(1, "a"), delivery(2, "b"), delivery(3, "a"))
    hand.next(0)
    hand.finish("t1", End.NACK)
    hand.finish("t2", End.ACK)
    hand.receive([delivery(4, "b")], 0)
    assert told(hand.next(0)) == ["start 4"]


def test_given_back_tokens_that_arrive_later_are_dropped() -> None:
    """The answer may overtake a delivery on its way through the client; it never starts, and its credit comes back."""
    hand = hand_with(delivery(1))
    hand.next(0)
    hand.finish("t1", End.REJECT, reason="never")
    hand.answered("t1", True, ["t2"])
    hand.take_released()
    hand.receive([delivery(2)], 0)
    assert hand.next(0) == [] and len(hand) == 0 and hand.take_released() == 1


def test_given_back_is_forgotten_with_the_connection() -> None:
    """What was on a lost connection never comes."""
    hand = hand_with(delivery(1))
    hand.next(0)
    hand.finish("t1", End.NACK)
    hand.answered("t1", True, ["t2"])
    hand.disconnected()
    assert hand._stale == {}


def test_refused_nack_proves_nothing_so_the_held_are_given_back_first() -> None:
    """lease_lost: those behind may be old or ours anew; they are nacked free of charge, and the key waits for that answer."""
    hand = hand_with(delivery(1), delivery(2))
    hand.next(0)
    hand.finish("t1", End.NACK)
    doubtful = hand.answered("t1", False)
    assert told(doubtful) == ["nack t2"]
    assert isinstance(doubtful[0], Settle) and doubtful[0].counts is False
    hand.receive([delivery(3)], 0)
    assert hand.next(0) == []
    assert hand.answered("t2", True, ["t3"]) == []
    assert len(hand) == 0


def test_refusals_go_on_until_nothing_is_doubtful() -> None:
    """If those are refused as well, what came meanwhile is doubtful too; then the key is free."""
    hand = hand_with(delivery(1), delivery(2))
    hand.next(0)
    hand.finish("t1", End.NACK)
    hand.answered("t1", False)
    hand.receive([delivery(1, token="t1b")], 0)
    assert told(hand.answered("t2", False)) == ["nack t1b"]
    assert hand.answered("t1b", False) == []
    hand.receive([delivery(1, token="t1c")], 0)
    assert told(hand.next(0)) == ["start 1"]


def test_held_from_an_earlier_connection_are_doubtful() -> None:
    """An answer over a new connection says nothing sure of what came over the old one."""
    hand = hand_with(delivery(1))
    hand.next(0)
    hand.finish("t1", End.NACK)
    hand.receive([delivery(2)], 0)
    hand.disconnected()
    assert told(hand.answered("t1", True)) == ["nack t2"]


def test_w11_old_lease_is_not_started_but_given_back() -> None:
    """Past 2/3 of the lease nothing starts, and nothing behind it either; at the edge it does."""
    hand = hand_with(delivery(1))
    assert told(hand.next(20.0)) == ["start 1"]
    hand = hand_with(delivery(1))
    hand.receive([delivery(2)], 20.0)
    assert told(hand.next(20.1)) == ["nack t1"]
    assert hand.next(20.1) == []


def test_renewal_makes_a_lease_young() -> None:
    """The time counts from the beginning of the call that renewed it."""
    hand = hand_with(delivery(1))
    assert hand.renewable() == ["t1"]
    hand.renewed(["t1"], 15.0)
    assert told(hand.next(34.0)) == ["start 1"]


def test_p7_what_is_behind_a_lost_lease_is_not_run_however_fresh_it_looks() -> None:
    """A consumer that was stopped past its lease: 2 is taken back while 1 runs, 3 lay unread in the socket; 3 must not pass 2."""
    hand = hand_with(delivery(1), delivery(2))
    hand.next(0)
    hand.receive([delivery(3)], 5)
    assert hand.revoked(["t1", "t2"]) == []
    [asked] = hand.finish("t1", End.ACK)
    assert isinstance(asked, Settle) and (asked.end, asked.delivery.token, asked.counts) == (End.NACK, "t3", False)
    assert hand.next(5) == []


def test_p7_nothing_passes_a_lost_one_that_failed() -> None:
    """The effect of 1 is missing, and nobody is told: 2 waits for the coordinator's word."""
    hand = hand_with(delivery(1), delivery(2))
    hand.next(0)
    hand.revoked(["t1"])
    [asked] = hand.finish("t1", End.NACK)
    assert isinstance(asked, Settle) and asked.delivery.token == "t2" and hand.next(0) == []


def test_p7_revoked_before_it_arrives_is_dropped_when_it_does() -> None:
    """The word that a lane was taken back may overtake what was on its way."""
    hand = hand_with()
    assert hand.revoked(["t1"]) == []
    hand.receive([delivery(1)], 0)
    assert hand.next(0) == [] and len(hand) == 0


def test_revoked_waiting_is_dropped_and_revoked_running_is_told_to_nobody() -> None:
    """Its result would be refused; the key waits for the handler, and then for the word on what is behind it."""
    hand = hand_with(delivery(1), delivery(2))
    hand.next(0)
    hand.revoked(["t1", "t2"])
    hand.receive([delivery(1, token="t1b")], 0)
    assert hand.next(0) == [] and hand.renewable() == ["t1b"]
    [asked] = hand.finish("t1", End.NACK)
    assert isinstance(asked, Settle) and (asked.delivery.token, asked.counts) == ("t1b", False)
    assert hand.next(0) == []


def test_newer_token_of_the_same_message_takes_the_place_of_the_old() -> None:
    """Two tokens of one offset: the older lease has ended."""
    hand = hand_with(delivery(1), delivery(2), delivery(1, token="t1b"))
    assert [one.delivery.token for one in hand.next(0)] == ["t1b"]
    assert hand.take_released() == 1


def test_closing_gives_back_what_has_not_begun() -> None:
    """What runs ends in its own way; what waits goes back free of charge, behind a running one after it."""
    hand = hand_with(delivery(1), delivery(2), delivery(3, "b"), places=1)
    hand.next(0)
    hand.close()
    assert told(hand.next(0)) == ["nack t3"]
    assert told(hand.finish("t1", End.ACK)) == ["ack t1"]
    assert told(hand.next(0)) == ["nack t2"]


def test_late_answer_to_an_ack_leaves_the_next_lane_of_its_key_alone() -> None:
    """A lane is remade under the same name while an ack is on its way."""
    hand = hand_with(delivery(1))
    hand.next(0)
    hand.finish("t1", End.ACK)
    hand.receive([delivery(2)], 0)
    hand.next(0)
    hand.answered("t1", True)
    hand.receive([delivery(3)], 0)
    assert hand.next(0) == []


class Coordinator:
    """R13 in small: one member, one lane; a failed message holds its key, and what is later of it in the hand goes back."""

    def __init__(self, keys: Sequence[str], credit: int) -> None:
        self.keys = keys
        self.total = self.credit = credit
        self.open: dict[str, int] = {}
        self.retry: set[int] = set()
        self.settled: set[int] = set()
        self.next = 0
        self.tokens = 0
        self.owned_by_old = False

    def hand_out(self) -> list[Delivery]:
        """One delivery, if there is one: first what failed, heads of keys only; then what is new and not behind a failed one."""
        if self.credit == 0 or self.owned_by_old:
            return []
        for offset in sorted(self.retry):
            mine = [other for other in self.retry | set(self.open.values()) if self.keys[other] == self.keys[offset] and other < offset]
            if not mine:
                self.retry.discard(offset)
                return [self._give(offset)]
        while self.next < len(self.keys):
            offset, self.next = self.next, self.next + 1
            if any(self.keys[failed] == self.keys[offset] for failed in self.retry):
                self.retry.add(offset)
            else:
                return [self._give(offset)]
        return []

    def _give(self, offset: int) -> Delivery:
        self.tokens += 1
        self.credit -= 1
        token = f"{offset}#{self.tokens}"
        self.open[token] = offset
        return delivery(offset, self.keys[offset], token)

    def take_back(self, token: str) -> list[str]:
        """This one failed or its lease ended: it and all later ones of its key go to the retry list; the tokens of the later ones."""
        offset = self.open.pop(token)
        self.retry.add(offset)
        later = [one for one, other in self.open.items() if self.keys[other] == self.keys[offset] and other > offset]
        for one in later:
            self.retry.add(self.open.pop(one))
        return later

    def take_back_all(self) -> None:
        while self.open:
            self.take_back(next(iter(self.open)))

    def settle(self, one: Settle) -> tuple[bool, list[str]]:
        token = one.delivery.token
        offset = self.open.get(token)
        if offset is None:
            return False, []
        if any(self.keys[other] == self.keys[offset] and other < offset for other in self.open.values()):
            return False, []  # out_of_order
        if one.end is End.ACK:
            del self.open[token]
            self.settled.add(offset)
            return True, []
        back = self.take_back(token)
        if one.end is End.REJECT:
            self.retry.discard(offset)
            self.settled.add(offset)
        return True, back


class World:
    """Both ends, and the wire between them: two queues that lose all they hold when the connection breaks."""

    def __init__(self, keys: Sequence[str], places: int, credit: int) -> None:
        self.server = Coordinator(keys, credit)
        self.hand = Hand(places=places, lease_s=LEASE_S)
        self.down: deque[Any] = deque()
        self.up: deque[Settle] = deque()
        self.untold: dict[str, Settle] = {}
        self.running: list[Delivery] = []
        self.done: set[int] = set()

    def do(self, actions: Sequence[Action]) -> None:
        for action in [*actions, *self.hand.next(0.0)]:
            if isinstance(action, Start):
                assert all(one.key != action.delivery.key for one in self.running), "two of one key at once"
                self.running.append(action.delivery)
            else:
                self.untold[action.delivery.token] = action
                self.up.append(action)
        self.server.credit += self.hand.take_released()

    def hand_out(self, _: int) -> None:
        if given := self.server.hand_out():
            self.down.append(("deliver", given))

    def arrive(self, _: int) -> None:
        if not self.down:
            return
        kind, *content = self.down.popleft()
        if kind == "deliver":
            self.hand.receive(content[0], 0.0)
            assert len(self.hand) <= self.server.total, "more in hand than credits"
            self.do([])
        elif kind == "revoke":
            self.hand.revoked(content[0])
            self.do([])
        else:
            one, ok, back = content
            self.untold.pop(one.delivery.token, None)
            self.do(self.hand.answered(one.delivery.token, ok, back))

    def tell(self, _: int) -> None:
        if self.up:
            one = self.up.popleft()
            self.down.append(("answer", one, *self.server.settle(one)))

    def finish(self, n: int) -> None:
        if not self.running:
            return
        one = self.running.pop(n % len(self.running))
        end = [End.ACK, End.ACK, End.NACK, End.REJECT][n % 4]
        if end is End.ACK:
            self.effect(one)
        self.do(self.hand.finish(one.token, end))

    def effect(self, one: Delivery) -> None:
        """P7 and, with an inbox, P2: all earlier ones of the key have had their effect or stand among the dead."""
        earlier = [offset for offset in range(one.offset) if self.server.keys[offset] == one.key]
        missing = [offset for offset in earlier if offset not in self.done and offset not in self.server.settled]
        assert not missing, f"effect of {one.offset} before {missing}"
        self.done.add(one.offset)

    def lease_ends(self, n: int) -> None:
        """One run's lease, and the client is told in turn; or the whole lane's, as this coordinator does, and nobody is told."""
        if not self.server.open:
            return
        if n % 3:
            token = sorted(self.server.open)[n % len(self.server.open)]
            self.down.append(("revoke", [token, *self.server.take_back(token)]))
        else:
            self.server.take_back_all()

    def breaks(self, _: int) -> None:
        """What is on the wire is lost, deliveries too. The client tells again what had no answer, and subscribes under a new name with the
        credits that remain: the lane stays with the old name until its lease ends. (Under the old name this test finds the loss: hand
        out 0, break, and 1 comes over the new connection while 0 was never seen.)"""
        self.down.clear()
        self.hand.disconnected()
        self.up = deque(self.untold.values())
        self.hand.take_released()
        self.server.credit = self.server.total - len(self.hand)
        self.server.owned_by_old = True

    def lane_taken(self, _: int) -> None:
        """The old name's lease has ended: the new one takes the lane, and all that was open in it comes back first."""
        if self.server.owned_by_old:
            self.server.owned_by_old = False
            self.server.take_back_all()

    def settle_down(self) -> None:
        """No more faults: handlers succeed, and leases of what the client does not have end."""
        for _ in range(50 * (len(self.server.keys) + 5)):
            if len(self.server.settled) == len(self.server.keys):
                return
            self.hand_out(0)
            self.arrive(0)
            self.tell(0)
            self.finish(0)
            if not self.down and not self.up and not self.running:
                self.lane_taken(0)
                for token in [one for one in self.server.open if one not in self.hand._entries]:
                    if token in self.server.open:
                        self.server.take_back(token)
        raise AssertionError(f"stuck: {self.server.settled} of {len(self.server.keys)}, hand {self.hand.renewable()}, retry {self.server.retry}")


STEPS = ["hand_out", "hand_out", "arrive", "arrive", "tell", "tell", "finish", "finish", "lease_ends", "breaks", "lane_taken"]


@settings(max_examples=600, deadline=None)
@given(
    st.lists(st.sampled_from("ab"), min_size=1, max_size=8),
    st.integers(1, 3),
    st.integers(1, 8),
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 23)), max_size=80),
)
def test_p7_hand_keeps_the_order_of_each_key(keys: list[str], places: int, credit: int, steps: list[tuple[str, int]]) -> None:
    """Whatever fails, ends, breaks or is overtaken: no effect before an earlier one of its key, never two at once, nothing stuck."""
    world = World(keys, places, credit)
    for name, n in steps:
        getattr(world, name)(n)
    world.settle_down()
