"""Topics, producers and groups on SQLite: few rows, kept in memory by the writer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ...messages import Group, Kind, Source, Topic
from .base import Connected, Q


def topic_of(row: tuple[Any, ...]) -> Topic:
    id, name, kind, lanes, policy = row
    return Topic(id=id, name=name, kind=Kind(kind), lanes=lanes, **msgspec.json.decode(policy))


def topic_policy(topic: Topic) -> str:
    fields = ("retention_s", "max_message_bytes", "max_backlog", "allow_no_group")
    return msgspec.json.encode({name: getattr(topic, name) for name in fields}).decode()


def source_of(row: tuple[Any, ...]) -> Source:
    id, name, db_id, incarnation, frozen, told, forgotten, url, dialect, secret, hello = row
    return Source(id, name, db_id, incarnation, bool(frozen), told, forgotten, url, dialect, secret, bool(hello))


def group_of(row: tuple[Any, ...]) -> Group:
    id, name, topic, generation, policy, paused, inbox = row
    fields = msgspec.json.decode(policy)
    fields["attributes"] = tuple((k, v) for k, v in fields["attributes"])
    return Group(id=id, name=name, topic=topic, generation=generation, paused=bool(paused), inbox=inbox, **fields)


def group_policy(group: Group) -> str:
    fields = ("tag", "attributes", "lease_ms", "max_attempts", "backoff_first_ms", "backoff_max_ms", "start")
    return msgspec.json.encode({name: getattr(group, name) for name in fields}).decode()


class Names(Connected):
    def topic(self, name: str) -> Topic | None:
        found = self.memory.topics.get(name)
        if found is None and (row := self.one(Q.topic_by_name, name)) is not None:
            found = self._keep_topic(topic_of(row))
        return found

    def topic_by_id(self, id: int) -> Topic:
        found = self.memory.topics_by_id.get(id)
        return found if found is not None else self._keep_topic(topic_of(self.one(Q.topic_by_id, id)))

    def _keep_topic(self, topic: Topic) -> Topic:
        self.memory.topics[topic.name] = self.memory.topics_by_id[topic.id] = topic
        return topic

    def add_topic(self, topic: Topic) -> Topic:
        id = self.one(Q.topic_insert, topic.name, int(topic.kind), topic.lanes, topic_policy(topic))[0]
        for lane in range(topic.lanes):
            self.run(Q.lane_insert, id, lane)
        return self._keep_topic(msgspec.structs.replace(topic, id=id))

    def set_topic(self, topic: Topic) -> None:
        self.run(Q.topic_update, topic_policy(topic), topic.id)
        self._keep_topic(topic)

    def remove_topic(self, topic: Topic) -> None:
        self.run(Q.topic_delete, topic.id)
        self.run(Q.lane_delete, topic.id)
        self.memory.topics.pop(topic.name, None)
        self.memory.topics_by_id.pop(topic.id, None)
        self.memory.lane_ends = {k: v for k, v in self.memory.lane_ends.items() if k[0] != topic.id}

    def topic_has_keys(self, topic: int) -> bool:
        return self.one(Q.okey_any_of_topic, topic) is not None

    def topic_has_undecided(self, topic: int) -> bool:
        return any(self.one(sql, topic) is not None for sql in (Q.topic_any_prepared, Q.topic_any_parked))

    def topics_after(self, name: str, limit: int) -> list[Topic]:
        return [topic_of(row) for row in self.all(Q.topic_page, name, limit)]

    def source(self, name: str) -> Source | None:
        found = self.memory.sources.get(name)
        if found is None and (row := self.one(Q.source_by_name, name)) is not None:
            found = self._keep_source(source_of(row))
        return found

    def source_by_id(self, id: int) -> Source:
        found = self.memory.sources_by_id.get(id)
        return found if found is not None else self._keep_source(source_of(self.one(Q.source_by_id, id)))

    def source_by_db(self, db_id: bytes) -> Source | None:
        row = self.one(Q.source_by_db, db_id)
        return None if row is None else source_of(row)

    def _keep_source(self, source: Source) -> Source:
        self.memory.sources[source.name] = self.memory.sources_by_id[source.id] = source
        return source

    def _reread_source(self, id: int) -> Source:
        return self._keep_source(source_of(self.one(Q.source_by_id, id)))

    def add_source(self, name: str) -> Source:
        return self._reread_source(self.one(Q.source_insert, name)[0])

    def bind_source(self, source: Source, db_id: bytes) -> Source:
        self.run(Q.source_bind, db_id, source.id)
        return self._reread_source(source.id)

    def note_hello(self, source: Source) -> Source:
        self.run(Q.source_hello, source.id)
        return self._reread_source(source.id)

    def store_beats(self, source: Source, beats: Sequence[str]) -> None:
        self.run(Q.source_beats, msgspec.json.encode(list(beats)).decode(), source.id)

    def set_source(self, source: Source, *, check_url: str | None, dialect: str, secret: str | None) -> Source:
        self.run(Q.source_set, check_url, dialect, secret, source.id)
        return self._reread_source(source.id)

    def remove_source(self, source: Source) -> None:
        self.run(Q.source_delete, source.id)
        self.memory.sources.pop(source.name, None)
        self.memory.sources_by_id.pop(source.id, None)

    def source_has_undecided(self, source: int) -> bool:
        return self.one(Q.source_any_tx, source, source) is not None

    def source_has_transactions(self, source: int) -> bool:
        return self.one(Q.source_any_tx_ever, source) is not None

    def open_count(self, source: int) -> int:
        count = self.memory.open_counts.get(source)
        if count is None:
            count = self.memory.open_counts[source] = int(self.one(Q.source_open_count, source)[0])
        return count

    def count_open(self, source: int, by: int) -> None:
        if source in self.memory.open_counts:  # else the first look counts, with this row in it
            self.memory.open_counts[source] += by

    def sources_with_undecided(self) -> list[int]:
        found: list[int] = []
        name = ""
        while rows := self.all(Q.source_page, name, 1_000):
            found += [row[0] for row in rows if self.source_has_undecided(row[0])]
            name = rows[-1][1]
        return found

    def group(self, name: str) -> list[Group]:
        found = self.memory.groups.get(name)
        if found is None:
            found = [group_of(row) for row in self.all(Q.grp_by_name, name)]
            if found:
                self.memory.groups[name] = found
        return found

    def group_by_id(self, id: int) -> Group | None:
        found = self.memory.groups_by_id.get(id)
        if found is None and (row := self.one(Q.grp_by_id, id)) is not None:
            found = self.memory.groups_by_id[id] = group_of(row)
        return found

    def groups_of_topic(self, topic: int) -> list[Group]:
        found = self.memory.groups_of_topic.get(topic)
        if found is None:
            found = [group_of(row) for row in self.all(Q.grp_of_topic, topic)]
            self.memory.groups_of_topic[topic] = found
        return found

    def _forget_groups(self) -> None:
        self.memory.groups.clear()
        self.memory.groups_by_id.clear()
        self.memory.groups_of_topic.clear()

    def add_group(self, group: Group, *, at_end: bool) -> Group:
        id = self.one(Q.grp_insert, group.name, group.topic, group.generation, group_policy(group))[0]
        for lane, next_off in self.all(Q.lanes_of, group.topic):
            end = self.memory.lane_ends.get((group.topic, lane), next_off)
            self.run(Q.place_insert, id, lane, end if at_end else 0)
        self._forget_groups()
        return msgspec.structs.replace(group, id=id)

    def set_group(self, group: Group) -> None:
        self.run(Q.grp_update, group_policy(group), group.id)
        self._forget_groups()

    def pause_group(self, group: Group, paused: bool) -> None:
        self.run(Q.grp_pause, int(paused), group.id)
        self._forget_groups()

    def bind_inbox(self, group: Group, inbox: bytes) -> None:
        self.run(Q.grp_inbox, inbox, group.id)
        self._forget_groups()

    def remove_group(self, group: Group) -> None:
        for sql in (Q.grp_delete, Q.place_delete, Q.flight_delete_grp, Q.retry_delete_grp, Q.dead_delete_grp):
            self.run(sql, group.id)
        self._forget_groups()

    def groups_after(self, name: str, limit: int) -> list[Group]:
        return [group_of(row) for row in self.all(Q.grp_page, name, limit)]
