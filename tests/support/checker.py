"""The one checker: reads a history (`history.py`) and says where a promise was broken. Pure; imports nothing of halfmsg.

lost               P2  committed locally, or acknowledged as sent, and neither an effect in a group that stood nor in a list
ghost              P1  an effect, or a commit at the coordinator, of what never committed locally; an effect where nobody asked for it
doubled            P6  two effects of one message in one group and generation, or a generation that nobody asked for
inverted           P7  per producer, topic and key: numbers not in commit order, effects not in order, one passed over that is not dead
changed            P4, P5  two decisions about one transaction, whoever named them: coordinator, answer, fence
acknowledged_lost  P3  a success answer that the end contradicts
wrong_body         P8  what a group got, its producer, key and number with it, is not what was committed
unsound            an invariant of the store that does not hold
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from .history import Event

DECIDED = ("committed", "rolled_back")
SAID = {"commit": "committed", "submit": "committed", "send": "committed", "rollback": "rolled_back"}
LABELS = ("producer", "topic", "key", "sequence")
Place = tuple[str, str, str]
"""Producer, topic and key."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong, a line each; right where all lists are empty."""

    lost: list[str] = field(default_factory=list)
    ghost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    inverted: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    acknowledged_lost: list[str] = field(default_factory=list)
    wrong_body: list[str] = field(default_factory=list)
    unsound: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        return {kind.name: len(getattr(self, kind.name)) for kind in fields(self)}

    @property
    def ok(self) -> bool:
        return not any(self.counts().values())

    def found(self) -> set[str]:
        return {kind for kind, count in self.counts().items() if count}


@dataclass(slots=True)
class _Facts:
    """The history, sorted by what it is about."""

    groups: dict[str, tuple[float, set[str]]] = field(default_factory=dict)
    committed: dict[str, Event] = field(default_factory=dict)
    sent: dict[str, Event] = field(default_factory=dict)
    acknowledged: list[Event] = field(default_factory=list)
    told: dict[str, float] = field(default_factory=dict)  # when each plain send was acknowledged
    answered: list[Event] = field(default_factory=list)
    forced: dict[str, str] = field(default_factory=dict)
    said: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))  # transaction -> state -> who said it first
    final: dict[str, str] = field(default_factory=dict)
    effects: dict[str, list[Event]] = field(default_factory=lambda: defaultdict(list))
    handed: dict[str, list[Event]] = field(default_factory=lambda: defaultdict(list))  # to groups whose work proves nothing
    dead: dict[str | None, set[str]] = field(default_factory=lambda: defaultdict(set))
    listed: set[str] = field(default_factory=set)  # transactions in a list that an operator sees
    conflicts: set[str] = field(default_factory=set)
    ordered_by_arrival: set[str] = field(default_factory=set)
    fenced: dict[str, str] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    findings: list[Event] = field(default_factory=list)
    places: dict[Place, list[Event]] = field(default_factory=lambda: defaultdict(list))

    def add(self, event: Event) -> None:
        match event["event"]:
            case "group":
                self.groups[event["group"]] = (event["at"], set(event["topics"]))
            case "committed":
                self.committed[event["message"]] = event
                if event["sequence"] is not None:
                    self.places[event["producer"], event["topic"], event["key"]].append(event)
            case "sent":
                self.sent[event["message"]] = event
            case "acknowledged":
                self.acknowledged.append(event)
                if event["what"] == "send":
                    self.told[event["transaction"]] = event["at"]
                self.say(event, SAID.get(event["what"]) or event["state"])
            case "answered":
                self.answered.append(event)
                self.say(event, event["state"])
            case "forced":
                self.forced[event["transaction"]] = event["state"]
            case "decided" | "undecided":
                self.stand(event)
                if event.get("by") == "fence":
                    self.fenced[event["transaction"]] = event["state"]
            case "effect":
                self.effects[event["group"]].append(event)
            case "handed":
                self.handed[event["group"]].append(event)
            case "dead":
                self.dead[event["group"]].add(event["message"])
            case "held":
                self.held.add(event["message"])
            case "conflict":
                self.conflicts.add(event["transaction"])
                self.listed.add(event["transaction"])
            case "refused":
                self.listed.add(event["transaction"])
            case "topic" if event["kind"] == "arrival":
                self.ordered_by_arrival.add(event["topic"])
            case "finding":
                self.findings.append(event)

    def got(self) -> Iterator[tuple[str, Event]]:
        """All that a group was given, whatever came of it."""
        for groups in (self.effects, self.handed):
            for group, events in groups.items():
                for event in events:
                    yield group, event

    def say(self, event: Event, state: str) -> None:
        if state in DECIDED:
            self.said[event["transaction"]].setdefault(state, f"{event['process']}, {event.get('what') or event.get('by') or event['event']}")

    def stand(self, event: Event) -> None:
        self.say(event, event["state"])
        if event.get("final"):
            self.final[event["transaction"]] = event["state"]
            if event["state"] == "parked":
                self.listed.add(event["transaction"])

    def is_listed(self, group: str, message: str) -> bool:
        transaction = message.rpartition("-")[0]
        in_a_list = transaction in self.listed and not (transaction in self.conflicts and self.final.get(transaction) == "committed")
        return message in self.dead[group] or message in self.dead[None] or message in self.held or in_a_list


