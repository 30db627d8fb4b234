"""A few kills at random moments of start, checkpoint and stop; more with `make kill-moments TIMES=100`."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.kill.moments import Load, Moments
from tests.kill.scene import Answers, Scene
from tests.kill.zygote import Zygote

SEED = 5
TIMES = {"first start": 15, "start": 6, "checkpoint": 6, "checkpoint under load": 5, "stop": 8}


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moments]:
    folder = tmp_path_factory.mktemp("moments")
    with Zygote(folder) as zygote, Answers() as answers:
        made = Moments(folder, zygote, answers, SEED)
        made.prepare()
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("what", TIMES)
def test_p3_killed_at_random_moments_of(moments: Moments, what: str) -> None:
    """P3, P9: what was acknowledged stands after the next start, what was refused does not, and doctor finds nothing."""
    problems = moments.run(what, TIMES[what])
    assert not problems, "\n".join(problems)


def test_every_kind_of_moment_has_its_test(moments: Moments) -> None:
    """A new kind without a number of times would not be run."""
    assert set(TIMES) == set(moments.all())


class Late(Moments):
    """All its kills come after the start that they are about."""

    def start(self) -> Iterator[str]:
        scene = self._scene(self.full)
        scene.start()
        scene.kill()
        self.note("start", "killed after it", inside=False)
        yield from ()


def test_kills_that_all_come_beside_their_moment_are_no_proof(moments: Moments) -> None:
    """The harness itself: it goes on for a while, and then says that it has tried nothing."""
    folder = moments.folder / "late"
    folder.mkdir()
    late = Late(folder, moments.zygote, moments.answers, SEED)
    late.full = moments.full
    assert late.run("start", 2, more=3) == ["start: none of 5 kills came inside it, so it was not tried"]


def test_a_loss_and_a_ghost_are_seen(moments: Moments) -> None:
    """The check itself: a row that goes after its answer, and one that is there although it was refused."""
    scene: Scene = moments.full.copy(moments.folder / "planted")
    load = Load(scene, random.Random(SEED), told={f"{2:032x}": 201, f"{7:032x}": 503, f"{6:032x}": 201})
    with closing(sqlite3.connect(scene.store)) as conn, conn:
        conn.execute("DELETE FROM tx WHERE id = ?", (bytes.fromhex(f"{2:032x}"),))
    found = list(load.wrong(scene))
    assert len(found) == 2
    assert "was acknowledged with 201 and is not there" in found[0] and "was refused with 503 and is there" in found[1]
