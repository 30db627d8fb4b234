"""Consumer groups: one place a lane for each of its topics."""

from __future__ import annotations

from msgspec import Struct, UnsetType
from msgspec.structs import replace

from ..errors import Problem
from ..messages import Group, Kind
from ..store.base import StoreTx
from . import hands, topics
from .naming import Removal
from .settling import groups_of


class Wanted(Struct, frozen=True):
    topic: str
    tag: str | None
    attributes: tuple[tuple[str, str], ...]


class GroupWanted(Struct, frozen=True):
    """A policy field that is not given (None; for `max_attempts`, where None is "for ever", UNSET) is the setting's, or stays as it stands."""

    name: str
    topics: tuple[Wanted, ...]
    start: str
    lease_ms: int | None
    max_attempts: int | UnsetType | None
    backoff_first_ms: int | None
    backoff_max_ms: int | None


def put(tx: StoreTx, now: int, wanted: GroupWanted) -> tuple[list[Group], bool]:
    """(its groups, one a topic; was it made now). Standing with other topics or filters is `state_changed`."""
    if len({w.topic for w in wanted.topics}) != len(wanted.topics):
        raise Problem("bad_request", "a group names each topic once; use a tag or attributes to choose within it")
    new = [_group(tx, wanted, each) for each in wanted.topics]
    known = tx.group(wanted.name)
    if not known:
        return [tx.add_group(group, at_end=wanted.start == "latest") for group in new], True
    if {_shape(g) for g in known} != {_shape(g) for g in new}:
        instead = f"take another name, or remove it first: halfmsg group rm {wanted.name} --reason WHY"
        raise Problem("state_changed", f"group {wanted.name} stands with other topics or filters; {instead}")
    for group in known:
        changed = _with_policy(group, wanted)
        if changed != group:
            tx.set_group(changed)
    return list(groups_of(tx, wanted.name).values()), False


def _with_policy(group: Group, wanted: GroupWanted) -> Group:
    """What was given takes effect; a Consumer that joins gives nothing, so it changes nothing."""
    given = {"lease_ms": wanted.lease_ms, "backoff_first_ms": wanted.backoff_first_ms, "backoff_max_ms": wanted.backoff_max_ms}
    fields: dict[str, int | None] = {name: value for name, value in given.items() if value is not None}
    if not isinstance(wanted.max_attempts, UnsetType):
        fields["max_attempts"] = wanted.max_attempts
    changed = replace(group, **fields)
    if not 0 < changed.backoff_first_ms <= changed.backoff_max_ms:
        first_s, max_s = changed.backoff_first_ms / 1000, changed.backoff_max_ms / 1000
        raise Problem("bad_request", f"a back-off that begins at {first_s:g} s cannot end at {max_s:g} s - at `$.backoff`")
    return changed


def _shape(group: Group) -> tuple[int, str | None, tuple[tuple[str, str], ...]]:
    return (group.topic, group.tag, group.attributes)


def _group(tx: StoreTx, wanted: GroupWanted, each: Wanted) -> Group:
    settings = tx.env.settings.group
    topic = topics.get(tx, each.topic)
    generation = max(1, tx.counter(_next_generation(wanted.name, topic.id)))
    default = Group(
        0, wanted.name, topic.id, generation, each.tag, tuple(sorted(each.attributes)),
        int(settings.lease_s * 1000), settings.max_attempts, int(settings.backoff_first_s * 1000), int(settings.backoff_max_s * 1000), False, None,
        wanted.start,
    )  # fmt: skip
    return _with_policy(default, wanted)


def _next_generation(name: str, topic: int) -> str:
    return f"generation {topic} {name}"