def check(history: Iterable[Event]) -> Verdict:
    """Judge a whole history, from the first start to the state at rest."""
    facts = _Facts()
    for event in history:
        facts.add(event)
    return Verdict(
        lost=list(_lost(facts, facts.committed)),
        ghost=[*_ghost_effects(facts), *_ghost_decisions(facts)],
        doubled=[*_doubled(facts), *_generations(facts)],
        inverted=[*_numbers(facts), *_inverted(facts), *_arrived(facts)],
        changed=[*_changed(facts), *_unlisted(facts)],
        acknowledged_lost=[*_answers(facts), *_lost(facts, _sends(facts))],
        wrong_body=[*_wrong_body(facts), *_wrong_labels(facts)],
        unsound=[f"{event['name']}: {event['rows']}" for event in facts.findings],
    )


def _lost(facts: _Facts, owed: dict[str, Event]) -> Iterator[str]:
    for group, (since, topics) in facts.groups.items():
        done = {effect["message"] for effect in facts.effects[group]}
        for message, event in owed.items():
            if event["topic"] in topics and event["at"] >= since and message not in done and not facts.is_listed(group, message):
                if facts.forced.get(event["transaction"]) == "rolled_back":
                    continue
                state = facts.final.get(event["transaction"], "not known")
                yield f"{group}: {_name(event)} had no effect; its transaction is {state} at the coordinator"


def _sends(facts: _Facts) -> dict[str, Event]:
    """What was acknowledged, or is committed although nobody heard of it."""
    return {
        message: event for message, event in facts.sent.items()
        if event["transaction"] in facts.told or facts.final.get(event["transaction"]) == "committed"
    }  # fmt: skip


def _ghost_effects(facts: _Facts) -> Iterator[str]:
    for group, effect in facts.got():
        topics = facts.groups.get(group, (0.0, set[str]()))[1]
        forced = facts.forced.get(effect["message"].rpartition("-")[0])
        if forced == "rolled_back":
            yield f"{group}: effect of {_name(effect)}, which was rolled back by hand"
        elif effect["message"] not in facts.committed and effect["message"] not in facts.sent and forced != "committed":
            yield f"{group}: effect of {_name(effect)}, which never committed"
        elif effect["topic"] not in topics and effect["event"] == "effect":
            yield f"{group}: effect of {_name(effect)}, and the group has no such topic"


def _ghost_decisions(facts: _Facts) -> Iterator[str]:
    true = {event["transaction"] for event in [*facts.committed.values(), *facts.sent.values()]}
    for transaction, said in facts.said.items():
        if "committed" in said and transaction not in true and facts.forced.get(transaction) != "committed":
            yield f"{transaction} is committed ({said['committed']}), and its local transaction never was"


