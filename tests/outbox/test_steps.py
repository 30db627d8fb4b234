"""The decisions as generators, fed with lists: no database, no driver (effects.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pytest

from halfmsg import Answer, Fenced, Message, Verdict
from halfmsg.checkback import Question
from halfmsg.outbox import AlreadyCommitted, answering, fence, inbox
from halfmsg.outbox.effects import Abort, Begin, Check, Commit, Effect, Sql, Steps, ending
from halfmsg.outbox.fence import Attempt
from halfmsg.outbox.home import own_transaction
from halfmsg.outbox.tables import Tables
from halfmsg.txclient import Delivery, transaction_digest

TABLES = Tables("sqlite", "halfmsg_")
META = [(0, b"S" * 16, 1), (2, b"", 7), (3, b"", 1)]
ID = b"\x01" * 16


def play(steps: Steps[Any], results: Iterable[Any]) -> tuple[list[Effect], Any]:
    """Send each result in turn (an exception is thrown in); gives what was asked for and what came out."""
    asked = [next(steps)]
    try:
        for result in results:
            asked.append(steps.throw(result) if isinstance(result, BaseException) else steps.send(result))
    except StopIteration as end:
        return asked, end.value
    except Exception as error:
        return asked, error
    return asked, None


def named(effects: Iterable[Effect]) -> list[str]:
    """Their statements by name."""
    names = {text: name for name, text in TABLES._texts.items()}
    return [names[each.text] if isinstance(each, Sql) else type(each).__name__ for each in effects]


def publish(attempt: Attempt, *messages: Message) -> Steps[Any]:
    return fence.publish(TABLES, attempt, messages, None)


def test_r2_publish_is_check_meta_fence_numbers_rows() -> None:
    """Every publish asks whether a transaction is open, reads meta, lays the fence, draws and writes, in this order, and commits nothing."""
    messages = [Message("s", 1, key="b"), Message("u", 2), Message("s", 3, key="a")]
    effects, drawn = play(publish(Attempt(ID, 9, stored=False), *messages), [None, META, [(1,)], [(4,)], [(6,)], [], [], []])
    assert named(effects) == ["Check", "meta", "fence", "draw", "draw", "out_put", "out_put", "out_put"]
    assert effects[2].args == (ID, transaction_digest([each.digest() for each in messages]), 9, 1, 9)  # type: ignore[union-attr]
    assert [effect.args[1] for effect in effects[3:5] if isinstance(effect, Sql)] == [b"a", b"b"]
    assert [each.sequence for each in drawn] == [6, None, 4]


def test_r2_acknowledged_prepare_writes_no_bodies() -> None:
    """Where the coordinator has the bodies the row keeps number and digest only, and nothing is queued for the relay."""
    effects, _ = play(publish(Attempt(ID, 9, stored=True), Message("u", 2)), [None, META, [(1,)], []])
    assert effects[2].args[3] is None  # type: ignore[union-attr]
    assert effects[3].args[-1] is None  # type: ignore[union-attr]


def test_r3_mark_is_purged_before_where_no_time_was_seen() -> None:
    """An attempt without a coordinator's time takes the watermark that it reads."""
    effects, _ = play(publish(Attempt(ID, None, stored=False), Message("u", 2)), [None, META, [(1,)], []])
    assert effects[2].args[2:] == (7, 1, 7)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("found", "error"), [([(1, b"d")], AlreadyCommitted), ([(2, None)], Fenced), ([], Fenced)], ids=["our row", "tombstone", "mark too old"]
)
def test_r8_no_row_from_the_fence_is_told_by_what_stands(found: list[Any], error: type[Exception]) -> None:
    """No row inserted: our own row, a tombstone and an old mark are told apart, and the transaction is ended before the error comes out."""
    steps = ending(publish(Attempt(ID, 9, stored=False), Message("u", 2)))
    effects, raised = play(steps, [None, META, [], found, None])
    assert named(effects) == ["Check", "meta", "fence", "verdict", "Abort"]
    assert isinstance(raised, error)


