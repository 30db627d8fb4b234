"""M5 and M7: marks and watermarks, as designed and with each comparison removed (R3, R12)."""

from __future__ import annotations

import pytest

from tests.model import explore
from tests.model.m7_marks import Model, Run, Variant


def run(variant: Variant, promise: str = "") -> explore.Report:
    model = Run(variant)
    return explore.explore(Model(), model.successors, model.violations, model.settled, promise=promise)


BROKEN = [
    pytest.param(Variant(local_compares=False), "P5", id="(1) local insert: rolled_back, then committed"),
    pytest.param(Variant(local_compares=False), "P2", id="(1) local insert: lost or refused"),
    pytest.param(Variant(responder_compares=False), "P5", id="(2) responder: rolled_back for a committed one"),
    pytest.param(Variant(purge_compares=False), "P5", id="(3) purge of sent rows at any mark"),
    pytest.param(Variant(unsent_kept=False), "P2", id="(3) purge of unsent rows"),
    pytest.param(Variant(stale_compared=False), "P2: stuck", id="(4) stale_mark: a committed one nobody can answer for"),
    pytest.param(Variant(forgotten_compared=False), "P6", id="(5) forgotten: repeat delivery"),
    pytest.param(Variant(open_waited_for=False), "P2: a correct row was refused", id="open local transactions are not waited for"),
    pytest.param(Variant(one_mark=False), "P5", id="M5 the record's mark is not the row's"),
    pytest.param(Variant(one_mark=False), "P2", id="M5 the record's mark is not the row's, lost"),
]


def test_m7_is_clean_when_the_mark_is_chosen_once(request: pytest.FixtureRequest) -> None:
    """With the five comparisons everything may be purged, and no message is too late to be safe, however long it was on its way."""
    explore.assert_clean(request.node.name, run(Variant()), states_min=80_000)


@pytest.mark.parametrize(("variant", "promise"), BROKEN)
def test_m7_finds_the_fault_when_a_comparison_is_removed(variant: Variant, promise: str, request: pytest.FixtureRequest) -> None:
    """Each comparison, and the wait, is needed: without it a promise breaks."""
    explore.assert_found(request.node.name, run(variant, promise), promise)


def test_m7_purges_row_and_record_of_a_delivered_transaction() -> None:
    """The clean run means something: it reaches states in which all that knew of the id is gone while a copy is on its way."""

    def purged(s: Model) -> list[str]:
        return ["purged"] if s.releases and s.fence is None and s.record is None and s.duplicates else []

    explore.assert_found("purged", explore.explore(Model(), Run(Variant()).successors, purged), "purged")
