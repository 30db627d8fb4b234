"""M6: the fetch for an ordered topic, as designed and broken (PROTOCOL section 4, R13, R24)."""

from __future__ import annotations

import pytest

from tests.model import explore
from tests.model.m6_fetch import Model, Run, Variant


def run(variant: Variant, promise: str = "") -> explore.Report:
    model = Run(variant)
    return explore.explore(Model(), model.successors, model.violations, model.settled, promise=promise, max_states=450_000)


CLEAN = [
    pytest.param(Variant(lease_ends=2, nacks=1), 300_000, id="keys in turn, 1 nack, 2 lease ends"),
    pytest.param(Variant(lease_ends=1, nacks=2), 50_000, id="keys in turn, 2 nacks, 1 lease end"),
    pytest.param(Variant(keys="aaba", lease_ends=1, nacks=2), 25_000, id="two of a key in one run, 2 nacks, 1 lease end"),
]

BROKEN = [
    pytest.param(Variant(guard_row=False), "P7", id="without the guard row"),
    pytest.param(Variant(diverted=False), "order", id="the failing key is not diverted"),
    pytest.param(Variant(given_back="run"), "order", id="a nack gives back the later ones of its own run only"),
    pytest.param(Variant(expiry_ends="run"), "order", id="a lease that ends leaves the member's other runs"),
    pytest.param(Variant(keys="aaba", in_flight_looked_at=False), "order", id="a waiting row made due while an earlier one of its key is in flight"),
    pytest.param(Variant(next_made_due=False), "P2", id="the next waiting row is not made due"),
]


@pytest.mark.parametrize(("variant", "states_min"), CLEAN)
def test_m6_is_clean_when_built_as_designed(variant: Variant, states_min: int, request: pytest.FixtureRequest) -> None:
    """Each message is always in exactly one of run, retry, settled, beyond the place; P2, P6 and P7 hold."""
    explore.assert_clean(request.node.name, run(variant), states_min=states_min)


@pytest.mark.parametrize(("variant", "promise"), BROKEN)
def test_m6_finds_the_fault_when_a_rule_is_removed(variant: Variant, promise: str, request: pytest.FixtureRequest) -> None:
    """Each rule of the hand is needed; `order` is a valid delivery that only the guard row keeps from an inversion."""
    explore.assert_found(request.node.name, run(variant, promise), promise)
