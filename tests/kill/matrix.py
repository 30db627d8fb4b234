"""`make kill-matrix ROUNDS=20`: each fail point in each operation that passes it; a coordinator is killed there, and what it left is judged.

A cell: the operation's store is copied, a coordinator starts on it with one fail point armed, the operation is done, the process kills itself.
Then (1) the point has fired, once, during that operation, and nobody was told a success; (2) the file holds nothing of the operation, or
from `committed` on all of it, row by row as a run without a kill leaves it; (3) a second start changes nothing of that by itself; (4) said
again, the operation ends in the state of the run without a kill; (5) doctor and SQLite find nothing.

The run without a kill is made with all other fail points armed for that operation, so each cell that is left out is shown to be impossible.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, LiteralString

from halfmsg.coordinator.store import failpoints
from tests.kill.operations import GROUP_POINTS, OPERATIONS, WHY_NOT, Operation, base
from tests.kill.processes import Stuck
from tests.kill.scene import STORE, Answers, Rows, Scene, difference
from tests.kill.zygote import Zygote

FIRE_S: Final = 15.0
REST_S: Final = 15.0


@dataclass(slots=True)
class Cell:
    operation: Operation
    point: str
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.operation.name} × {self.point}"

    @property
    def spec(self) -> str:
        name, _, count = self.point.partition("@")
        return f"{_armed(name, self.operation)}@{count or 1}"


def _armed(name: str, operation: Operation) -> str:
    return f"{name}:{operation.function}" if operation.in_groups else name


def cells(operations: Sequence[Operation] = OPERATIONS) -> list[Cell]:
    return [Cell(operation, point) for operation in operations for point in operation.all_points]


def impossible(operation: Operation) -> list[str]:
    """The fail points that it does not pass; WHY_NOT says why."""
    passed = {point.partition("@")[0] for point in operation.all_points}
    return [name for name in failpoints.NAMES if name not in passed]


@dataclass(slots=True)
class Control:
    """How an operation's store stands before, when it is done, and when all that follows of itself is done as well."""

    template: Scene
    before: Rows
    whole: Rows
    rest: Rows


