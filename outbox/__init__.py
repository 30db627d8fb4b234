"""halfmsg.outbox: publish inside your own transaction; take a message once inside your own transaction."""

from .block import AsyncTx, Block, SyncTx
from .errors import AlreadyCommitted, Fenced, NotInTransaction
from .half import Half
from .inbox import Inbox
from .outbox import AwaitsExecute, Outbox, Receipt

__all__ = [
    "AlreadyCommitted",
    "AsyncTx",
    "AwaitsExecute",
    "Block",
    "Fenced",
    "Half",
    "Inbox",
    "NotInTransaction",
    "Outbox",
    "Receipt",
    "SyncTx",
]
