"""The words of a check-back on the producer's side: question, answer, verdict. Values only.

Source: API §3. Who implements `Decides` must never guess: an id that it leaves out costs nothing, a wrong
"rolled_back" loses messages (P5).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol


class Verdict(StrEnum):
    """What a producer may say about one of its transactions."""

    COMMITTED = "committed"
    """Its local transaction is committed: final."""
    ROLLED_BACK = "rolled_back"
    """A later local commit has become impossible: final, and never said without that proof (P5)."""
    RUNNING = "running"
    """The fence row is locked: not decided yet. Costs no attempt."""
    UNKNOWN = "unknown"
    """Asked and could not say. Costs an attempt; a fence never says it (R15)."""


class Question(NamedTuple):
    """One transaction that the coordinator asks about."""

    id: str
    mark: int
    """The transaction's mark, integer ms: below the database's `purged_before`, an absent row proves nothing (R3)."""
    source: str | None
    """The database that is meant, 32 hex; another database must not decide (R7). None: the coordinator knows none."""


class Answer(NamedTuple):
    """One verdict. `committed` needs the digest, and the numbers of what is numbered, by index (R5)."""

    verdict: Verdict
    digest: str | None = None
    numbers: Sequence[int | None] | None = None


class Missing(NamedTuple):
    """A number of an ordered key that has not arrived; the coordinator asks who holds it (R5)."""

    topic: str
    key: str
    sequence: int


class Reply(NamedTuple):
    """What a mount sends back, for any framework."""

    status: int
    headers: Mapping[str, str]
    body: bytes


Questions = Sequence[Question]
Answers = Mapping[str, Answer]
"""By id; an id left out is `no_answer`, which costs nothing."""
Holders = Mapping[Missing, str | None]
"""Who holds a missing number: a transaction's id, or None for nobody; one left out is not answered."""


class Decides(Protocol):
    """Answers from a database. `Outbox` fits; so does anything of yours that never guesses.

    Two optional members are used where they exist: `source_id` (32 hex or None), the id of the database that answers,
    and `holders(missing)`, sync or async, giving `Holders`.
    """

    def decide(self, questions: Questions, /) -> Answers | Awaitable[Answers]: ...


DecideFunction = Callable[[Questions], Answers | Awaitable[Answers]]
HoldersFunction = Callable[[Sequence[Missing]], Holders | Awaitable[Holders]]