class Matrix:
    def __init__(self, folder: Path, zygote: Zygote, answers: Answers) -> None:
        self.folder, self.zygote, self.answers = folder, zygote, answers
        self._base = Scene(zygote, folder / "base")
        self._base.folder.mkdir()
        self._controls: dict[str, Control] = {}
        self._count = 0

    def make_base(self) -> None:
        self._base.start()
        base(self._base, self.answers)
        self._base.stop()

    def run(self, cell: Cell) -> None:
        """Fills in the cell's problems."""
        try:
            if cell.operation.name not in self._controls:
                self._controls[cell.operation.name] = self._control(cell.operation)
            control = self._controls[cell.operation.name]
            scene = control.template.copy(self._next("cell"))
            try:
                cell.problems += self._kill(cell, control, scene)
            finally:
                scene.kill()
            if not cell.problems:
                shutil.rmtree(scene.folder)
        except Stuck as stuck:
            cell.problems.append(f"stuck: {stuck}")

    def _next(self, kind: str) -> Path:
        self._count += 1
        return self.folder / f"{kind}-{self._count}"

    # --- without a kill ---

    def _control(self, operation: Operation, tries: int = 3) -> Control:
        """Another template where one was killed too early: `first_until` may have had the last act of `first` with it in one group."""
        template = self._template(operation)
        self._answer(operation, template)
        before = template.rows_at_rest()
        others = ",".join(_armed(name, operation) for name in impossible(operation) if operation.in_groups or name not in GROUP_POINTS)
        whole, control = None, template.copy(self._next("control"))
        if operation.until:
            control.start(operation.until)
            if operation.act is not None:
                operation.act(control)
            _must_end(control, operation.until)
            whole = control.rows_at_rest()
            control = template.copy(self._next("control"))
        rest = self._full(operation, control, others, before)
        if ill := control.ill():
            raise Stuck(f"the run of {operation.name} without a kill leaves {ill}")
        control.kill()
        if ((whole or rest) == before) == operation.writes:
            if operation.first_until and tries > 1:
                return self._control(operation, tries - 1)
            raise Stuck(f"{operation.name} {'changes nothing, so its cells show nothing' if operation.writes else 'writes'}")
        return Control(template, before, rest if whole is None else whole, rest)

    def _full(self, operation: Operation, control: Scene, others: str, before: Rows) -> Rows:
        up = control.start(others)
        answer = operation.act(control) if up and operation.act is not None else None
        if up and operation.act is None and operation.writes:
            _wait_for_another(control, before)
        rest = _settled(control) if up else {}
        if control.ended(0.0) is not None:
            raise Stuck(f"{operation.name} passes {control.fired}, which its row does not name")
        if operation.act is not None and not _answered(answer, operation):
            raise Stuck(f"{operation.name} without a kill is answered {answer}")
        return rest

    def _template(self, operation: Operation) -> Scene:
        template = self._base.copy(self._next("template"))
        template.settings = dict(operation.settings)
        if operation.first is not None:
            self.answers.verdict = None
            template.start(operation.first_until)
            operation.first(template)
            if operation.first_until:
                _must_end(template, operation.first_until)
            template.kill()
            if operation.aged:
                _age(template, operation.aged)
        (template.folder / "failpoints.log").unlink(missing_ok=True)
        return template

    def _answer(self, operation: Operation, scene: Scene) -> None:
        verdict = None if operation.verdict is None else dict(operation.verdict)
        if verdict and "digest" in verdict:
            verdict["digest"] = scene.facts[verdict["digest"]]
        self.answers.verdict = verdict

    # --- with one ---

    def _kill(self, cell: Cell, control: Control, scene: Scene) -> Iterator[str]:
        operation = cell.operation
        self._answer(operation, control.template)
        if scene.start(cell.spec) and operation.act is not None and (answer := operation.act(scene)) is not None:
            yield f"the operation was answered before the kill: {answer}"
        if (code := scene.ended(FIRE_S)) != -signal.SIGKILL or scene.fired != [cell.spec.partition("@")[0]]:
            yield f"it did not fire: exit code {code}, fired {scene.fired}"
            return
        left = _claims_aside(scene.rows_at_rest(), operation)
        wanted = _claims_aside(control.whole if cell.point == "committed" else control.before, operation)
        if left != wanted:
            yield f"the kill left a part:\n{difference(wanted, left)}"
        yield from self._again(operation, control, scene, left)

    def _again(self, operation: Operation, control: Control, scene: Scene, left: Rows) -> Iterator[str]:
        scene.start()
        if operation.act is not None:
            if (found := _claims_aside(scene.rows(), operation)) != left:
                yield f"the start alone changed:\n{difference(left, found)}"
            if not _answered(answer := operation.act(scene), operation):
                yield f"said again it was answered {answer}"
        rest = _without(control.rest, operation.grows)
        found = scene.wait_rows(rest, REST_S, operation.grows)
        if _claims_aside(found, operation) != _claims_aside(rest, operation):
            yield f"said again it ends otherwise:\n{difference(rest, found)}"
        yield from scene.ill()


def _claims_aside(rows: Rows, operation: Operation) -> Rows:
    """The last two columns of a transaction are when it is asked next and why; who claims it writes both."""
    return rows | {"tx": [row[:-2] for row in rows["tx"]]} if operation.asked_beside else rows


def _answered(answer: tuple[int, object] | None, operation: Operation) -> bool:
    return answer is not None and (answer[0] < 300 or answer[0] in operation.said_again)


def _without(rows: Rows, tables: Sequence[str]) -> Rows:
    return {name: found for name, found in rows.items() if name not in tables}


