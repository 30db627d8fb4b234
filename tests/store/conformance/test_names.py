"""Topics, producers and groups, over every backend."""

from __future__ import annotations

import msgspec
import pytest

from halfmsg.coordinator.messages import Group, Kind, Topic
from tests.store.conformance.conftest import OpenStore
from tests.support.stores import Store

TOPIC = Topic(0, "orders", Kind.SEQUENCE, 3, 60.5, 1_000, 2_000, True)
GROUP = Group(0, "billing", 0, 1, "eu", (("a", "1"), ("b", "2")), 30_000, None, 1_000, 600_000, False, None, "earliest")


def _group(store: Store, topic: Topic, name: str = "billing", *, at_end: bool = False) -> Group:
    return store.do(lambda tx: tx.add_group(msgspec.structs.replace(GROUP, name=name, topic=topic.id), at_end=at_end))  # type: ignore[no-any-return]


def test_topic_is_found_again_with_all_its_fields(open_store: OpenStore) -> None:
    """By name and by id, now and after a restart; one lane row a lane, each at 0."""
    made = open_store().do(lambda tx: tx.add_topic(TOPIC))
    assert msgspec.structs.replace(made, id=0) == TOPIC
    tx = open_store().tx
    assert tx.topic("orders") == tx.topic_by_id(made.id) == made
    assert [tx.lane_end(made.id, lane) for lane in range(3)] == [0, 0, 0]
    assert tx.topic("other") is None


def test_topic_policy_changes_and_stays_changed(open_store: OpenStore) -> None:
    """`set_topic` is seen at once and after a restart."""
    store = open_store()
    made = store.do(lambda tx: tx.add_topic(TOPIC))
    other = msgspec.structs.replace(made, max_backlog=7, retention_s=None, allow_no_group=False)
    store.do(lambda tx: tx.set_topic(other))
    assert store.tx.topic("orders") == other == open_store().tx.topic("orders")


def test_removed_topic_is_gone_and_its_name_free(open_store: OpenStore) -> None:
    """A topic made anew under the old name begins at offset 0."""
    store = open_store()
    made = store.do(lambda tx: tx.add_topic(TOPIC))
    store.do(lambda tx: tx.remove_topic(made))
    assert store.tx.topic("orders") is None
    again = store.do(lambda tx: tx.add_topic(msgspec.structs.replace(TOPIC, lanes=1)))
    assert store.tx.lane_end(again.id, 0) == 0
    assert open_store().tx.topic("orders") == again


def test_same_name_twice_is_an_error_that_stores_nothing(store: Store) -> None:
    """Topics, producers and groups have one row a name."""
    topic = store.do(lambda tx: tx.add_topic(TOPIC))
    store.do(lambda tx: tx.add_source("orders"))
    _group(store, topic)
    for act in (lambda tx: tx.add_topic(TOPIC), lambda tx: tx.add_source("orders")):
        with pytest.raises(Exception, match=r"UNIQUE|unique|duplicate"):
            store.do(act)
    with pytest.raises(Exception, match=r"UNIQUE|unique|duplicate"):
        _group(store, topic)
    assert len(store.tx.group("billing")) == 1


def test_topic_has_keys_after_its_first_key(store: Store) -> None:
    """And not because another topic has one."""
    first, second = (store.do(lambda tx, n=name: tx.add_topic(msgspec.structs.replace(TOPIC, name=n))) for name in ("a", "b"))
    store.do(lambda tx: tx.key_id(first.id, 1, 1, b"k"))
    assert (store.tx.topic_has_keys(first.id), store.tx.topic_has_keys(second.id)) == (True, False)


def test_source_is_bound_once_and_for_ever(open_store: OpenStore) -> None:
    """Name <-> database id: a second bind changes nothing (R7)."""
    store = open_store()
    made = store.do(lambda tx: tx.add_source("orders"))
    assert (made.db_id, made.incarnation, made.said_hello, made.frozen, made.can_be_asked) == (None, 1, False, False, False)
    bound = store.do(lambda tx: tx.bind_source(made, b"A" * 16))
    assert store.do(lambda tx: tx.bind_source(made, b"B" * 16)).db_id == b"A" * 16
    tx = open_store().tx
    assert tx.source("orders") == tx.source_by_id(made.id) == tx.source_by_db(b"A" * 16) == bound
    assert tx.source_by_db(b"B" * 16) is None


