"""The table of HTTP routes: method, path, the call behind it, what it takes and gives, which problems it knows."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from . import wire


class Route(Struct, frozen=True):
    method: str
    path: str
    call: str
    """Name of a method of `api_calls.Calls`."""
    summary: str
    takes: Any = None
    gives: Any = None
    status: int = 200
    codes: tuple[str, ...] = ()
    query: tuple[str, ...] = ()


_CONTENT = (
    "bad_request unknown_field bad_name combination_refused content_differs wrong_source stale_mark forgotten too_large topic_not_found "
    "producer_not_found no_way_to_ask backlog_full too_many_in_doubt no_group not_supported overloaded draining storage_full outcome_unknown"
)
_DECIDE = "bad_request transaction_not_found decided_otherwise content_differs incomplete_decision wrong_source outcome_unknown"
_SETTLE = "bad_request group_not_found"
_PAGE = ("limit", "cursor")
_REASON = ("reason",)


def _codes(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _not_built(method: str, path: str, summary: str) -> Route:
    """A name of docs/api.md that is known: refused as such, before its body is looked at."""
    return Route(method, path, "not_built", f"{summary} (not built yet)", codes=("not_supported",))


ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/v1/transactions",
        "put_transaction",
        "Prepare, or with state committed submit",
        wire.TransactionIn,
        wire.TransactionOut,
        201,
        _codes(_CONTENT),
    ),
    Route(
        "GET",
        "/v1/transactions",
        "list_transactions",
        "Transactions, oldest first; with order=newest the other way",
        None,
        None,
        200,
        _codes("bad_request producer_not_found not_supported"),
        ("state", "producer", "topic", "key", "older_than_s", "order", *_PAGE),
    ),
    Route(
        "GET",
        "/v1/transactions/{id}",
        "get_transaction",
        "One life, in order; with wait_s not before it is decided",
        None,
        wire.TransactionOut,
        200,
        _codes("bad_request transaction_not_found not_supported"),
        ("wait_s", "until"),
    ),
    Route(
        "POST",
        "/v1/transactions/{id}/commit",
        "commit",
        "Commit; with force an operator's decision",
        wire.CommitIn,
        wire.TransactionOut,
        200,
        _codes(_DECIDE),
    ),
    Route(
        "POST",
        "/v1/transactions/{id}/rollback",
        "rollback",
        "Roll back; with force an operator's decision",
        wire.RollbackIn,
        wire.TransactionOut,
        200,
        _codes(_DECIDE),
    ),
    Route(
        "POST",
        "/v1/transactions/{id}/check",
        "check_transaction",
        "Ask the producer now",
        None,
        None,
        202,
        _codes("transaction_not_found state_changed"),
    ),
    Route(
        "POST",
        "/v1/transactions/{id}/park",
        "park",
        "Stop asking for now",
        wire.ParkIn,
        wire.TransactionOut,
        200,
        _codes("bad_request transaction_not_found state_changed decided_otherwise"),
    ),
    Route("POST", "/v1/batch", "batch", "Up to 1,000 operations, each its own", wire.BatchIn, None, 200, _codes("bad_request too_large overloaded")),
    Route("GET", "/v1/topics", "list_topics", "Topics", None, None, 200, (), _PAGE),
    Route("GET", "/v1/topics/{topic}", "get_topic", "One topic", None, None, 200, _codes("topic_not_found")),
    Route("PUT", "/v1/topics/{topic}", "put_topic", "Make or change a topic", wire.TopicIn, None, 200, _codes("bad_name state_changed")),
    Route(
        "DELETE",
        "/v1/topics/{topic}",
        "delete_topic",
        "Remove a topic that nobody needs",
        None,
        None,
        204,
        _codes("topic_not_found group_busy state_changed"),
        _REASON,
    ),
    Route("POST", "/v1/topics/{topic}/messages", "send", "One committed message, tied to no database", wire.PlainSend, None, 201, _codes(_CONTENT)),
    Route(
        "GET",
        "/v1/topics/{topic}/messages",
        "look",
        "Look at released messages; takes nothing",
        None,
        None,
        200,
        _codes("topic_not_found bad_request not_supported"),
        ("lane", "from_offset", "from_time", "key", *_PAGE),
    ),
    Route(
        "GET",
        "/v1/topics/{topic}/dead-letters",
        "topic_dead_letters",
        "Dead letters of the topic itself",
        None,
        None,
        200,
        _codes("topic_not_found"),
        _PAGE,
    ),
    Route(
        "GET",
        "/v1/topics/{topic}/keys/{key}",
        "get_key",
        "An ordering key: next number, held, gap",
        None,
        None,
        200,
        _codes("topic_not_found combination_refused"),
    ),
    _not_built("POST", "/v1/topics/{topic}/keys/{key}/skip", "Skip a gap"),
    Route(
        "GET",
        "/v1/keys",
        "list_keys",
        "Keys that wait for a number; with group, behind a failed message",
        None,
        None,
        200,
        (),
        ("topic", "group", *_PAGE),
    ),
    Route(
        "GET",
        "/v1/messages/{id}",
        "get_message",
        "A released message and who got it",
        None,
        wire.DeliveryOut,
        200,
        _codes("bad_request message_not_found"),
    ),
    Route("GET", "/v1/groups", "list_groups", "Consumer groups", None, None, 200, (), _PAGE),
    Route("GET", "/v1/groups/{group}", "get_group", "One group: lag, members, blocked keys", None, None, 200, _codes("group_not_found")),
    Route(
        "PUT",
        "/v1/groups/{group}",
        "put_group",
        "Make a group",
        wire.GroupIn,
        None,
        200,
        _codes("bad_name topic_not_found state_changed not_supported"),
    ),
    Route("DELETE", "/v1/groups/{group}", "delete_group", "Remove a group", None, None, 204, _codes("group_not_found group_busy"), _REASON),
    Route(
        "POST",
        "/v1/groups/{group}/fetch",
        "fetch",
        "Take messages under a lease; long poll",
        wire.FetchIn,
        wire.DeliveriesOut,
        200,
        _codes("group_not_found wrong_inbox"),
    ),
    Route("POST", "/v1/groups/{group}/ack", "ack", "Done", wire.AckIn, None, 200, _codes(_SETTLE)),
    Route("POST", "/v1/groups/{group}/nack", "nack", "Not now: back-off, then again", wire.NackIn, None, 200, _codes(_SETTLE)),
    Route("POST", "/v1/groups/{group}/reject", "reject", "Never: to the dead letters", wire.RejectIn, None, 200, _codes(_SETTLE)),
    Route("POST", "/v1/groups/{group}/extend", "extend", "A longer lease", wire.ExtendIn, None, 200, _codes(_SETTLE)),
    Route("POST", "/v1/groups/{group}/pause", "pause", "Hand out nothing", None, None, 200, _codes("group_not_found")),
    Route("POST", "/v1/groups/{group}/resume", "resume", "Hand out again", None, None, 200, _codes("group_not_found")),
    _not_built("POST", "/v1/groups/{group}/seek", "Replay or skip"),
    Route("GET", "/v1/groups/{group}/dead-letters", "dead_letters", "Dead letters of a group", None, None, 200, _codes("group_not_found"), _PAGE),
    Route(
        "GET",
        "/v1/groups/{group}/dead-letters/{id}",
        "dead_letter",
        "One dead letter",
        None,
        None,
        200,
        _codes("group_not_found dead_letter_not_found"),
    ),
    _not_built("DELETE", "/v1/groups/{group}/dead-letters/{id}", "Drop a dead letter"),
    _not_built("POST", "/v1/groups/{group}/dead-letters/redrive", "Put dead letters back"),
    _not_built("GET", "/v1/tasks/{id}", "A background act of an operator"),
    _not_built("POST", "/v1/tasks/{id}/cancel", "End a background act"),
    Route("GET", "/v1/producers", "list_producers", "Producers: who is asked", None, None, 200, (), _PAGE),
    Route("GET", "/v1/producers/{producer}", "get_producer", "One producer", None, None, 200, _codes("producer_not_found")),
    Route(
        "PUT",
        "/v1/producers/{producer}",
        "put_producer",
        "Make or change a producer; the answer that draws its secret shows it, once",
        wire.ProducerIn,
        None,
        200,
        _codes("bad_name bad_request not_supported"),
    ),
    Route(
        "DELETE",
        "/v1/producers/{producer}",
        "delete_producer",
        "Remove a producer",
        None,
        None,
        204,
        _codes("producer_not_found state_changed"),
        _REASON,
    ),
    Route(
        "POST",
        "/v1/producers/{producer}/check",
        "check_producer",
        "Ask about these transactions now",
        wire.CheckIn,
        None,
        200,
        _codes("producer_not_found transaction_not_found"),
    ),
    _not_built("POST", "/v1/producers/{producer}/rotate-secret", "A second check secret"),
    _not_built("GET", "/v1/sinks", "Outside brokers"),
    _not_built("PUT", "/v1/sinks/{sink}", "Make or change a sink"),
    _not_built("GET", "/v1/tokens", "Access tokens"),
    _not_built("POST", "/v1/tokens", "Make an access token"),
    _not_built("GET", "/v1/audit", "Acts of operators"),
    _not_built("GET", "/console", "The web console"),
    Route("GET", "/v1/conflicts", "list_conflicts", "Contrary words about decided transactions", None, None, 200, (), _PAGE),
    Route("GET", "/v1/info", "info", "Limits, features, versions", None, None),
    Route("GET", "/v1/doctor", "doctor", "The invariants, as SQL", None, None),
)
