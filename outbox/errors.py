"""What can go wrong beside a local transaction. A driver's own errors are never wrapped: people have retry code for them."""

from __future__ import annotations

from halfmsg.txclient import HalfmsgError, UsageError


class NotInTransaction(UsageError):
    """No transaction is open on what was handed in, or it is in autocommit: the message could not share its fate."""

    def __init__(self, text: str) -> None:
        super().__init__("not_in_transaction", text)


class TransactionEnded(UsageError):
    """The transaction of a block was committed or rolled back inside it. What was written after that is undone, where it could be."""

    def __init__(self, text: str = "the transaction of this block was committed or rolled back inside it; leave that to the block") -> None:
        super().__init__("transaction_ended", text)


class Fenced(HalfmsgError):
    """Too late: a check-back has already ruled "rolled back". Your transaction is ended; run it anew, with a new id (R8)."""

    def __init__(self, text: str = "a check-back has ruled that this transaction is rolled back; run it anew") -> None:
        super().__init__("fenced", text)


class AlreadyCommitted(HalfmsgError):
    """The transaction of this id stands committed: do not run it again (R8, R26)."""

    def __init__(self, text: str = "the transaction of this id is committed; do not run it again") -> None:
        super().__init__("already_committed", text)
