"""What has reached its limit (P9, R20): topics whose door is shut, groups that are handed nothing new. Looked at once a second, on the reader."""

from __future__ import annotations

from ..messages import Full, Kind, Topic
from ..store.sqlite.base import Q
from ..store.sqlite.deliveries import Deliveries

FAILING_MAX = 100_000
"""Messages of one group on an unordered topic that may wait for another attempt. (A lane of an ordered one has a limit of its own.)"""
TOPICS_MAX = 10_000
HYSTERESIS = 0.9
"""What was full is open again below this part of its limit."""


def look(tx: Deliveries, before: Full) -> Full:
    """What is full now, given what was so at the last look."""
    topics, groups = set(), set()
    for row in tx.all(Q.topic_page, "", TOPICS_MAX):
        topic = tx.topic(row[1])
        if topic is None:
            continue
        unsettled = _unsettled(tx, topic)
        if max((waiting + failing for waiting, failing in unsettled.values()), default=0) >= _limit(topic.max_backlog, topic.id in before.topics):
            topics.add(topic.id)
        if topic.kind is Kind.UNORDERED:
            groups |= {id for id, (_, failing) in unsettled.items() if failing >= _limit(FAILING_MAX, id in before.groups)}
    return Full(frozenset(topics), frozenset(groups))


def _limit(limit: int, was_full: bool) -> float:
    return limit * HYSTERESIS if was_full else limit


def _unsettled(tx: Deliveries, topic: Topic) -> dict[int, tuple[int, int]]:
    """group: (how many it has not been handed yet, how many it waits to be handed again, counted up to `FAILING_MAX`)."""
    ends = dict(tx.all(Q.lanes_of, topic.id))
    return {
        group.id: (sum(ends[place.lane] - place.next_off for place in tx.places(group.id)), tx.count_failing(group.id, FAILING_MAX))
        for group in tx.groups_of_topic(topic.id)
    }
