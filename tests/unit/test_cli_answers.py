"""What the command line makes of a coordinator's answer, or of none: what an operator reads."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from halfmsg.coordinator.cli import http as remote
from tests.support.stores import open_sqlite

from .canned import ask, run

pytestmark = pytest.mark.usefixtures("no_environment")


@pytest.mark.parametrize(("words", "then"), [("tx ls", "Look at its log"), ("tx park X --reason r", "look before you repeat")])
def test_a_coordinator_that_stands_still_is_waited_for_aloud_and_not_for_long(monkeypatch: pytest.MonkeyPatch, words: str, then: str) -> None:
    """A connection is taken by the kernel also of a process that is stopped; a look ends sooner than an act, which may have been done."""
    assert remote.NOTICE_S < remote.READ_TIMEOUT_S < remote.ACT_TIMEOUT_S
    for name, seconds in (("NOTICE_S", 0.01), ("READ_TIMEOUT_S", 0.3), ("ACT_TIMEOUT_S", 0.4)):
        monkeypatch.setattr(remote, name, seconds)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        done = run(*words.split(), "--url", f"http://127.0.0.1:{deaf.getsockname()[1]}")
    limit_s = 0.3 if words == "tx ls" else 0.4
    assert done.exit_code == 3
    assert f"has not answered for 0.01 s; waiting up to {limit_s} s" in done.stderr
    assert f"did not answer within {limit_s} s" in done.stderr and then in done.stderr


def test_tx_ls_names_what_it_passes_over(canned: Any) -> None:
    """On stderr, with the next command; stdout has rows only."""
    done = ask(canned, "tx", "ls", body={"items": [], "next": None, "damaged": [{"n": 7, "id": "018f"}]})
    assert (done.exit_code, done.stdout) == (0, "")
    assert "damaged: 018f, the row of transaction number 7, is passed over. Look: halfmsg doctor" in done.stderr


def test_a_key_that_waits_is_shown_with_for_how_long(canned: Any) -> None:
    """HTTP says `since_s`; a key that waits for nothing has none."""
    waits = {"topic": "t", "key": "k", "next": 5, "held": [6, 7], "since_s": 372.4, "holder": "nobody", "undecided": ["018f"], "damaged": [9]}
    goes_on = {"topic": "t", "key": "j", "next": 2}
    for words in (("key", "ls"), ("key", "show", "t", "k")):
        done = ask(canned, *words, body={"items": [waits, goes_on]})
        assert done.stdout.splitlines() == [
            "t\tk\t-\twaits for 5, has 6,7\t6m12s\tnobody\t018f,number 9 (damaged: halfmsg doctor)",
            "t\tj\t-\tnext 2\t-\t-\t-",
        ]


def test_a_key_that_its_group_failed_is_shown_with_why(canned: Any) -> None:
    """The number that it waits for is not what holds it up."""
    item = {"topic": "t", "key": "k", "next": 9, "blocked": {"attempts": 3, "due": 1, "error": "no stock", "waiting": 5}}
    done = ask(canned, "key", "ls", "--group", "g", body={"items": [item]})
    assert done.stdout.split("\t")[3] == "failed 3x (no stock), 5 wait behind it"


def test_a_plain_send_is_listed_as_one(canned: Any) -> None:
    """Nobody decided it: it is visible when it is stored."""
    item = {"id": "018f", "state": "committed", "decided_by": "producer", "prepared_at": "2026-01-01T00:00:00Z"}
    assert ask(canned, "tx", "ls", body={"items": [item]}).stdout.rstrip().endswith("\tplain send")
    assert ask(canned, "tx", "ls", body={"items": [item | {"producer": "orders"}]}).stdout.rstrip().endswith("\tby producer")


def test_a_dead_letter_of_a_topic_is_shown(canned: Any) -> None:
    """Of the topic itself: a number taken, a damaged body. Its neighbour is not taken for it."""
    item = {"id": 7, "topic": "t", "reason": "number_taken", "message_id": None, "history": "why"}
    done = ask(canned, "dlq", "show", "7", "--topic", "t", body={"items": [item], "next": None})
    assert done.exit_code == 0 and "number_taken" in done.stdout and "  why" in done.stdout
    assert canned.asked[-1][1] == "/v1/topics/t/dead-letters?cursor=6&limit=1"
    done = ask(canned, "dlq", "show", "6", "--topic", "t", body={"items": [item], "next": None})
    assert done.exit_code == 1 and "halfmsg dlq ls --topic t" in done.output
    for words in ((), ("--topic", "t", "--group", "g")):
        assert ask(canned, "dlq", "show", "7", *words).exit_code == 2


@pytest.mark.parametrize(("stored", "told"), [("latest", True), ("earliest", False)])
def test_a_group_that_keeps_another_start_says_so(canned: Any, stored: str, told: bool) -> None:
    """The same again is fine; what was asked for and is not done is said."""
    done = ask(canned, "group", "create", "g", "--topic", "t", body={"name": "g", "start": stored})
    assert done.exit_code == 0
    assert ("g was made with start latest and keeps its place: --start earliest changes nothing" in done.stderr) == told


def test_rows_of_doctor_are_read_without_python(canned: Any) -> None:
    """Ids as other commands take them, and a text that says all by itself has no name before it."""
    rows = [{"message": "018f-0", "m": 7, "topic": None}, {"n": 1, "id": "0A" * 16}, {"next": "Keep a copy"}, {"error": "malformed"}]
    done = ask(canned, "doctor", body={"items": [{"name": "x", "ok": False, "meaning": "bad", "rows": rows}]})
    assert [line.strip() for line in done.stdout.splitlines()[-4:]] == [
        "message=018f-0  m=7  topic=-", "n=1  id=0a0a0a0a-0a0a-0a0a-0a0a-0a0a0a0a0a0a", "Keep a copy", "malformed"]  # fmt: skip


def test_another_namespace_than_the_one_there_is_is_refused(canned: Any) -> None:
    """What is meant for staging must not be done elsewhere."""
    done = ask(canned, "tx", "ls", body={"items": []}, env={"HALFMSG_NAMESPACE": "staging"})
    assert done.exit_code == 2 and "HALFMSG_NAMESPACE=staging" in done.output and canned.asked == []
    for same in ("default", ""):
        assert ask(canned, "tx", "ls", body={"items": []}, env={"HALFMSG_NAMESPACE": same}).exit_code == 0


@pytest.mark.parametrize(
    ("args", "environment", "store"),
    [
        ([], {}, "of_toml.db"),
        (["--config", "other.toml"], {}, "of_other.db"),
        ([], {"HALFMSG_STORE": "of_env.db"}, "of_env.db"),
        (["--set", "store=of_set.db"], {"HALFMSG_STORE": "of_env.db"}, "of_set.db"),
        (["--store", "of_flag.db", "--set", "store=of_set.db"], {"HALFMSG_STORE": "of_env.db"}, "of_flag.db"),
    ],
)
def test_backup_is_of_the_store_that_serve_would_open(tmp_path: Path, args: list[str], environment: dict[str, str], store: str) -> None:
    """A nightly copy of another file would be noticed on the day that it is needed."""
    (tmp_path / "halfmsg.toml").write_text('store = "of_toml.db"\n')
    (tmp_path / "other.toml").write_text('store = "of_other.db"\n')
    done = run("backup", "copy.db", *args, env=environment)
    assert done.exit_code == 1 and f"there is no file {store}" in done.output
    open_sqlite(tmp_path / store).close()
    assert run("backup", "copy.db", *args, env=environment).exit_code == 0
    assert (tmp_path / "copy.db").exists()
