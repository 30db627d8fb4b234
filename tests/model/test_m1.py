"""M1: one transaction, as designed and broken (PROTOCOL sections 1 and 2). A trace of each violation is in the failure or under -s."""

from __future__ import annotations

import pytest

from tests.model import explore, m1_block, m1_transaction
from tests.model.m1_transaction import Model, Run, Variant


def run(variant: Variant, promise: str = "") -> explore.Report:
    model = Run(variant)
    return explore.explore(Model(), model.successors, model.violations, model.settled, promise=promise)


def run_block(variant: m1_block.Variant, promise: str = "") -> explore.Report:
    model = m1_block.Run(variant)
    return explore.explore(m1_block.Model(), model.successors, model.violations, model.settled, promise=promise)


CLEAN = [
    pytest.param(Variant(mode="half"), 4_000, id="half: prepared and required"),
    pytest.param(Variant(mode="outbox"), 900, id="outbox: published inside"),
    pytest.param(Variant(mode="auto"), 20_000, id="auto: a prepare that was given up arrives late (R2)"),
    pytest.param(Variant(mode="auto", retries_same_id=True), 100_000, id="a6 id reused, digest in commit, submit and verdict (R9)"),
    pytest.param(Variant(mode="auto", operator_forces=True), 50_000, id="operator forces, as an exception in the text (R4)"),
]

HALF = Variant(mode="half")
BROKEN = [
    pytest.param(Variant(row_has_own_id=True), "P6", id="a1 auto, the relay's row has another id"),
    pytest.param(Variant(rows_carry_fence=False), "P5", id="a2 auto, rows without a fence row"),
    pytest.param(Variant(rows_carry_fence=False, conflicts_listed=False), "P2", id="a3 the same, and the relay drops on conflict"),
    pytest.param(Variant(retries_same_id=True, digest_checked=False), "P1", id="a5 id reused with other content, fall-back to rows"),
    pytest.param(HALF._replace(retries_same_id=True, reports_before_retry=True), "P2", id="a5 id reused after a rollback was said: no digest in it"),
    pytest.param(HALF._replace(unknown_commit_asks_fence=False), "P2", id="c1 COMMIT not answered, client says rollback"),
    pytest.param(HALF._replace(source_checked=False), "P5", id="c2 responder on another database"),
    pytest.param(HALF._replace(source_checked=False), "P2", id="c2 responder on another database, lost"),
    pytest.param(HALF._replace(committed_fence_by_age=True), "P5", id="c3 committed fence purged by age"),
    pytest.param(HALF._replace(committed_fence_by_age=True), "P2", id="c3 committed fence purged by age, lost"),
    pytest.param(HALF._replace(tombstone_by_age=True), "P5", id="c4 tombstone purged by age"),
    pytest.param(HALF._replace(tombstone_by_age=True), "P2", id="c4 tombstone purged by age, lost"),
    pytest.param(HALF._replace(fence_error_ends_transaction=False), "P5", id="c5 fence conflict swallowed"),
    pytest.param(HALF._replace(fence_error_ends_transaction=False), "P2", id="c5 fence conflict swallowed, lost"),
    pytest.param(HALF._replace(record_by_age=True), "P6", id="d1 dedupe record purged by age, late prepare"),
    pytest.param(Variant(mode="outbox", record_by_age=True), "P6", id="d1 dedupe record purged by age, late submit"),
    pytest.param(HALF._replace(used_up_means_rolled_back=True), "P2", id="p1 checks used up means rolled_back"),
    pytest.param(HALF._replace(operator_forces=True, forced_excused=False), "P1", id="p2 operator forces a parked one"),
]


@pytest.mark.parametrize(("variant", "states_min"), CLEAN)
def test_m1_is_clean_when_built_as_designed(variant: Variant, states_min: int, request: pytest.FixtureRequest) -> None:
    """No loss, delay, copy, crash or purge breaks P1, P2, P5 or P6 for one id (also c3f, c4f, d2f: purging by watermark is always on)."""
    explore.assert_clean(request.node.name, run(variant), states_min=states_min)


@pytest.mark.parametrize(("variant", "promise"), BROKEN)
def test_m1_finds_the_fault_when_a_rule_is_removed(variant: Variant, promise: str, request: pytest.FixtureRequest) -> None:
    """Each rule of R1-R4, R7-R9 and R12 is needed: without it a promise breaks."""
    explore.assert_found(request.node.name, run(variant, promise), promise)


@pytest.mark.parametrize("mode", ["half", "outbox", "auto"])
def test_m1_purges_everything_of_a_delivered_transaction(mode: str) -> None:
    """The clean runs mean something: they reach states in which fence row and record of a delivered one are gone (c3f, d2f)."""

    def purged(s: Model) -> list[str]:
        return ["purged"] if s.effects and s.forgotten and not s.fence and s.record is None else []

    model = Run(Variant(mode=mode))  # type: ignore[arg-type]
    explore.assert_found(mode, explore.explore(Model(), model.successors, purged), "purged")


def test_m1_deletes_the_tombstone_of_a_transaction_that_never_began() -> None:
    """Likewise for a tombstone, with the producer still about to begin (c4f)."""

    def purged(s: Model) -> list[str]:
        return ["purged"] if s.denied and s.raised and not s.fence and s.phase in ("half", "rows") else []

    model = Run(m1_transaction.Variant())
    explore.assert_found("tombstone", explore.explore(Model(), model.successors, purged), "purged")


def test_m1_block_is_clean_when_rows_are_the_transaction() -> None:
    """R16: savepoint, publish, roll back, commit, in every order: what survives is delivered, once and in order."""
    explore.assert_clean("block", run_block(m1_block.Variant()), states_min=400)


@pytest.mark.parametrize(
    ("variant", "promise"),
    [
        pytest.param(m1_block.Variant(sent_from="memory"), "P1", id="the list of messages comes from memory: ghost"),
        pytest.param(m1_block.Variant(sent_from="memory"), "P7", id="the list of messages comes from memory: number drawn again"),
        pytest.param(m1_block.Variant(fence_written="with_the_first"), "P2", id="the block's fence row inside a savepoint"),
    ],
)
def test_m1_block_finds_the_fault_when_r16_is_broken(variant: m1_block.Variant, promise: str, request: pytest.FixtureRequest) -> None:
    """R16: memory does not know of savepoints."""
    explore.assert_found(request.node.name, run_block(variant, promise), promise)
