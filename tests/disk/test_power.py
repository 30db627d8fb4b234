"""A thousand power cuts over recorded runs of a real coordinator; `make power-test` draws more. What it can find is shown too."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.disk import images, power
from tests.disk.processes import Zygote
from tests.disk.trace import Kind, Record

SEED = 20
IMAGES = {"mixed": 500, "large": 250, "often": 250}


@pytest.mark.slow
@pytest.mark.timeout(170)
@pytest.mark.parametrize("workload", IMAGES)
def test_p3_power_cut_loses_no_answer(zygote: Zygote, folder: Path, workload: str) -> None:
    """P1, P3: whatever a power cut leaves of unsynced writes, the store opens sound, with all that was acknowledged and nothing undecided visible."""
    seed = random.SystemRandom().randrange(1_000_000)
    recording = power.record(zygote, folder / "run", workload, seed)
    assert recording.resets > 3, "no WAL was begun anew: the load is too small to mean anything"
    assert recording.count(Kind.SYNC, "d") > 3, "no checkpoint fell into the run"
    assert len(recording.told) > 100
    result = power.examine(recording, folder, SEED, IMAGES[workload])
    assert (result.lost, result.corrupt, result.images) == (0, 0, IMAGES[workload]), "\n".join([f"load seed {seed}", *result.examples])
    assert set(result.ways) == set(images.WAYS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "least"),
    [({"synchronous": "NORMAL"}, (5, 0)), ({"synchronous": "OFF"}, (5, 1)), ({"plant": "answer_before_commit"}, (3, 0))],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else "",
)
def test_power_cuts_find_what_is_not_durable(zygote: Zygote, folder: Path, how: dict[str, str], least: tuple[int, int]) -> None:
    """The control: NORMAL loses answers, OFF damages the file as well, and an answer before its COMMIT is caught. Else the harness is blind."""
    recording = power.record(zygote, folder / "run", "mixed", SEED, **how)
    result = power.examine(recording, folder, SEED, 150)
    assert result.lost + result.corrupt >= least[0]
    assert result.corrupt >= least[1]
    if "OFF" not in how.values():
        assert result.corrupt == 0, result.examples


@pytest.mark.slow
def test_p3_power_cut_while_the_store_is_made_is_started_again(zygote: Zygote, folder: Path) -> None:
    """At each of its first calls, in many ways: the file that is left opens, also with the journal of its first page beside it."""
    recording, chance, store = power.record(zygote, folder / "run", "often", SEED), random.Random(SEED), folder / "image.db"
    first_sync_of_log = next(at for at, one in enumerate(recording.records) if one.kind is Kind.SYNC and one.file == "w")
    disk, with_journal = images.Disk(), 0
    for record in recording.records[: first_sync_of_log + 20]:
        disk.take(record)
        for way in images.WAYS:
            image = disk.image(way, chance)
            images.write(image, store)
            with_journal += bool(image.get("j")) and bool(image.get("d"))
            assert power.judge(store, [], recording.may_commit) == [], (record, way)
    assert with_journal > 10


def of(kind: Kind, file: str = "w", at: int = 0, data: bytes = b"") -> Record:
    return Record(kind, file, 0, len(data), at, data)


def every_image(*records: Record) -> set[tuple[tuple[str, bytes], ...]]:
    disk, chance = images.Disk(), random.Random(1)
    for record in records:
        disk.take(record)
    return {tuple(sorted(disk.image(way, chance).items())) for way in images.WAYS for _ in range(200)}


def test_synced_bytes_are_in_every_image() -> None:
    """And unsynced ones of 512-byte sectors in some, in any order."""
    a, b, c = b"a" * 512, b"b" * 512, b"c" * 512
    synced = [of(Kind.CREATE), of(Kind.WRITE, at=0, data=a), of(Kind.SYNC)]
    assert every_image(*synced) == {(("w", a),)}
    found = {dict(image)["w"] for image in every_image(*synced, of(Kind.WRITE, at=512, data=b + c), of(Kind.WRITE, at=512, data=c))}
    nothing = bytes(512)
    assert found == {a, a + b + c, a + c + c, a + c, a + b, a + nothing + c}


def test_removed_name_does_not_come_back_after_any_sync() -> None:
    """Names are journalled metadata: until a sync both states may be found, after it one."""
    made = [of(Kind.CREATE, "d"), of(Kind.CREATE, "j"), of(Kind.SYNC, "j"), of(Kind.UNLINK, "j")]
    assert {tuple(name for name, _ in image) for image in every_image(*made)} == {("d",), ("d", "j")}
    assert {tuple(name for name, _ in image) for image in every_image(*made, of(Kind.SYNC, "d"))} == {("d",)}
