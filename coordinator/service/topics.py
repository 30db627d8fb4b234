"""Topics: made on purpose, of one kind for life (R10). With `--dev` a first message makes its topic."""

from __future__ import annotations

from msgspec import Struct

from ..errors import Problem
from ..messages import Kind, NewMessage, Topic
from ..store.base import StoreTx
from .naming import Removal

OURS = "halfmsg."


class TopicWanted(Struct, frozen=True):
    name: str
    kind: Kind
    lanes: int | None = None
    retention_s: float | None = None
    max_message_bytes: int | None = None
    max_backlog: int | None = None
    allow_no_group: bool = False


def put(tx: StoreTx, now: int, wanted: TopicWanted) -> tuple[Topic, bool]:
    """(topic, was it made now). Another kind or other lanes than it stands with is `state_changed`."""
    if wanted.name.startswith(OURS):
        raise Problem("bad_name", f"topics {OURS}* are the coordinator's own")
    settings = tx.env.settings
    known = tx.topic(wanted.name)
    lanes = wanted.lanes or (
        known.lanes if known else settings.topic.lanes_unordered if wanted.kind is Kind.UNORDERED else settings.topic.lanes_ordered
    )
    topic = Topic(
        known.id if known else 0, wanted.name, wanted.kind, lanes, wanted.retention_s or settings.topic.retention_s,
        wanted.max_message_bytes or settings.message.max_bytes, wanted.max_backlog or settings.topic.max_backlog, wanted.allow_no_group,
    )  # fmt: skip
    if known is None:
        return tx.add_topic(topic), True
    if (known.kind, known.lanes) != (topic.kind, topic.lanes):
        stands = f"topic {topic.name} stands as {known.kind.word} with {known.lanes} lanes"
        raise Problem("state_changed", f"{stands}; kind and lanes are for life: take another name")
    if known != topic:
        tx.set_topic(topic)
    return topic, False


def kept(topic: int) -> str:
    """The counter of a topic that a forcibly rolled back transaction names: its messages stay, so that the operator's act can be looked at."""
    return f"kept {topic}"


def remove(tx: StoreTx, now: int, command: Removal) -> None:
    """Refused while anybody has a place in it or its numbers go on elsewhere (API §9.10)."""
    name = command.name
    topic = get(tx, name)
    if groups := tx.groups_of_topic(topic.id):
        raise Problem("group_busy", f"topic {name} has consumer groups; remove them first: halfmsg group rm {groups[0].name} --reason WHY")
    if tx.topic_has_keys(topic.id) and topic.kind is Kind.SEQUENCE:
        raise Problem("state_changed", f"topic {name} has ordering keys whose producers go on counting; it cannot be removed")
    if tx.topic_has_undecided(topic.id):
        undecided = f"topic {name} has half messages whose transactions are undecided; nobody could release them"
        raise Problem("state_changed", f"{undecided}. See: halfmsg tx ls --topic {name}")
    if any(tx.lane_end(topic.id, lane) for lane in range(topic.lanes)) or tx.topic_has_keys(topic.id):
        raise Problem("state_changed", f"topic {name} still keeps messages; removing them is not built yet")
    if tx.counter(kept(topic.id)):
        raise Problem("state_changed", f"topic {name} is named by messages of a transaction that an operator rolled back; their bodies are kept")
    tx.remove_topic(topic)
    tx.audit(now, "operator", "topic.rm", name, command.reason, topic.kind.word, None)


def get(tx: StoreTx, name: str, kind: Kind | None = None) -> Topic:
    """`kind`: of the topic that would fit. Raises topic_not_found."""
    topic = tx.topic(name)
    if topic is not None:
        return topic
    if name.startswith(OURS):
        raise Problem("topic_not_found", f"no topic {name} here, and {OURS}* are the coordinator's own: take another name")
    which = f"{kind.word}" if kind is not None else f"{Kind.UNORDERED.word} (or {Kind.SEQUENCE.word}, {Kind.ARRIVAL.word})"
    raise Problem("topic_not_found", f"no topic {name} here; make it with: halfmsg topic create {name} --kind {which}")


def for_message(tx: StoreTx, message: NewMessage, *, plain: bool) -> Topic:
    kind = Kind.UNORDERED if message.key is None else Kind.ARRIVAL if plain else Kind.SEQUENCE
    if tx.env.settings.dev and not message.topic.startswith(OURS) and tx.topic(message.topic) is None:
        return put(tx, 0, TopicWanted(message.topic, kind, allow_no_group=True))[0]
    return get(tx, message.topic, kind)
