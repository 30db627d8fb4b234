"""What must never change while a store lives."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from halfmsg.coordinator import ops, wire
from halfmsg.coordinator.digests import lane_of
from halfmsg.txclient._digest import message_digest, transaction_digest


@pytest.mark.parametrize(("key", "lanes", "lane"), [(b"k", 64, 35), (b"order-1", 64, 61), ("ä".encode(), 7, 0), (b"", 64, 52), (b"k", 1, 0)])
def test_p7_lane_of_a_key_is_the_same_for_ever(key: bytes, lanes: int, lane: int) -> None:
    """In every process and every version: a key that changed its lane would be two orders."""
    assert lane_of(key, lanes) == lane


def test_p8_digest_of_a_transaction_is_in_order_of_index() -> None:
    """In whatever order the messages are listed: another digest would be another content, and its commit would be refused (R9)."""
    bodies = {0: "first", 1: "second", 2: "third"}
    content = {"topic": "t", "key": None, "tag": None, "content_type": "application/json"}
    digests = [message_digest(**content, body=b'"%s"' % each.encode()) for each in bodies.values()]  # type: ignore[arg-type]
    for order in itertools.permutations(bodies):
        listed = [{"topic": "t", "index": index, "data": bodies[index]} for index in order]
        op = wire.decode_json(msgspec.json.encode({"op": "submit", "messages": listed}), wire.Op)
        _, command = ops.call_of(op, packed=False, now_ms=0)
        assert command.digest == transaction_digest(digests)
