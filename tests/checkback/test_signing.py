"""Signatures of Standard Webhooks, with the reference library as the oracle, both ways."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook

from halfmsg.checkback import signing
from tests.checkback.fakes import OTHER_SECRET, SECRET

NOW = datetime.now(UTC).timestamp()  # the oracle reads the real clock
BODY = b'{"type":"check"}'


def test_oracle_accepts_what_we_sign() -> None:
    """A producer may verify our question with the reference library."""
    Webhook(SECRET).verify(BODY, signing.sign([SECRET], "msg_1", NOW, BODY))


def test_oracle_accepts_either_secret_while_rotating() -> None:
    """Signed with both, it is good for who knows only one of them."""
    headers = signing.sign([OTHER_SECRET, SECRET], "msg_1", NOW, BODY)
    Webhook(SECRET).verify(BODY, headers)
    Webhook(OTHER_SECRET).verify(BODY, headers)


@given(body=st.text(max_size=100), message_id=st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True))
def test_we_accept_what_the_oracle_signs(body: str, message_id: str) -> None:
    """A producer may sign its answer with the reference library."""
    signature = Webhook(SECRET).sign(message_id, datetime.fromtimestamp(NOW, UTC), body)
    headers = {"Webhook-Id": message_id, "Webhook-Timestamp": str(int(NOW)), "WEBHOOK-SIGNATURE": signature}
    assert signing.verify([OTHER_SECRET, SECRET], headers, body.encode(), NOW)
    assert not signing.verify([OTHER_SECRET], headers, body.encode(), NOW)


@pytest.mark.parametrize(("skew_s", "good"), [(0, True), (300, True), (-300, True), (301, False), (-301, False)])
def test_time_stamp_counts_within_five_minutes_either_way(skew_s: int, good: bool) -> None:
    """A recorded request is worth five minutes, at the edge and not past it."""
    whole = int(NOW)
    assert signing.verify([SECRET], signing.sign([SECRET], "m", whole, BODY), BODY, whole + skew_s) is good


@pytest.mark.parametrize("name", [signing.ID, signing.TIMESTAMP, signing.SIGNATURE])
@pytest.mark.parametrize("value", [None, "", "x", "٣", "²", "-1", "1e9", "9" * 5000, "v1,", "v1,é", "v1,\udcff", "v2,abc", " ", "\0"])
def test_malformed_header_is_false_and_never_an_error(name: str, value: str | None) -> None:
    """An attack is a False, not a 500."""
    headers = {key: text for key, text in signing.sign([SECRET], "m", NOW, BODY).items() if key != name}
    assert not signing.verify([SECRET], headers if value is None else headers | {name: value}, BODY, NOW)


@given(
    headers=st.dictionaries(st.sampled_from([signing.ID, signing.TIMESTAMP, signing.SIGNATURE, "x"]), st.text(max_size=30)),
    body=st.binary(max_size=30),
)
def test_anything_at_all_is_false(headers: dict[str, str], body: bytes) -> None:
    """No headers and no bytes make it raise, or pass."""
    assert signing.verify([SECRET], headers, body, NOW) is False


def test_change_of_one_byte_breaks_the_signature() -> None:
    """Body, id and time are all signed."""
    headers = signing.sign([SECRET], "m", NOW, BODY)
    assert not signing.verify([SECRET], headers, BODY + b" ", NOW)
    assert not signing.verify([SECRET], headers | {signing.ID: "n"}, BODY, NOW)
    assert not signing.verify([SECRET], headers | {signing.TIMESTAMP: str(int(NOW) - 1)}, BODY, NOW)


def test_one_good_signature_among_others_is_enough() -> None:
    """Unknown schemes and foreign signatures beside ours do no harm."""
    headers = signing.sign([SECRET], "m", NOW, BODY)
    headers[signing.SIGNATURE] = f"v1a,zzzz v1,AAAA {headers[signing.SIGNATURE]}"
    assert signing.verify([SECRET], headers, BODY, NOW)


def test_no_secret_signs_nothing_and_verifies_nothing() -> None:
    """An empty list of secrets accepts nobody."""
    assert signing.sign([], "m", NOW, BODY) == {}
    assert not signing.verify([], signing.sign([SECRET], "m", NOW, BODY), BODY, NOW)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_QUJD", "whsec_!!!!", "whsec_é", "whsk_" + "QUJD" * 8, "whsec_" + "QUJD" * 22])
def test_malformed_secret_is_refused_without_being_shown(secret: str) -> None:
    """Refused when it is configured; when it verifies, it just never matches."""
    with pytest.raises(ValueError, match="halfmsg producer set NAME --check-url URL") as raised:
        signing.check_secrets([secret])
    assert "QUJD" not in str(raised.value)
    assert not signing.verify([secret], signing.sign([SECRET], "m", NOW, BODY), BODY, NOW)


def test_secrets_come_as_one_several_or_none() -> None:
    """A single string is one secret, not a sequence of letters."""
    assert signing.check_secrets(SECRET) == (SECRET,)
    assert signing.check_secrets([SECRET, OTHER_SECRET]) == (SECRET, OTHER_SECRET)
    assert signing.check_secrets(None) == ()
