"""A right history of services at work, and what spoils one: each corruption is one wrong that the checker must find (`test_checker.py`)."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

Event = dict[str, Any]
TOPICS = ("orders", "notes")
GROUPS = {"billing": TOPICS, "stock": ("orders",)}
FINAL = ("decided", "undecided")


class Books:
    """A right history, made step by step as services would make it; `events` is in the order that the format asks for."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.truth: list[Event] = []
        self.rest: list[Event] = []
        self.effects: list[Event] = []
        self.numbers: dict[tuple[str, str], int] = defaultdict(int)
        self.count = 0

    def event(self, event: str, **more: Any) -> Event:
        return {"at": 1.0 + self.count, "process": "test", "event": event} | more

    def transaction(self, fate: str, topic: str | None = None) -> None:
        """`fate`: committed, rolled_back, sent, unknown (a send without an answer), parked, or dead in one group or in the topic."""
        self.count += 1
        id = f"t{self.count:04}"
        producer = self.chance.choice(("shop-a", "shop-b"))
        if fate == "rolled_back":
            self.rest += [self.event("rolled_back", transaction=id, producer=producer), *self._decided(id, "rolled_back")]
            self.rest.append(self.event("acknowledged", what="prepare", transaction=id, state="prepared"))
            return
        if fate in ("sent", "unknown"):
            message = self._message(id, None, TOPICS[1], None)
            self.rest.append(self.event("sent", **message))
        else:
            topic = TOPICS[1] if fate == "parked" else topic or self.chance.choice(TOPICS)  # a parked ordered one would hold its key
            message = self._message(id, producer, topic, f"k{self.chance.randrange(2)}" if topic == "orders" else None)
            self.truth.append(self.event("committed", **message))
        self._tell(fate, id, message)

    def _message(self, id: str, producer: str | None, topic: str, key: str | None) -> Event:
        number = None
        if key is not None:
            self.numbers[f"{producer}", key] += 1
            number = self.numbers[f"{producer}", key]
        return {
            "transaction": id, "producer": producer, "message": f"{id}-0", "topic": topic, "key": key, "sequence": number, "digest": f"d{self.count}"
        }  # fmt: skip

    def _tell(self, fate: str, id: str, message: Event) -> None:
        if fate == "parked":
            self.rest.append(self.event("undecided", transaction=id, state="parked", final=True))
            return
        what = "send" if fate == "sent" else self.chance.choice(("commit", "submit"))
        self.rest += [self.event("acknowledged", what=what, transaction=id, state="committed")] * (fate != "unknown")
        self.rest += self._decided(id, "committed")
        dead_in = self.chance.choice([name for name, topics in GROUPS.items() if message["topic"] in topics]) if fate == "dead" else None
        if fate == "dead_topic":
            self.rest.append(self.event("dead", group=None, topic=message["topic"], message=message["message"], reason="corrupt"))
            return
        for group, topics in GROUPS.items():
            if group == dead_in:
                self.rest.append(self.event("dead", group=group, topic=message["topic"], message=message["message"], reason="rejected"))
            elif message["topic"] in topics:
                self.effects.append(self.event("effect", group=group, generation=1, redriven=False, **message))

    def _decided(self, id: str, state: str) -> list[Event]:
        return [self.event("decided", transaction=id, state=state, by="fence"), self.event("decided", transaction=id, state=state, final=True)]

    @property
    def events(self) -> list[Event]:
        stand = [self.event("group", at=0.0, group=group, topics=list(topics)) for group, topics in GROUPS.items()]
        return [*stand, *self.truth, *self.rest, *self.effects]


FATES = ("committed", "rolled_back", "sent", "unknown", "parked", "dead", "dead_topic")


def right(seed: int, fates: list[str]) -> list[Event]:
    """Always with a send and two of one key (six over four keys), so that every corruption has something to spoil."""
    books = Books(random.Random(seed))
    for topic in [*[TOPICS[0]] * 6, *[TOPICS[1]] * 3]:
        books.transaction("committed", topic)
    for fate in ["sent", "unknown", "rolled_back", *fates]:
        books.transaction(fate)
    return books.events


# --- corruptions: each spoils one thing, and returns the history; `pick` chooses among the candidates ---