def _keep_generation(tx: StoreTx, group: Group) -> None:
    """For the next group of this name. An ordered inbox takes every number up to its last for a repeat, also those that a filter or a start
    behind them kept from this group; so the next one, which may be meant to have them, begins a new generation (P2).
    """
    had_all = group.tag is None and not group.attributes and group.start == "earliest"
    next_one = group.generation
    if not had_all and tx.topic_by_id(group.topic).kind is not Kind.UNORDERED:
        next_one = max(group.generation + 1, tx.restored().generation)
    if next_one > 1:
        tx.put_counter(_next_generation(group.name, group.topic), next_one)


def get(tx: StoreTx, now: int, name: str) -> list[Group]:
    return list(groups_of(tx, name).values())


class Pause(Struct, frozen=True):
    name: str
    paused: bool


def pause(tx: StoreTx, now: int, command: Pause) -> list[Group]:
    """Paused: nothing is handed out; what is in flight may be settled."""
    for group in groups_of(tx, command.name).values():
        tx.pause_group(group, command.paused)
        tx.emit(("wake", group.topic, now))
    return list(groups_of(tx, command.name).values())


def remove(tx: StoreTx, now: int, command: Removal) -> None:
    """Refused while members live, and while it has dead letters: nothing is dropped silently. Inboxes go on where a group of this name
    had everything; else the next one has a new generation, and runs what it is given."""
    name = command.name
    groups = groups_of(tx, name)
    for group in groups.values():
        if tx.has_flights(group.id) or tx.env.members.live(group.id, now):
            raise Problem("group_busy", f"group {name} has members at work; stop them first. How many: halfmsg group show {name}")
        if tx.count_dead(group.id, 1):
            raise Problem("group_busy", f"group {name} has dead letters; nothing is dropped silently: look at halfmsg dlq ls --group {name}")
    for group in groups.values():
        _keep_generation(tx, group)
        tx.remove_group(group)
    tx.audit(now, "operator", "group.rm", name, command.reason, None, None)


class Rejoin(Struct, frozen=True):
    """A member subscribes; `holding` are the tokens that it still has from before."""

    group: str
    member: str
    holding: frozenset[str]


def rejoin(tx: StoreTx, now: int, command: Rejoin) -> list[str]:
    """What this member has open and does not hold was lost with its connection: hand it out again at once, not after its lease.

    Gives the tokens that it holds and must not go on with. Raises group_not_found.
    """
    revoked: list[str] = []
    for group in groups_of(tx, command.group).values():
        revoked += _give_back(tx, now, group, command.member, command.holding)
        tx.emit(("wake", group.topic, now))
    return revoked


def _give_back(tx: StoreTx, now: int, group: Group, member: str, holding: frozenset[str]) -> list[str]:
    """What the member has open and does not hold. Gives the tokens that it holds and must not go on with."""
    revoked: list[str] = []
    topic = tx.topic_by_id(group.topic)
    for place in tx.places(group.id):
        runs = [run for run in tx.flights_of_lane(group.id, place.lane) if run.member == member]
        if runs and topic.kind is not Kind.UNORDERED:
            revoked += hands.give_back_unheld(tx, now, group, topic, place.lane, holding)
        for run in runs if topic.kind is Kind.UNORDERED else ():
            hands.give_back_unheld_run(tx, now, group, run, holding)
    return revoked


class Leave(Struct, frozen=True):
    """`holding`: the tokens that it has in hand and will still settle; None: it does not say."""

    group: str
    member: str
    holding: frozenset[str] | None = None


def leave(tx: StoreTx, now: int, command: Leave) -> None:
    """A member goes. What was on its way to it is handed out again at once, uncharged; lanes with nothing open are free, the others when their
    leases end.
    """
    for group in tx.group(command.group):
        tx.env.members.left(group.id, command.member)
        if command.holding is not None:  # frames come in order, so nothing that it holds is behind what was lost
            _give_back(tx, now, group, command.member, command.holding)
        for place in tx.places(group.id):
            if place.owner == command.member and not tx.flights_of_lane(group.id, place.lane):
                tx.own_place(group.id, place.lane, None, 0, 0)
        tx.emit(("wake", group.topic, now))
