"""Rare paths that a set of seeds has to reach ("sometimes" assertions): a set that never got there has proven nothing about them."""

from __future__ import annotations

from collections.abc import Collection

from halfmsg.coordinator.store import failpoints

PART = 0.95
PART_FROM = 200
NAMED_FROM = 300
"""Seeds from which a set must have met that part of all marks, and each of NEVER_MISSED."""

MARKS = {
    "late_commit_fenced": "a local transaction came to its fence after a check-back's tombstone (R8)",
    "zombie_after_dead_letter": "a consumer settled a message that had meanwhile become a dead letter (R13)",
    "gap_question_answered": "a producer told which transaction holds a missing number (R5)",
    "commit_against_check_back": "a decision arrived that a check-back had made already",
    "check_back_against_commit": "a check-back's verdict came after the decision",
    "late_prepare": "a prepare that was given up arrived after its transaction was decided by rows (R2)",
    "relay_take_over": "a relay handed over lanes that a dead one had owned",
    "lane_take_over": "a lane of a group went from one member to another",
    "cancel_in_commit": "a local transaction was cancelled while its COMMIT ran (R1)",
    "clock_forward": "the coordinator's clock jumped forward",
    "clock_back": "the coordinator's clock jumped back",
    "rows_instead_of_half": "the coordinator did not answer in time, and the bodies went by rows (R2)",
    "said_twice": "an operation arrived a second time, after others",
    "repeated_content": "content arrived a second time",
    "decision_refused": "a decision was refused",
    "verdict_committed": "a check-back brought: committed",
    "verdict_rolled_back": "a check-back brought: rolled back",
    "verdict_running": "a check-back found the local transaction still open",
    "verdict_no_answer": "a check-back brought nothing",
    "redelivered": "a message was handed out again",
    "missed_named": "a delivery named dead letters before it (R6)",
    "settle_lease_lost": "an ack or nack came with a token that had ended",
    "settled_ack": "an ack was taken",
    "settled_nack": "a nack was taken",
    "settled_reject": "a message was rejected",
    "given_back": "a failed message took the later ones of its key back with it",
    "lease_ended": "a lease ended by itself",
    "held": "a message waited behind a gap",
    "dead_letter": "a dead letter",
    "parked": "a parked transaction",
    "operator_saw_it": "an operator looked for what was just acknowledged, and it was there (I11)",
    "coordinator_killed": "the coordinator was killed at a random moment",
    "coordinator_stopped": "the coordinator was stopped in good order, under load",
    "shop_killed": "a producer was killed",
    "consumer_killed": "a consumer was killed",
    "coordinator_frozen": "the coordinator stood still for longer than a lease",
    "consumer_frozen": "a consumer stood still for longer than its lease",
    "shop_frozen": "a producer stood still",
    "wall": "two nodes could not reach each other",
    "contradicted": "a rollback came in the words of a producer whose commit stood, and was refused with it (P4)",
    "forced_commit": "a parked transaction was committed by hand (R4)",
    "forced_rollback": "a parked transaction was rolled back by hand (R4)",
    "forced_and_contradicted": "a producer's word came against a decision by hand, and was listed (R4)",
    "paused": "a group was paused for a while",
    "backed_up": "a backup was made, under load or of a dead coordinator's file (W15)",
    "cut": "all connections of a node were cut",
    "slow_network": "the network was slow",
} | {f"failpoint_{name}": f"killed at {name}" for name in (*failpoints.NAMES, "checkpointed")}

NEVER_MISSED = (
    "late_commit_fenced", "zombie_after_dead_letter", "gap_question_answered", "commit_against_check_back", "late_prepare", "relay_take_over",
    "lane_take_over", "cancel_in_commit", "clock_forward", "clock_back",
)  # fmt: skip
"""These count by name, whatever part of all marks is met: the races that the protocol is about."""


def enough(seeds: int, missing: Collection[str]) -> bool:
    """Has a set of so many seeds, which never met `missing`, met what it must?"""
    if seeds >= NAMED_FROM and not set(NEVER_MISSED).isdisjoint(missing):
        return False
    return seeds < PART_FROM or 1 - len(missing) / len(MARKS) >= PART
