"""The disk is full: the log cannot grow, the file cannot grow, neither can, or a small real disk has no byte left. Room comes back by itself."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.disk import facts, load, power, shim
from tests.disk.load import GROUP, PLAIN, Books, Worker
from tests.disk.processes import Running, Zygote, wait_for
from tests.disk.responder import Responder
from tests.disk.talk import Answer, Talk

MIB = 1024 * 1024
DISK_BYTES = 3 * MIB
DEADLINE_S = 20.0


@dataclass
class Desk:
    """A running coordinator, one who talks to it and keeps the books, and the switch that fills its disk."""

    one: Running
    worker: Worker
    switch: Path

    def full(self, file: str = "") -> None:
        """`file`: w the log alone, d the file alone, nothing: all of them."""
        self.switch.write_text(file)

    def room(self) -> None:
        self.switch.unlink(missing_ok=True)

    def submit(self) -> Answer:
        self.worker.submit(PLAIN)
        return self.worker.talk.answers[-1]

    def until_refused(self) -> Any:
        """Submit until one is refused, and give that refusal: a 507 that says so, and nothing else."""
        refused = wait_for(lambda: None if (answer := self.submit()).ok else answer, DEADLINE_S, lambda: "nothing was refused")
        assert (refused.status, refused.error) == (507, "storage_full"), refused
        assert refused.content_type == "application/problem+json"
        assert refused.retry_after == "10"
        return refused

    def fetch(self, count: int) -> list[str]:
        fetched = self.worker.ask("POST", f"/v1/groups/{GROUP}/fetch", {"max": count, "lease_s": 600, "member": "m"}, facts.of_deliveries)
        assert fetched.ok, fetched
        return [each["token"] for each in fetched.body["deliveries"]]

    def ack(self, token: str) -> Answer:
        """Asked again where there was no room: a refused ack is no fact any more once it is repeated."""
        self.worker.talk.answers.clear()
        self.worker.settle("ack", [token])
        answer = self.worker.talk.answers[-1]
        if not answer.ok:
            assert answer.status == 507, answer
            self.worker.books.told.pop()
        return answer

    def reads_are_answered(self) -> None:
        for path in (f"/v1/topics/{PLAIN}", "/v1/transactions?state=committed", f"/v1/groups/{GROUP}", "/v1/doctor", "/v1/info"):
            answer = self.worker.talk.ask("GET", path)
            assert answer.ok, (path, answer)
        assert all(item["ok"] for item in self.worker.talk.ask("GET", "/v1/doctor").body["items"])

    def end(self) -> Books:
        """Stop in good order; every answer of this life holds, and no log was flooded."""
        self.worker.talk.close()
        assert self.one.stop() == 0
        books = self.worker.books
        assert power.judge(self.one.store, [fact for _, told in books.told for fact in told], books.may_commit) == []
        assert not [answer for answer in books.refused if answer.status != 507], books.refused
        assert "Traceback" not in self.one.said()
        assert len(self.one.said().splitlines()) < 60, self.one.said()
        return books


@contextlib.contextmanager
def desk(zygote: Zygote, folder: Path, *args: str, wal_pages: int = 4_000, plant: str = "") -> Iterator[Desk]:
    """A coordinator that has taken some messages and handed out some of them."""
    responder, switch = Responder(), folder.parent / f"{folder.name}.full"
    env = shim.environment(folder / "store.db", full=switch)
    one = zygote.start(
        folder / "store.db", "--set", "check.first_delay_s=300", *args, env=env, log=folder.with_suffix(".log"), wal_pages=wal_pages, plant=plant
    )
    try:
        assert one.wait_up(), one.said()
        worker = Worker("w", Talk(one.port), random.Random(5), responder)
        worker.set_up()
        for _ in range(5):
            worker.submit(PLAIN)
        try:
            yield Desk(one, worker, switch)
        finally:
            worker.talk.close()
    finally:
        one.kill()
        responder.close()
        switch.unlink(missing_ok=True)
        folder.with_suffix(".log").unlink(missing_ok=True)


NO_MARGIN = ("--set", "storage.free_bytes_min=0")


def test_p9_full_by_its_log_it_refuses_and_what_is_stored_is_room(zygote: Zygote, folder: Path) -> None:
    """The WAL cannot grow: 507 and nothing stored; reads go on, and so do acks and decisions, since the log is begun anew in its own space.
    With room again all goes on in the same process, with nothing lost."""
    with desk(zygote, folder, *NO_MARGIN) as d:
        tokens = d.fetch(3)
        content, prepared, bodies = d.worker.prepare(PLAIN, commits=True)
        d.full("w")
        d.until_refused()
        d.reads_are_answered()
        for token in tokens:
            wait_for(lambda token=token: d.ack(token).ok, DEADLINE_S, lambda: "no ack went through")
        _commit(d, content, prepared, bodies)
        d.room()
        assert d.submit().ok
        d.end()


def _commit(d: Desk, content: dict[str, Any], prepared: Answer, bodies: tuple[bytes, ...]) -> None:
    body = {"producer": load.PRODUCER, "digest": prepared.body["digest"]}

    def once() -> bool:
        path = f"/v1/transactions/{content['id']}/commit"
        return d.worker.ask("POST", path, body, lambda view: facts.of_transaction(view, bodies)).ok

    wait_for(once, DEADLINE_S, lambda: "no commit went through")


@pytest.mark.parametrize("plant", ["", "checkpoints"])
def test_p9_full_by_a_checkpoint_it_goes_on_in_its_log(zygote: Zygote, folder: Path, plant: str) -> None:
    """The file cannot grow, so no checkpoint succeeds: nobody is refused while the WAL may grow, reads included; with room again the next
    checkpoint moves everything and the WAL begins anew."""
    with desk(zygote, folder, *NO_MARGIN, wal_pages=20, plant=plant) as d:
        tokens = d.fetch(3)
        d.full("d")
        wal = d.one.store.with_name(d.one.store.name + "-wal")
        d.worker.large = True
        while wal.stat().st_size < MIB:
            assert d.submit().ok
        assert all(d.ack(token).ok for token in tokens)
        d.reads_are_answered()
        d.room()
        assert d.submit().ok
        size = d.one.store.stat().st_size
        assert d.submit().ok and size > MIB / 2, "the checkpoint after the room did not move the log"
        d.end()


def test_p9_full_altogether_it_refuses_until_there_is_room(zygote: Zygote, folder: Path) -> None:
    """Neither can grow: whatever is answered holds, whatever is refused is 507 and not stored, reads go on; then all goes on."""
    with desk(zygote, folder, *NO_MARGIN, wal_pages=20) as d:
        tokens = d.fetch(5)
        d.full()
        d.until_refused()
        answers = [d.ack(token).ok for token in tokens[:2]] + [d.submit().ok for _ in range(20)]
        assert not all(answers)
        d.reads_are_answered()
        d.room()
        assert all(d.ack(token).ok for token in tokens[2:])
        assert d.submit().ok
        d.end()


# --- a real small disk -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 3 MiB. Skipped where this user may not mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root; the other tests here fill it by the shim")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)], check=False, capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no mount here: {mounted.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, leave: int) -> Path:
    """A file of somebody else's that takes all but `leave` bytes."""
    other = place / f"other-{uuid.uuid4().hex}"
    with other.open("wb", buffering=0) as out, contextlib.suppress(OSError):
        while (free := os.statvfs(place).f_bavail * os.statvfs(place).f_frsize) > leave:
            out.write(b"x" * min(free - leave, 64 * 1024))
    return other