Pick = Callable[[list[Any]], Any]


def at(events: list[Event], *kinds: str, **wanted: Any) -> list[int]:
    return [
        n for n, event in enumerate(events) if event["event"] in kinds and all(event.get(name) == value for name, value in wanted.items())
    ]  # fmt: skip


def lose_an_effect(events: list[Event], pick: Pick) -> None:
    local = {events[n]["message"] for n in at(events, "committed")}
    del events[pick([n for n in at(events, "effect") if events[n]["message"] in local])]


def lose_a_sent_one(events: list[Event], pick: Pick) -> None:
    told = {events[n]["transaction"] for n in at(events, "acknowledged", what="send")}
    del events[pick([n for n in at(events, "effect") if events[n]["transaction"] in told])]


def forget_a_dead_letter(events: list[Event], pick: Pick) -> None:
    del events[pick(at(events, "dead"))]


def deliver_what_rolled_back(events: list[Event], pick: Pick) -> None:
    id = events[pick(at(events, "rolled_back"))]["transaction"]
    effect = events[pick(at(events, "effect"))]
    events.append(effect | {"message": f"{id}-0", "transaction": id, "topic": "notes", "key": None, "sequence": None, "group": "billing"})


def undo_a_local_commit(events: list[Event], pick: Pick) -> None:
    """The message is everywhere, and its local transaction nowhere."""
    del events[pick([n for n in at(events, "committed") if events[n]["transaction"] in _final(events, "committed")])]


def deliver_to_another_group(events: list[Event], pick: Pick) -> None:
    effect = events[pick(at(events, "effect", group="billing", topic="notes"))]
    events.append(effect | {"group": "stock"})


def double_an_effect(events: list[Event], pick: Pick) -> None:
    events.append(events[pick(at(events, "effect", topic="notes"))])


def swap_two_of_a_key(events: list[Event], pick: Pick) -> None:
    places: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for n in at(events, "effect", topic="orders"):
        places[events[n]["group"], events[n]["producer"], events[n]["key"]].append(n)
    first, second = pick([pair for found in places.values() for pair in pairwise(found)])
    events[first], events[second] = events[second], events[first]


def commit_out_of_number(events: list[Event], pick: Pick) -> None:
    events[pick(at(events, "committed", topic="orders"))]["sequence"] += 1


def pass_over_an_earlier_one(events: list[Event], pick: Pick) -> None:
    """Its effect comes late or never: the later one must not have come before."""
    places: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for n in at(events, "effect", topic="orders"):
        places[events[n]["group"], events[n]["producer"], events[n]["key"]].append(n)
    del events[pick([found[0] for found in places.values() if len(found) > 1])]


def decide_twice(events: list[Event], pick: Pick) -> None:
    event = events[pick(at(events, "decided"))]
    other = "rolled_back" if event["state"] == "committed" else "committed"
    events.insert(pick(list(range(len(events)))), event | {"state": other, "final": False})


def answer_otherwise(events: list[Event], pick: Pick) -> None:
    """A refusal told a client the other decision."""
    event = events[pick(at(events, "decided", state="committed"))]
    events.append({"at": 99.0, "process": "test", "event": "answered", "transaction": event["transaction"], "state": "rolled_back"})


def forget_a_transaction(events: list[Event], pick: Pick) -> None:
    id = events[pick(at(events, "acknowledged"))]["transaction"]
    events[:] = [event for event in events if not (event["event"] in FINAL and event.get("final") and event["transaction"] == id)]


def acknowledge_the_other(events: list[Event], pick: Pick) -> None:
    """A commit was acknowledged, and at the end it is rolled back."""
    id = events[pick(at(events, "acknowledged", what="commit") + at(events, "acknowledged", what="submit"))]["transaction"]
    for event in events:
        if event["event"] == "decided" and event["transaction"] == id:
            event["state"] = "rolled_back"


def undecide_what_was_acknowledged(events: list[Event], pick: Pick) -> None:
    id = events[pick([n for n in at(events, "acknowledged") if events[n]["what"] != "prepare"])]["transaction"]
    for n, event in enumerate(events):
        if event["event"] == "decided" and event.get("final") and event["transaction"] == id:
            events[n] = event | {"event": "undecided", "state": "prepared"}