def test_source_keeps_hello_url_secret_and_beats(open_store: OpenStore) -> None:
    """Each is stored, and each makes a way to ask."""
    store = open_store()
    hello = store.do(lambda tx: tx.note_hello(tx.add_source("a")))
    url = store.do(lambda tx: tx.set_source(tx.add_source("b"), check_url="http://x/", dialect="dtm", secret="whsec_x"))
    store.do(lambda tx: tx.store_beats(url, ["1", "2"]))
    tx = open_store().tx
    assert (tx.source("a"), tx.source("b")) == (hello, url)
    assert (hello.can_be_asked, url.can_be_asked, url.dialect, url.secret) == (True, True, "dtm", "whsec_x")


def test_removed_source_is_gone(open_store: OpenStore) -> None:
    """From memory too."""
    store = open_store()
    made = store.do(lambda tx: tx.add_source("orders"))
    store.do(lambda tx: tx.remove_source(made))
    assert store.tx.source("orders") is None is open_store().tx.source("orders")


def test_group_is_found_by_name_id_and_topic(open_store: OpenStore) -> None:
    """One row a topic of the group, with all its fields; nobody else's."""
    store = open_store()
    a, b = (store.do(lambda tx, n=name: tx.add_topic(msgspec.structs.replace(TOPIC, name=n))) for name in ("a", "b"))
    first, second, other = _group(store, a), _group(store, b), _group(store, b, "other")
    tx = open_store().tx
    assert tx.group("billing") == [first, second]
    assert tx.group_by_id(first.id) == first
    assert {each.name for each in tx.groups_of_topic(b.id)} == {"billing", "other"}
    assert (tx.group("nobody"), tx.group_by_id(999)) == ([], None)
    assert msgspec.structs.replace(first, id=0, topic=0) == GROUP and other.topic == b.id


def test_group_pause_and_inbox_are_stored(open_store: OpenStore) -> None:
    """Seen at once by every way to find the group, and after a restart."""
    store = open_store()
    topic = store.do(lambda tx: tx.add_topic(TOPIC))
    group = _group(store, topic)
    store.tx.groups_of_topic(topic.id)
    store.do(lambda tx: tx.pause_group(group, True))
    store.do(lambda tx: tx.bind_inbox(group, b"I" * 16))
    for which in (lambda: store, open_store):
        tx = which().tx
        for found in (tx.group("billing")[0], tx.group_by_id(group.id), tx.groups_of_topic(topic.id)[0]):
            assert (found.paused, found.inbox) == (True, b"I" * 16)


def test_group_has_a_place_in_each_lane_at_start_or_end(store: Store) -> None:
    """At the start: 0; at the end: behind what the same transaction has just released."""
    topic = store.do(lambda tx: tx.add_topic(TOPIC))
    store.do(lambda tx: tx.release(topic, 1, 1_024, 1, 1, 0))
    both = store.do(lambda tx: (tx.release(topic, 1, 2_048, 2, 1, 0), [
        tx.add_group(msgspec.structs.replace(GROUP, name=name, topic=topic.id), at_end=name == "end") for name in ("start", "end")])[1])  # fmt: skip
    assert [[place.next_off for place in store.tx.places(group.id)] for group in both] == [[0, 0, 0], [0, 2, 0]]


def test_removed_group_leaves_nothing(store: Store) -> None:
    """Its places, runs, retries and dead letters go with it, and no other group's."""
    from tests.store.conformance.test_deliveries import a_flight, a_retry, add_dead

    topic = store.do(lambda tx: tx.add_topic(TOPIC))
    gone, kept = _group(store, topic), _group(store, topic, "kept")
    for group in (gone, kept):
        store.do(lambda tx, g=group.id: (tx.fly(a_flight(g)), tx.put_retry(g, a_retry()), add_dead(tx, g)))
    store.do(lambda tx: tx.remove_group(gone))
    tx = store.tx
    assert (tx.group("billing"), tx.places(gone.id), tx.has_flights(gone.id), tx.has_retries(gone.id), tx.count_dead(gone.id, 9)) == (
        [], [], False, False, 0)  # fmt: skip
    assert (len(tx.places(kept.id)), tx.has_flights(kept.id), tx.has_retries(kept.id), tx.count_dead(kept.id, 9)) == (3, True, True, 1)