def _doubled(facts: _Facts) -> Iterator[str]:
    for group, effects in facts.effects.items():
        for (message, generation), times in Counter((effect["message"], effect.get("generation", 1)) for effect in effects).items():
            if times > 1:
                yield f"{group}: {message} had {times} effects in generation {generation}"


def _generations(facts: _Facts) -> Iterator[str]:
    """Nothing here starts a group anew or redrives a dead letter: a generation of its own would excuse an effect that comes again."""
    for group, effect in facts.got():
        if effect.get("generation", 1) != 1 or effect.get("redriven"):
            how = f"in generation {effect.get('generation')}, redriven {bool(effect.get('redriven'))}"
            yield f"{group}: {_name(effect)} came {how}, and nobody asked for it"


def _numbers(facts: _Facts) -> Iterator[str]:
    """A key's numbers are 1, 2, 3, … in the order of the local commits."""
    for (producer, topic, key), events in facts.places.items():
        for expected, event in enumerate(events, 1):
            if event["sequence"] != expected:
                yield f"{producer} {topic} {key}: commit {expected} has the number {event['sequence']} ({event['message']})"
                break


def _inverted(facts: _Facts) -> Iterator[str]:
    committed = {place: {event["sequence"]: event["message"] for event in events} for place, events in facts.places.items()}
    for group, effects in facts.effects.items():
        last: dict[tuple[Any, ...], int] = {}
        for effect in effects:
            number = effect["sequence"]
            if number is None or effect.get("redriven"):
                continue
            place = (effect["producer"], effect["topic"], effect["key"])
            at = (*place, effect.get("generation", 1))
            before = last.get(at, 0)
            if number <= before:
                yield f"{group}: {_name(effect)} after number {before}"
            yield from _passed_over(facts, group, place, committed.get(place, {}), range(before + 1, number))
            last[at] = max(before, number)


def _arrived(facts: _Facts) -> Iterator[str]:
    """Plain sends with a key are numbered as they arrive: each has one number for all, none is passed over, and what was begun after another
    was acknowledged has the larger one."""
    for group, effects in facts.effects.items():
        for effect in effects:
            if effect["topic"] in facts.ordered_by_arrival and effect["sequence"] is None:
                yield f"{group}: {_name(effect)} has no number, in a topic in order of arrival"
    numbers = _numbers_of_sent(facts)
    places = defaultdict[Place, dict[int, str]](dict)
    for message, found in numbers.items():
        if len(found) > 1:
            yield f"{message} has the numbers {sorted(found)}"
        other = places[_sent_to(facts, message)].setdefault(min(found), message)
        if other != message:
            yield f"{message} and {other} have the number {min(found)}"
    for place, by_number in places.items():
        yield from _not_reached(facts, place, by_number)
        yield from _overtaken(facts, by_number)


def _numbers_of_sent(facts: _Facts) -> dict[str, set[int]]:
    numbers = defaultdict[str, set[int]](set)
    for effects in facts.effects.values():
        for effect in effects:
            if effect["message"] in facts.sent and effect["sequence"] is not None:
                numbers[effect["message"]].add(effect["sequence"])
    return numbers


def _sent_to(facts: _Facts, message: str) -> Place:
    event = facts.sent[message]
    return "", event["topic"], event["key"]


def _not_reached(facts: _Facts, place: Place, by_number: dict[int, str]) -> Iterator[str]:
    """Numbers that no group has are those of messages that are dead in each of them."""
    for group in facts.groups:
        done = {effect["message"] for effect in facts.effects[group]}
        dead = facts.dead[group] | facts.dead[None]
        if not done & set(by_number.values()):
            continue
        last = max(number for number, message in by_number.items() if message in done)
        missing = [number for number in range(1, last) if by_number.get(number) not in done | dead]
        ended = facts.told.get(by_number[last].rpartition("-")[0])
        unseen = [
            message for message in dead
            if message in facts.sent and _sent_to(facts, message) == place and message not in by_number.values()
            and (ended is None or facts.sent[message]["at"] <= ended)
        ]  # fmt: skip
        if len(missing) > len(unseen):
            yield f"{group}: {place[1]} {place[2]} numbers {missing} were passed over, {len(unseen)} of the dead letters have no known number"


