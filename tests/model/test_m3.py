"""M3: one group and the inbox, as designed and broken (R6, R13, R18, R24)."""

from __future__ import annotations

import pytest

from tests.model import explore
from tests.model.m3_group import Run, Variant


def run(variant: Variant, promise: str = "") -> explore.Report:
    model = Run(variant)
    return explore.explore(model.initial, model.successors, model.violations, model.settled, promise=promise)


CLEAN = [
    pytest.param(Variant(), 15_000, id="as designed"),
    pytest.param(Variant(filtered=frozenset({2})), 5_000, id="e3b passed-over numbers, a dead letter and a filtered message"),
    pytest.param(Variant(run_max=3, redrives=0), 5_000, id="f4 run of a key, prefix ack, nack gives back the rest"),
    pytest.param(Variant(named="twice", lease_ends=2), 4_000, id="R6 a number named twice in missed"),
    pytest.param(Variant(replays=1, lease_ends=1), 8_000, id="R18 replay raises the generation"),
]

LOOSE = Variant(given_back=False, in_order=False, client_stops=False)
BROKEN = [
    pytest.param(Variant(inbox="above_last"), "P2", id="e1 row per key, number > last"),
    pytest.param(Variant(inbox="next"), "P2", id="e2 row per key, number == last+1, one dead letter"),
    pytest.param(Variant(inbox="next", filtered=frozenset({1}), lease_ends=0, nacks=0), "P2", id="e3 number == last+1, one message filtered"),
    pytest.param(Variant(named="never"), "P2", id="e1 the delivery does not name what was passed over"),
    pytest.param(Variant(inbox="id"), "P7", id="f1 inbox by id only, zombie after a dead letter"),
    pytest.param(LOOSE._replace(inbox="id"), "P7", id="f2 several of a key in one hand, any order, inbox by id"),
    pytest.param(LOOSE, "P2", id="f2 several of a key in one hand, any order, guard row"),
    pytest.param(Variant(client_stops=False), "P2", id="f2 the client goes on with a key after a failure"),
]


@pytest.mark.parametrize(("variant", "states_min"), CLEAN)
def test_m3_is_clean_when_built_as_designed(variant: Variant, states_min: int, request: pytest.FixtureRequest) -> None:
    """Leases that end, zombies, dead letters, redrive and replay keep P2, P6 and P7 with the inbox of R6."""
    explore.assert_clean(request.node.name, run(variant), states_min=states_min)


@pytest.mark.parametrize(("variant", "promise"), BROKEN)
def test_m3_finds_the_fault_when_a_rule_is_removed(variant: Variant, promise: str, request: pytest.FixtureRequest) -> None:
    """Each rule of the inbox and of the hand is needed: without it a promise breaks."""
    explore.assert_found(request.node.name, run(variant, promise), promise)
