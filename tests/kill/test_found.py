"""What the kill test has found in the library, each as small as it could be made, so that it is found at once if it comes back."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from halfmsg import Client, Delivery
from halfmsg.coordinator.app import Coordinator
from halfmsg.coordinator.settings import Settings
from halfmsg.txclient._hand import End, Hand, Settle, Start


def delivery(offset: int, source: str, number: int) -> Delivery:
    return Delivery(
        id=f"{offset}-0", transaction_id=str(offset), topic="orders", lane=0, offset=offset, time=datetime(2026, 1, 1, tzinfo=UTC),
        token=str(offset), key="k", sequence=number, source=source,
    )  # fmt: skip


def test_p2_a_failed_delivery_takes_back_only_its_own_producers_of_that_key() -> None:
    """Two producers write one key: two orders. One's dead letter must not drop from the hand what the coordinator left there of the other,
    else a later one of the other runs first, and the inbox takes the dropped ones for duplicates.
    """
    hand = Hand(places=4, lease_s=30)
    hand.receive([delivery(1, "a", 5), delivery(2, "b", 3), delivery(3, "b", 4)], 0.0)
    started = [action.delivery.offset for action in hand.next(0.0) if isinstance(action, Start)]
    assert started == [1, 2]
    assert [type(action) for action in hand.finish("1", End.REJECT, reason="never")] == [Settle]
    hand.answered("1", True, [])
    hand.finish("2", End.ACK)
    assert [action.delivery.offset for action in hand.next(0.0) if isinstance(action, Start)] == [3]


async def test_a_lane_is_free_after_the_lease_when_its_owner_acks_over_a_restart(tmp_path: Path) -> None:
    """A consumer has a new name on each connection; an ack of before a restart must not give the old name the lane for half a minute."""
    first = Coordinator(Settings(listen="127.0.0.1:0", store=str(tmp_path / "hm.db")))
    await first.start()
    async with Client(f"http://{first.address}") as before, Client(f"http://{first.address}") as after:
        await before.put_topic("arrivals", kind="arrival", lanes=1)
        await before.put_group("g", topics=[{"topic": "arrivals"}], lease_s=2)
        for number in (1, 2):
            await before.send("arrivals", number, key="k")
        given = await before.fetch("g", max=1, wait=0, lease=2)
        await first.stop()
        second = Coordinator(Settings(listen=first.address, store=str(tmp_path / "hm.db")))
        await second.start()
        try:
            await before.ack(given)
            assert [one.json() for one in await after.fetch("g", wait=8, lease=2)] == [2]
        finally:
            await second.stop()
