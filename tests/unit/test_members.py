"""Who is alive in a group is asked by the reader's thread while the writer's notes signs of life."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from halfmsg.coordinator.env import Members

ROUNDS = 300


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads change as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_looking_on_from_another_thread_breaks_no_fetch(hasty: None) -> None:
    """Members come and end all the time; neither the one who looks nor the one who notes meets an error."""
    members = Members()
    end = threading.Event()
    failed: list[BaseException] = []

    def look() -> None:
        now = 0
        try:
            while not end.is_set():
                now += 1
                members.live(1, now % ROUNDS)
                members.count((1,), now % ROUNDS)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for now in range(ROUNDS):
            for name in range(50):
                members.seen(1, f"m{name}-{now}", now, 1)
            members.live(1, now)
    finally:
        end.set()
        thread.join()
    assert failed == []