def _age(scene: Scene, sql: LiteralString) -> None:
    with closing(sqlite3.connect(scene.store)) as conn, conn:
        conn.execute(sql)
    scene.store.with_name(f"{STORE}-sums").unlink(missing_ok=True)  # another writer's pages have none


def _must_end(scene: Scene, point: str) -> None:
    if scene.ended(FIRE_S) != -signal.SIGKILL:
        scene.kill()
        raise Stuck(f"{point} was not reached; log: {scene.log[-2_000:]}")


def _wait_for_another(scene: Scene, before: Rows) -> None:
    """What a coordinator does by itself begins when the machine lets it: before that, nothing moves either."""
    deadline = time.monotonic() + REST_S
    while scene.rows() == before and time.monotonic() < deadline:
        time.sleep(0.02)


def _settled(scene: Scene) -> Rows:
    """How it reads when nothing has moved for a third of a second: longer than three beats of each timer that bears on it."""
    deadline, since, rows = time.monotonic() + REST_S, time.monotonic(), scene.rows()
    while time.monotonic() - since < 0.35:
        time.sleep(0.02)
        if (now := scene.rows()) != rows:
            rows, since = now, time.monotonic()
        if time.monotonic() > deadline:
            raise Stuck("it does not come to rest")
    return rows


def run(folder: Path, rounds: int, seed: int, say: Callable[[str], None], operations: Sequence[Operation] = OPERATIONS) -> list[Cell]:
    """All cells `rounds` times, in an order drawn from the seed; two workers share the operations. Gives all cells."""
    shares = [operations[::2], operations[1::2]]
    with ThreadPoolExecutor(len(shares)) as pool:
        works = [pool.submit(_work, folder / f"{at}", rounds, seed + at, say, share) for at, share in enumerate(shares) if share]
        return [cell for work in works for cell in work.result()]


def _work(folder: Path, rounds: int, seed: int, say: Callable[[str], None], operations: Sequence[Operation]) -> list[Cell]:
    chance, done = random.Random(seed), []
    folder.mkdir()
    with Zygote(folder) as zygote, Answers() as answers:
        matrix = Matrix(folder, zygote, answers)
        matrix.make_base()
        for number in range(1, rounds + 1):
            began, wave = time.monotonic(), cells(operations)
            for cell in chance.sample(wave, len(wave)):
                matrix.run(cell)
                if cell.problems:
                    say(f"{cell}\n  " + "\n  ".join(cell.problems))
            done += wave
            wrong = sum(bool(cell.problems) for cell in wave)
            say(f"worker {folder.name}, round {number}/{rounds}: {len(wave)} cells, {wrong} wrong, {time.monotonic() - began:.1f} s")
    return done


def table() -> Iterator[str]:
    for operation in OPERATIONS:
        yield f"{operation.name:<32} {operation.function:<28} {' '.join(operation.all_points)}"
    left_out = sum(len(impossible(operation)) for operation in OPERATIONS)
    yield f"{len(OPERATIONS)} operations, {len(failpoints.NAMES)} fail points, {len(cells())} cells, {left_out} impossible:"
    yield from (f"  {name:<12} {why}" for name, why in WHY_NOT.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--table", action="store_true", help="print the operations and their fail points, and run nothing")
    given = parser.parse_args()
    if given.table:
        print("\n".join(table()))
        return 0
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1_000_000)
    folder = Path(tempfile.mkdtemp(prefix="halfmsg-matrix-"))
    print(f"seed {seed}, {given.rounds} rounds of {len(cells())} cells, files in {folder}", flush=True)
    done = run(folder, given.rounds, seed, lambda line: print(line, flush=True))
    wrong = [cell for cell in done if cell.problems]
    print(f"{len(done)} cells, all fired" if not wrong else f"{len(wrong)} of {len(done)} cells are wrong; files are kept in {folder}")
    if not wrong:
        shutil.rmtree(folder)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
