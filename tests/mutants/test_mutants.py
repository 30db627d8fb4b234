"""The planted bugs are in order, their judge is not to be fooled, and ten of them, one a promise, are planted in each run of the tests."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.mutants import run
from tests.mutants.plant import FOLDER, PROMISES, ROOT, Edit, Mutant, Unfit, file_and_name, load, load_all, names_in
from tests.mutants.tree import Seen, verdict

ALL = load_all()
FAST = [mutant for mutant in ALL if mutant.fast]
ASKED = {
    "NORMAL instead of FULL", "answer/ack before commit", "inbox check outside the transaction", "no token check", "fence after the body",
    "rollback in `except` after a commit whose answer is unknown", "verdict without digest", "id by time/lookup order by id",
    "offset taken outside the lane lock", "retry with a new id", "a second id for the rows", "held read in the statement that locks",
    "ack out of order accepted", "attempts charged to the neighbour", "`missed` forgotten", "cursor over gaps",
    "decision applied by producer name instead of id", "swallowed fence error", "due index read without state", "lease by the consumer's clock",
}  # fmt: skip
"""The bugs that the design names; each has at least one file."""


@pytest.mark.parametrize("mutant", ALL, ids=lambda mutant: mutant.name)
def test_planted_bug_applies_and_names_tests_that_exist(mutant: Mutant, tmp_path: Path) -> None:
    """Its old texts stand where it says, exactly once; what is left is still Python; each test it names is there."""
    for file in mutant.files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, tmp_path / file)
    mutant.apply(tmp_path)
    assert [file for file in mutant.files if (tmp_path / file).read_text() == (ROOT / file).read_text()] == []
    for test in mutant.tests:
        file, name = file_and_name(test)
        assert (ROOT / file).is_file() and name in names_in(ROOT / file), f"{mutant.name} names {test}, which is not there; mend the mutant"


def test_planted_bugs_cover_every_promise_and_all_that_is_asked_for() -> None:
    """P1 to P10, the bugs that the design names, and rules that the protocol page has."""
    rules = set(re.findall(r"^### (R\d+)", (ROOT / "docs/protocol.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert {mutant.promise for mutant in ALL} == set(PROMISES)
    assert {rule for mutant in ALL for rule in mutant.rule.split(", ") if rule.startswith("R")} <= rules
    assert {mutant.asked for mutant in ALL} - {""} == ASKED
    assert len(ALL) >= 30
    assert {mutant.promise for mutant in FAST} == set(PROMISES) and len(FAST) == len(PROMISES)


def test_file_that_is_not_in_order_is_refused_by_name(tmp_path: Path) -> None:
    """A field that is missing or unknown, a promise that is none: said with the file's name."""
    good = (FOLDER / f"{ALL[0].name}.toml").read_text(encoding="utf-8")
    for bad in (good.replace("why =", "because ="), good.replace(ALL[0].promise, "P11", 1), good.partition("[[edit]]")[0], "promise ="):
        path = tmp_path / "bad.toml"
        path.write_text(bad, encoding="utf-8")
        with pytest.raises(Unfit, match=r"bad\.toml"):
            load(path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [("gone", "x", "is not there; mend|is not there in"), ("a = ", "b = ", "stands there 2 times"), ("a = 1", "a = (", "no Python any more")],
)
def test_planted_bug_that_no_longer_applies_says_mend_and_changes_nothing(tmp_path: Path, old: str, new: str, said: str) -> None:
    """Whatever is wrong with it, it is never passed over, and the tree stays as it was."""
    (tmp_path / "code.py").write_text("a = 1\na = 2\n")
    with pytest.raises(Unfit, match=said) as refused:
        _mutant(Edit("code.py", old, new)).apply(tmp_path)
    assert "mend the mutant" in str(refused.value)
    assert (tmp_path / "code.py").read_text() == "a = 1\na = 2\n"


def _mutant(*edits: Edit, hang: bool = False) -> Mutant:
    return Mutant("m", "P1", "R1", "why", "", "", ("tests/a.py::test_a",), False, hang, edits)


def _seen(code: int | None, *failed: tuple[str, str], errors: tuple[str, ...] = ()) -> Seen:
    return Seen(code, (), failed, errors, "", 0.0)


@pytest.mark.parametrize(
    ("seen", "caught", "caught_as_hang"),
    [
        (_seen(1, ("t", "AssertionError: assert 1 == 2")), True, True),
        (_seen(1, ("t", "Failed: DID NOT RAISE <class 'Problem'>")), True, True),
        (_seen(1, ("t", "halfmsg.coordinator.errors.Problem: state_changed")), True, True),
        (_seen(0), False, False),
        (_seen(1, errors=("t",)), False, False),
        (_seen(2, errors=("t",)), False, False),
        (_seen(4), False, False),
        (_seen(5), False, False),
        (_seen(1, ("t", "NameError: name 'x' is not defined")), False, False),
        (_seen(1, ("t", "halfmsg.coordinator.errors.Problem: internal: TypeError: f() takes 1")), False, False),
        (_seen(1, ("t", "sqlite3.OperationalError: near \"WHER\": syntax error")), False, False),
        (_seen(1, ("t", "TimeoutError")), False, True),
        (_seen(1, ("t", "Failed: Timeout (>30.0s) from pytest-timeout.")), False, True),
        (_seen(None), False, True),
    ],
)  # fmt: skip
def test_only_a_test_that_fails_by_its_claim_counts(seen: Seen, caught: bool, caught_as_hang: bool) -> None:
    """A collection error, an error of set-up, a slip of the language or a hang that nobody spoke of catches nothing."""
    assert verdict(_mutant(), seen)[0] is caught
    assert verdict(_mutant(hang=True), seen)[0] is caught_as_hang


@pytest.fixture(scope="module")
def results() -> dict[str, run.Result]:
    return {result.mutant.name: result for result in run.run_all(FAST)}


@pytest.mark.timeout(180)  # about 20 s for all together; each run in it has a limit of its own
@pytest.mark.parametrize("name", [mutant.name for mutant in FAST])
def test_planted_bug_is_caught_by_its_tests(results: dict[str, run.Result], name: str) -> None:
    """The named tests pass on a clean copy and one fails, by what it claims, with the bug in it."""
    assert results[name].caught, f"{name}: {results[name].by}"