def damage_a_body(events: list[Event], pick: Pick) -> None:
    events[pick(at(events, "effect"))]["digest"] = "other"


def exchange_two_numbers(events: list[Event], pick: Pick) -> None:
    """Two of a key come in the wrong order, each under the other's number."""
    by_key = defaultdict(list)
    for n in at(events, "effect"):
        if events[n]["sequence"] is not None:
            by_key[tuple(events[n][each] for each in ("group", "producer", "topic", "key"))].append(n)
    first, other = pick([pair for numbered in by_key.values() for pair in pairwise(numbered)])
    events[first]["message"], events[other]["message"] = events[other]["message"], events[first]["message"]
    events[first]["digest"], events[other]["digest"] = events[other]["digest"], events[first]["digest"]


def strip_its_number(events: list[Event], pick: Pick) -> None:
    events[pick([n for n in at(events, "effect") if events[n]["sequence"] is not None])]["sequence"] = None


def say_it_is_of_another(events: list[Event], pick: Pick) -> None:
    n = pick([n for n in at(events, "effect") if events[n]["producer"] is not None])
    events[n]["producer"] = {"shop-a": "shop-b", "shop-b": "shop-a"}[events[n]["producer"]]


def begin_a_generation(events: list[Event], pick: Pick) -> None:
    """One that comes again as if somebody had asked for everything anew."""
    events.append(dict(events[pick(at(events, "effect"))]) | {"generation": 2})


def redrive_what_nobody_did(events: list[Event], pick: Pick) -> None:
    events[pick(at(events, "effect"))]["redriven"] = True


def hand_out_another_body(events: list[Event], pick: Pick) -> None:
    """To a group that works without an inbox."""
    events.append(dict(events[pick(at(events, "effect"))]) | {"event": "handed", "group": "raw", "digest": "other"})


def hand_out_what_rolled_back(events: list[Event], pick: Pick) -> None:
    deliver_what_rolled_back(events, pick)
    events[-1] |= {"event": "handed", "group": "raw"}


def lose_one_that_nobody_heard_of(events: list[Event], pick: Pick) -> None:
    """A send whose answer was lost, and which is committed all the same."""
    told = {events[n]["transaction"] for n in at(events, "acknowledged")}
    final = _final(events, "committed")
    unheard = {events[n]["message"] for n in at(events, "sent") if events[n]["transaction"] in final - told}
    del events[pick([n for n in at(events, "effect") if events[n]["message"] in unheard])]


def find_something(events: list[Event], pick: Pick) -> None:
    events.append({"at": 99.0, "process": "coordinator", "event": "finding", "name": "log_is_committed", "rows": [{"m": 1}]})


def _final(events: list[Event], state: str) -> set[str]:
    return {events[n]["transaction"] for n in at(events, "decided", state=state, final=True)}


Spoil = Callable[[list[Event], Pick], None]

CORRUPTIONS: list[tuple[str, Spoil]] = [
    ("lost", lose_an_effect),
    ("lost", forget_a_dead_letter),
    ("ghost", deliver_what_rolled_back),
    ("ghost", undo_a_local_commit),
    ("ghost", deliver_to_another_group),
    ("ghost", hand_out_what_rolled_back),
    ("doubled", double_an_effect),
    ("doubled", begin_a_generation),
    ("doubled", redrive_what_nobody_did),
    ("inverted", swap_two_of_a_key),
    ("inverted", commit_out_of_number),
    ("inverted", pass_over_an_earlier_one),
    ("changed", decide_twice),
    ("changed", answer_otherwise),
    ("acknowledged_lost", lose_a_sent_one),
    ("acknowledged_lost", lose_one_that_nobody_heard_of),
    ("acknowledged_lost", forget_a_transaction),
    ("acknowledged_lost", acknowledge_the_other),
    ("acknowledged_lost", undecide_what_was_acknowledged),
    ("wrong_body", damage_a_body),
    ("wrong_body", hand_out_another_body),
    ("wrong_body", exchange_two_numbers),
    ("wrong_body", strip_its_number),
    ("wrong_body", say_it_is_of_another),
    ("unsound", find_something),
]
