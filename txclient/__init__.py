"""halfmsg.txclient: talk to the coordinator. Knows no database."""

from ._client import Client
from ._consumer import Consumer
from ._delivery import Delivery, Reject, Retry
from ._digest import message_digest, transaction_digest
from ._ids import Ids
from ._message import Message, MessageOptions
from ._sync import SyncClient
from ._transaction import MessageState, State, Transaction
from ._units import Seconds
from .errors import ApiError, Busy, Conflict, HalfmsgError, TransportError, UsageError

__all__ = [
    "ApiError",
    "Busy",
    "Client",
    "Conflict",
    "Consumer",
    "Delivery",
    "HalfmsgError",
    "Ids",
    "Message",
    "MessageOptions",
    "MessageState",
    "Reject",
    "Retry",
    "Seconds",
    "State",
    "SyncClient",
    "Transaction",
    "TransportError",
    "UsageError",
    "message_digest",
    "transaction_digest",
]