def _overtaken(facts: _Facts, by_number: dict[int, str]) -> Iterator[str]:
    number_of = {message: number for number, message in by_number.items()}
    transactions = {message: message.rpartition("-")[0] for message in number_of}
    acked = sorted((facts.told[id], number_of[message], message) for message, id in transactions.items() if id in facts.told)
    most, at, by = 0, 0, ""
    for message in sorted(number_of, key=lambda message: facts.sent[message]["at"]):
        while at < len(acked) and acked[at][0] < facts.sent[message]["at"]:
            most, by = max((most, by), acked[at][1:])
            at += 1
        if number_of[message] < most:
            yield f"{message} has the number {number_of[message]}, and was begun after {by} was acknowledged, which has {most}"


def _passed_over(facts: _Facts, group: str, place: Place, committed: dict[int, str], numbers: Iterable[int]) -> Iterator[str]:
    for number in numbers:
        message = committed.get(number)
        if message is not None and message not in facts.dead[group] and message not in facts.dead[None]:
            yield f"{group}: {' '.join(place)} number {number} ({message}) was passed over and is no dead letter"


def _changed(facts: _Facts) -> Iterator[str]:
    for transaction, said in facts.said.items():
        if transaction in facts.forced:  # its fence may say the other; nobody else
            said = {state: who for state, who in said.items() if state == facts.forced[transaction] or state != facts.fenced.get(transaction)}
        if len(said) > 1:
            yield f"{transaction}: " + ", ".join(f"{state} ({who})" for state, who in said.items())


def _unlisted(facts: _Facts) -> Iterator[str]:
    """R4: a producer's word against a decision by hand is in the list of conflicts."""
    for event in facts.answered:
        transaction = event["transaction"]
        if event.get("code") == "decided_otherwise" and transaction in facts.forced and transaction not in facts.conflicts:
            yield f"{transaction} was forced to {facts.forced[transaction]}, {event['process']} said otherwise ({event['what']}), and no list has it"


def _answers(facts: _Facts) -> Iterator[str]:
    for event in facts.acknowledged:
        final = facts.final.get(event["transaction"])
        if final is None:
            yield f"{event['transaction']}: {event['what']} was acknowledged ({event['process']}), and the coordinator does not know it"
            continue
        said = SAID.get(event["what"], event["state"])
        if said in DECIDED and final != said:
            yield f"{event['transaction']}: {event['what']} was acknowledged as {said} ({event['process']}), and it is {final}"


def _wrong_body(facts: _Facts) -> Iterator[str]:
    first: dict[str, Event] = {}
    for group, effect in facts.got():
        true = facts.committed.get(effect["message"]) or facts.sent.get(effect["message"])
        true = true or first.setdefault(effect["message"], effect)  # a forced one, of which nothing stands at its producer
        if true["digest"] != effect["digest"]:
            yield f"{group}: {_name(effect)} has digest {effect['digest']}, committed was {true['digest']}"


def _wrong_labels(facts: _Facts) -> Iterator[str]:
    """The numbers by which effects are judged to be in order are those of the local commit, and so is whose they are."""
    for group, effect in facts.got():
        true = facts.committed.get(effect["message"])
        for label in LABELS if true is not None else ():
            if effect[label] != true[label]:  # type: ignore[index]
                yield f"{group}: {_name(effect)} came with {label} {effect[label]}, committed was {true[label]}"  # type: ignore[index]


def _name(event: Event) -> str:
    key = "" if event.get("key") is None else f" key {event['key']} number {event['sequence']}"
    return f"{event['message']} ({event.get('producer') or 'sent'} {event['topic']}{key})"
