"""What the coordinator refuses, and why: one exception, one table of codes.

A code is the same word on the wire, in the log and as a metric label. Whoever raises a `Problem` inside a transaction function
has stored nothing: the writer undoes that command alone (store/writer.py).
"""

from __future__ import annotations

from typing import Any, Final

DOC_URL: Final = "https://halfmsg.dev/errors/"

CODES: Final[dict[str, tuple[int, str]]] = {
    # code: HTTP status, title
    "bad_request": (400, "The request is not well-formed"),
    "unknown_field": (400, "The request has a field that is not known"),
    "bad_name": (400, "A name is not allowed"),
    "combination_refused": (400, "These two cannot be combined"),
    "transaction_not_found": (404, "No such transaction"),
    "topic_not_found": (404, "No such topic"),
    "group_not_found": (404, "No such consumer group"),
    "message_not_found": (404, "No such message"),
    "producer_not_found": (404, "No such producer"),
    "dead_letter_not_found": (404, "No such dead letter"),
    "not_found": (404, "No such resource"),
    "method_not_allowed": (405, "This resource has no such method"),
    "decided_otherwise": (409, "The first decision stands"),
    "content_differs": (409, "The same id came with other content"),
    "state_changed": (409, "The state is not the expected one"),
    "lease_lost": (409, "The lease has ended"),
    "out_of_order": (409, "An earlier message of the same key is still open"),
    "group_busy": (409, "The group has live members"),
    "wrong_source": (409, "Another database answers under this name"),
    "source_frozen": (409, "The producer's database went back in time"),
    "wrong_inbox": (409, "Another inbox database joins this group"),
    "forgotten": (409, "The id is older than what is remembered"),
    "stale_mark": (409, "The mark is older than what was told"),
    "too_large": (413, "A limit is passed"),
    "unsupported_media_type": (415, "The content type is not known here"),
    "incomplete_decision": (422, "A commit needs the digest and the numbers"),
    "no_way_to_ask": (422, "The producer has no URL and has never said hello"),
    "rate_limited": (429, "Too many requests"),
    "backlog_full": (429, "The topic is at its limit"),
    "too_many_in_doubt": (429, "The producer has too many half messages in doubt"),
    "row_damaged": (500, "What is stored of it is damaged"),
    "internal": (500, "A defect of the coordinator"),
    "not_supported": (501, "Known, but not built yet"),
    "overloaded": (503, "The coordinator's queue is full"),
    "draining": (503, "The coordinator is stopping"),
    "storage_unavailable": (503, "The store does not answer"),
    "no_group": (503, "The topic has no consumer group yet"),
    "outcome_unknown": (503, "The store did not answer a COMMIT"),
    "storage_full": (507, "The disk is full"),
}

RETRY_AFTER_S: Final[dict[str, int]] = {
    "rate_limited": 1,
    "backlog_full": 5,
    "too_many_in_doubt": 5,
    "overloaded": 1,
    "draining": 2,
    "storage_unavailable": 2,
    "no_group": 5,
    "outcome_unknown": 1,
    "storage_full": 10,
}


class Problem(Exception):
    """A refusal: stable `code`, its HTTP status, a detail for people, and members for programs. Nothing was stored."""

    def __init__(self, code: str, detail: str, **members: Any) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.members = members

    @property
    def status(self) -> int:
        return CODES[self.code][0]

    def body(self) -> dict[str, Any]:
        """RFC 9457 members; `Retry-After` is told beside them where waiting helps."""
        status, title = CODES[self.code]
        body: dict[str, Any] = {"type": DOC_URL + self.code, "title": title, "status": status, "detail": self.detail, "code": self.code}
        if self.code in RETRY_AFTER_S:
            body["retry_after_s"] = RETRY_AFTER_S[self.code]
        return body | self.members


class StartError(Exception):
    """The coordinator cannot start: one line with the cause, and the next command. `exit_code` by API §5."""

    def __init__(self, cause: str, remedy: str, exit_code: int = 1) -> None:
        super().__init__(f"{cause}. {remedy}")
        self.exit_code = exit_code
