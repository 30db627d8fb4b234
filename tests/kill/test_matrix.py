"""Each fail point in each operation, once; the long form is `make kill-matrix ROUNDS=20`. And that its table leaves nothing out."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from halfmsg.coordinator import ops
from halfmsg.coordinator.store import failpoints
from tests.kill import matrix
from tests.kill.operations import GROUP_POINTS, NOT_OPERATIONS, OPERATIONS, WHY_NOT, Operation, note, prepare, submit
from tests.kill.scene import Answers
from tests.kill.zygote import Zygote
from tests.tidy import source

SEED = 11


@pytest.mark.slow
@pytest.mark.timeout(400)  # about 50 s on two idle cores: 2 starts a cell
def test_p3_killed_at_each_fail_point_of_each_operation(tmp_path: Path) -> None:
    """P3, P4: a kill leaves the whole operation or nothing of it, and said again it ends in the right state; every cell has fired."""
    lines: list[str] = []
    done = matrix.run(tmp_path, 1, SEED, lines.append)
    assert len(done) == len(matrix.cells())
    assert not any(cell.problems for cell in done), "\n".join(lines)


def test_matrix_has_each_fail_point_for_each_operation() -> None:
    """Each pair is a cell, or is declared impossible with a reason (which the control runs show to be true)."""
    assert set(WHY_NOT) == set(failpoints.NAMES)
    passed = {point.partition("@")[0] for operation in OPERATIONS for point in operation.all_points}
    assert passed == set(failpoints.NAMES), "a fail point that no operation passes"
    for operation in OPERATIONS:
        own = {point.partition("@")[0] for point in operation.all_points}
        assert own | set(matrix.impossible(operation)) == set(failpoints.NAMES)
        assert own.isdisjoint(matrix.impossible(operation))
    assert len({operation.name for operation in OPERATIONS}) == len(OPERATIONS)


def _transaction_functions() -> Iterator[str]:
    """`module.function` of each function of the service that has the form of one: (tx, now, command)."""
    for file in source.files("coordinator/service"):
        for node in file.tree.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                names = [argument.arg for argument in node.args.args]
                if len(names) == 3 and names[:2] == ["tx", "now"]:
                    yield f"{Path(file.name).stem}.{node.name}"


def test_matrix_has_each_transaction_function() -> None:
    """A new operation without a row fails here."""
    known = {operation.function for operation in OPERATIONS} | set(NOT_OPERATIONS)
    found = set(_transaction_functions())
    assert found - known == set(), "give it rows in tests/kill/operations.py"
    assert {name for name in known if name and not name.startswith("engine.")} - found == set(), "rows of what is no more"


def test_matrix_has_each_operation_of_the_wire() -> None:
    """Each word that batch and stream know is done by name in some row."""
    text = Path(matrix.__file__).with_name("operations.py").read_text()
    for kind in ops._BY_TYPE:
        assert f'"{kind.__name__.lower()}' in text, f"no row does {kind.__name__}"


def _run(folder: Path, operation: Operation, point: str) -> list[str]:
    cell = matrix.Cell(operation, point)
    with Zygote(folder) as zygote, Answers() as answers:
        one = matrix.Matrix(folder, zygote, answers)
        one.make_base()
        one.run(cell)
    return cell.problems


def test_matrix_sees_a_row_that_leaves_a_fail_point_out(tmp_path: Path) -> None:
    """A submit that were said to release nothing: the control run, armed with what is left out, is killed."""
    problems = _run(tmp_path, Operation("planted", "transactions.store_content", ("half_stored",), submit(1, note())), "begun")
    assert len(problems) == 1 and "passes ['released:transactions.store_content'], which its row does not name" in problems[0]


def test_matrix_sees_a_point_that_does_not_fire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prepare releases nothing: its cell is answered and lives on."""
    monkeypatch.setattr(matrix, "FIRE_S", 0.2)
    planted = Operation("planted", "transactions.store_content", ("half_stored", "prepared", "released"), prepare(1, note()))
    problems = _run(tmp_path, planted, "released")
    assert any("did not fire" in problem for problem in problems)


def test_matrix_sees_a_row_that_changes_nothing(tmp_path: Path) -> None:
    """A row that writes nothing would be right whatever the coordinator does."""
    twice = Operation("planted", "transactions.store_content", (), prepare(1, note()), prepare(1, note()))
    assert any("changes nothing" in problem for problem in _run(tmp_path, twice, "begun"))


def test_groups_points_are_fail_points() -> None:
    """The three that every transaction passes."""
    assert set(GROUP_POINTS) < set(failpoints.NAMES)
