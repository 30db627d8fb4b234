"""M4: two coordinators on PostgreSQL, statement by statement (R11, R21)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.model import explore
from tests.model.m4_postgres import Creation, Cursor, Release, Together


def run(model: Any) -> explore.Report:
    """The four little models differ in their states."""
    return explore.explore(model.initial, model.successors, model.violations, model.settled)


CLEAN = [
    pytest.param(Release("later_statement"), 20, id="4a key row locked, held read by a later statement"),
    pytest.param(Cursor("lane_row"), 12, id="4b offsets from the locked lane row"),
    pytest.param(Creation("rows_with_topic_lock"), 8, id="4c delivery rows under a topic lock"),
    pytest.param(Creation("places"), 10, id="4c places instead of delivery rows"),
    pytest.param(Together(at_once=False, locked=True), 40, id="4d message by message"),
    pytest.param(Together(at_once=False, locked=False), 80, id="4d message by message, numbers outside row locks"),
    pytest.param(Together(at_once=True, locked=True), 20, id="4d all at once, numbers under row locks"),
]

BROKEN = [
    pytest.param(Release("without_lock"), id="4a release without a lock"),
    pytest.param(Release("same_statement"), id="4a lock and held read in the same statement"),
    pytest.param(Cursor("sequence"), id="4b offsets from a sequence"),
    pytest.param(Creation("rows"), id="4c delivery rows, no topic lock"),
    pytest.param(Together(at_once=True, locked=False), id="4d all at once, numbers outside row locks: deadlock of holds"),
]


@pytest.mark.parametrize(("model", "states_min"), CLEAN)
def test_m4_is_clean_when_built_as_designed(model: Any, states_min: int, request: pytest.FixtureRequest) -> None:
    """No interleaving of the statements strands or skips a message."""
    explore.assert_clean(request.node.name, run(model), states_min=states_min)


@pytest.mark.parametrize("model", BROKEN)
def test_m4_finds_the_fault_when_a_lock_is_missing(model: Any, request: pytest.FixtureRequest) -> None:
    """Each lock, and its place in the order, is needed: without it P2 breaks."""
    explore.assert_found(request.node.name, run(model), "P2")
