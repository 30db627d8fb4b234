"""halfmsg: save an order and tell other services, as one thing.

The public names, loaded on first use (PEP 562): a consumer never loads the outbox, and nobody loads the server.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from halfmsg.checkback import Answer, Responder, Verdict
    from halfmsg.outbox import Fenced, Inbox, NotInTransaction, Outbox, Receipt
    from halfmsg.txclient import (
        ApiError,
        Busy,
        Client,
        Conflict,
        Consumer,
        Delivery,
        HalfmsgError,
        Message,
        Reject,
        Retry,
        SyncClient,
        Transaction,
        TransportError,
        UsageError,
    )

__version__ = "0.1.0"  # the one place: pyproject.toml reads it from here

__all__ = [
    "Answer",
    "ApiError",
    "Busy",
    "Client",
    "Conflict",
    "Consumer",
    "Delivery",
    "Fenced",
    "HalfmsgError",
    "Inbox",
    "Message",
    "NotInTransaction",
    "Outbox",
    "Receipt",
    "Reject",
    "Responder",
    "Retry",
    "SyncClient",
    "Transaction",
    "TransportError",
    "UsageError",
    "Verdict",
    "__version__",
]

_HOMES = {
    "halfmsg.checkback": ("Answer", "Responder", "Verdict"),
    "halfmsg.outbox": ("Fenced", "Inbox", "NotInTransaction", "Outbox", "Receipt"),
    "halfmsg.txclient": (
        "ApiError",
        "Busy",
        "Client",
        "Conflict",
        "Consumer",
        "Delivery",
        "HalfmsgError",
        "Message",
        "Reject",
        "Retry",
        "SyncClient",
        "Transaction",
        "TransportError",
        "UsageError",
    ),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'halfmsg' has no attribute {name!r}")
    found: object = getattr(import_module(home), name)
    globals()[name] = found  # the next look-up does not come here
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