def test_p9_real_full_disk_refuses_and_goes_on(zygote: Zygote, small_disk: Path) -> None:
    """Below `storage.free_bytes_min` only what is new is refused: acks and decisions use what is left. With no byte left refusals are 507;
    when the other program's file is gone all goes on in the same process; nothing is lost."""
    margin = MIB
    with desk(zygote, small_disk, "--set", f"storage.free_bytes_min={margin}", wal_pages=50) as d:
        tokens = d.fetch(4)
        content, prepared, bodies = d.worker.prepare(PLAIN, commits=True)
        some = fill(small_disk, margin // 2)
        assert "free_bytes_min" in d.until_refused().body["detail"]
        assert d.ack(tokens[0]).ok
        _commit(d, content, prepared, bodies)
        rest = fill(small_disk, 0)
        assert not d.submit().ok
        d.reads_are_answered()
        results = [d.ack(token).status for token in tokens[1:]]
        assert set(results) <= {200, 507}
        rest.unlink()
        some.unlink()
        wait_for(lambda: d.submit().ok, DEADLINE_S, lambda: "no submit after there was room")
        for token, status in zip(tokens[1:], results, strict=True):
            assert status == 200 or d.ack(token).ok
        d.end()


def test_full_disk_at_start_is_one_line(zygote: Zygote, small_disk: Path) -> None:
    """A new store, and one that is there: exit code 1 and one line that says so, or a start; with room it starts with all that it had."""
    with desk(zygote, small_disk, *NO_MARGIN) as d:
        d.worker.talk.close()
        assert d.one.stop() == 0
        books = d.worker.books
        other = fill(small_disk, 0)
        for name in ("new.db", "store.db"):
            log = small_disk.parent / f"{name}.log"
            one = zygote.start(small_disk / name, *NO_MARGIN, log=log)
            if one.wait_up():
                assert name == "store.db"
                assert one.stop() == 0
                continue
            assert one.wait_end() == 1
            assert len(one.said().strip().splitlines()) == 1, one.said()
            assert "full" in one.said()
        other.unlink()
        again = zygote.start(small_disk / "store.db", *NO_MARGIN, log=small_disk.parent / "again.log")
        assert again.wait_up(), again.said()
        assert again.stop() == 0
        assert power.judge(small_disk / "store.db", [fact for _, told in books.told for fact in told], books.may_commit) == []
