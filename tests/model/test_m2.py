"""M2: three transactions on one ordering key, as designed and broken (R4, R5, R7, R10, R14, R21)."""

from __future__ import annotations

import pytest

from tests.model import explore
from tests.model.m2_order import Model, Run, Variant


def run(variant: Variant, promise: str = "") -> explore.Report:
    model = Run(variant)
    return explore.explore(Model(), model.successors, model.violations, model.settled, promise=promise)


CLEAN = [
    pytest.param(Variant(), 4_000, id="as designed"),
    pytest.param(Variant(loses_last_commit=True), 10_000, id="the database loses its last commit"),
    pytest.param(Variant(two_databases=True), 3_500, id="two databases under one name, both let in"),
]

BARE = Variant(verdict_has_numbers=False)
BROKEN = [
    pytest.param(BARE, "P2", id="b1 verdict without number, held for ever"),
    pytest.param(BARE._replace(without_number="appended"), "P7", id="b2 verdict without number, appended"),
    pytest.param(Variant(ordered_by="prepare"), "P7", id="b3 no sequence, position at prepare"),
    pytest.param(Variant(counter_inside=False), "P2", id="b4 counter outside the local transaction: a gap nobody can name"),
    pytest.param(Variant(operator_commits_unnumbered=True, without_number="appended"), "P1", id="b5 operator commits without a number"),
    pytest.param(Variant(operator_commits_unnumbered=True, without_number="appended"), "P7", id="b5 operator commits without a number, order"),
    pytest.param(Variant(operator_commits_unnumbered=True), "P2", id="b6 operator commits without a number, held for ever"),
    pytest.param(Variant(two_databases=True, below_next="duplicate"), "P2", id="g1 two databases, below next is a duplicate"),
    pytest.param(Variant(loses_last_commit=True, below_next="duplicate"), "P2", id="g3 a commit lost, below next is a duplicate"),
    pytest.param(Variant(loses_last_commit=True, held_checked=False), "P2", id="g4 numbers compared with released ones only"),
    pytest.param(Variant(loses_last_commit=True, held_head_checked=False), "P2", id="g4 a held head is not looked at before a release"),
    pytest.param(Variant(late_after_skip="dropped"), "P2", id="k1 skip, the late commit is dropped"),
    pytest.param(Variant(late_after_skip="delivered"), "P7", id="k2 skip, the late commit is delivered"),
]


@pytest.mark.parametrize(("variant", "states_min"), CLEAN)
def test_m2_is_clean_when_built_as_designed(variant: Variant, states_min: int, request: pytest.FixtureRequest) -> None:
    """Gap, hold, drain, skip, park and force keep P1, P2 and P7; so do a lost commit and a second database, by numbers alone."""
    explore.assert_clean(request.node.name, run(variant), states_min=states_min)


@pytest.mark.parametrize(("variant", "promise"), BROKEN)
def test_m2_finds_the_fault_when_a_rule_is_removed(variant: Variant, promise: str, request: pytest.FixtureRequest) -> None:
    """Each rule of order is needed: without it a promise breaks."""
    explore.assert_found(request.node.name, run(variant, promise), promise)
