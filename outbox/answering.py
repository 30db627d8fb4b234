"""What a check-back is told (R1, R3, R15, R28): final rows first, then the absent ones one by one, each ruled before it is answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final
from uuid import UUID

from halfmsg.checkback import Answer, Question, Verdict

from . import fence
from .effects import Rows, Steps
from .fence import COMMITTED, Fate
from .tables import Tables

BUDGET_S: Final = 4.0
_LOCKED_SQLSTATES: Final = {"55P03", "40P01", "40001"}


def as_answer(fate: Fate) -> Answer | None:
    if fate.verdict is None:
        return None
    if fate.verdict == COMMITTED:
        return Answer(Verdict.COMMITTED, fate.digest.hex(), list(fate.numbers))
    return Answer(Verdict.ROLLED_BACK)


def read_positive(tables: Tables, questions: Sequence[Question], in_time: Callable[[], bool]) -> Steps[tuple[bytes, dict[str, Answer]]]:
    """(which database this is now, the rows that are there, while there is time). A question for another database decides nothing (R7).

    Asked each time: behind one URL may stand another database tomorrow, and what this one says nothing of is no "rolled back".
    """
    source = (yield from fence.read_meta(tables)).source
    found: dict[str, Answer] = {}
    for question in questions:
        if not in_time():  # a database far away: what was found is an answer, and comes before the asker has gone (R28)
            break
        raw = raw_id(question.id)
        if raw is None or (question.source is not None and question.source != source.hex()):
            continue
        fate = yield from fence.read_fate(tables, raw)
        answer = as_answer(fate)
        if answer is not None:
            found[question.id] = answer
    return source, found


def rule(tables: Tables, question: Question, source: bytes | None) -> Steps[Answer | None]:
    """Lay the tombstone of an absent one; in a transaction of its own with a lock wait of 50 ms. None: nothing may be said (R3)."""
    raw = raw_id(question.id)
    if raw is None:
        return None
    return as_answer((yield from lay(tables, raw, question.mark, source)))


def lay(tables: Tables, id: bytes, mark: int, source: bytes | None) -> Steps[Fate]:
    """`fence.lay_tombstone` that waits 50 ms at most for who holds the row; on SQLite the connection's busy time is that.

    Raises UsageError(other_database) where this is not `source` (any more): what is absent there says nothing.
    """
    yield from fence.our_meta(tables, source)
    if tables.dialect == "postgresql":
        yield tables.sql("lock_wait")
    return (yield from fence.lay_tombstone(tables, id, mark))


def is_locked(error: BaseException) -> bool:
    """The local transaction with this fence row is still open: `running`, which costs no attempt."""
    text = str(error)
    return getattr(error, "sqlstate", None) in _LOCKED_SQLSTATES or "database is locked" in text or "database table is locked" in text


def raw_id(text: str) -> bytes | None:
    try:
        return UUID(text).bytes
    except ValueError:
        return None


def who_holds(tables: Tables, topic: str, key: str, sequence: int) -> Steps[str | None]:
    """The transaction that holds a number that has not arrived (R5)."""
    rows: Rows = yield tables.sql("who", topic, key.encode(), sequence)
    return fence.id_text(rows[0][0]) if rows else None