def test_r8_driver_error_is_raised_after_abort() -> None:
    """A driver's own error comes out as it is, after the transaction was ended."""
    broken = RuntimeError("disk")
    effects, raised = play(ending(publish(Attempt(ID, 9, stored=False), Message("u", 2))), [None, META, broken, None])
    assert named(effects)[-1] == "Abort"
    assert raised is broken


def test_r28_tombstone_is_committed_before_it_is_answered() -> None:
    """BEGIN, tombstone, read, COMMIT: the answer comes after the commit, in a transaction of its own."""
    steps = own_transaction(answering.rule(TABLES, Question(fence.id_text(ID), 3, None), None))
    effects, answer = play(steps, [None, META, [(1,)], [(2, None)], None])
    assert named(effects) == ["Begin", "meta", "tombstone", "verdict", "Commit"]
    assert answer == Answer(Verdict.ROLLED_BACK)


def test_r3_nothing_laid_and_nothing_there_is_no_answer() -> None:
    """A question below the watermark that finds no row is left out."""
    _, answer = play(answering.rule(TABLES, Question(fence.id_text(ID), 3, None), None), [META, [], []])
    assert answer is None


def test_p5_tombstone_that_finds_a_committed_row_says_committed() -> None:
    """The insert that does nothing and the row that is read decide, never the count."""
    _, answer = play(answering.rule(TABLES, Question(fence.id_text(ID), 3, None), None), [META, [], [(1, b"\x0d")], [(0, 5, b""), (2, None, b"")]])
    assert answer == Answer(Verdict.COMMITTED, "0d", [5, None, None])


def test_own_transaction_aborts_on_cancellation() -> None:
    """Whatever comes up, also a cancellation, ends the transaction."""

    def steps() -> Steps[None]:
        yield TABLES.sql("meta")

    running = own_transaction(steps())
    assert isinstance(next(running), Begin)
    assert isinstance(running.send(None), Sql)
    assert isinstance(running.throw(asyncio.CancelledError()), Abort)
    with pytest.raises(asyncio.CancelledError):
        running.send(None)


def delivery(sequence: int | None = 5, **more: Any) -> Delivery:
    fields: dict[str, Any] = {"topic": "s", "lane": 0, "offset": 0, "time": datetime.now(UTC), "group": "g", "key": "k", "source": "S"}
    return Delivery(id=f"{fence.id_text(ID)}-0", transaction_id=fence.id_text(ID), sequence=sequence, **fields | more)


def test_r6_first_statement_of_an_ordered_claim_locks_the_key() -> None:
    """Key row, its lock, then the numbers passed over, then last: so a holder whose lease has ended is judged like any other (R13)."""
    effects, claimed = play(inbox.claim_ordered(TABLES, delivery(missed=[4, 2, 9]), "g"), [[], [(2,)], [], []])
    assert named(effects) == ["key_put", "key_last", "missed_put", "key_set"]
    assert effects[2].args[-1] == 4  # type: ignore[union-attr]
    assert claimed is True


def test_r6_duplicate_writes_nothing() -> None:
    """A number that is not above last changes nothing."""
    effects, claimed = play(inbox.claim_ordered(TABLES, delivery(missed=[4]), "g"), [[], [(5,)]])
    assert (named(effects), claimed) == (["key_put", "key_last"], False)


@pytest.mark.parametrize("taken", [[], [(1,)]])
def test_r6_redriven_runs_only_if_it_was_missed(taken: list[Any]) -> None:
    """A redriven number below last runs once: taking its row from `missed` is the right to run, and last stays."""
    effects, claimed = play(inbox.claim_ordered(TABLES, delivery(3, redriven=True), "g"), [[], [(5,)], taken])
    assert (named(effects), claimed) == (["key_put", "key_last", "missed_take"], bool(taken))


def test_effects_are_plain_values() -> None:
    """Two of the same are equal, so a test may compare them."""
    assert (Begin(), Check(), Commit()) == (Begin(), Check(), Commit())
