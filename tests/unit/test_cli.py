"""The command line: quick help, honest errors with exit codes, settings by precedence, and a tour against a real coordinator."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from halfmsg.coordinator import doctor
from halfmsg.coordinator.cli import COMMANDS, cli, common, publish, tail
from halfmsg.coordinator.cli import http as remote
from halfmsg.coordinator.cli.tx import COLUMNS
from halfmsg.coordinator.errors import CODES

from .canned import ask, run

pytestmark = pytest.mark.usefixtures("no_environment")
HELP_S_MAX = 0.150


# --- help ---


def test_help_is_quick_and_loads_neither_server_nor_tables() -> None:
    """A command that takes a second to say its name is not used. Best of five of its time on a processor, against an empty interpreter's:
    others on the machine may make it wait.
    """
    code = (
        "import sys, time\n"
        "from halfmsg.coordinator.cli import cli\n"
        "try: cli.main(['--help'], prog_name='halfmsg')\n"
        "except SystemExit: pass\n"
        "heavy = [name for name in ('aiohttp', 'rich', 'msgspec', 'asyncio', 'prometheus_client') if name in sys.modules]\n"
        "print(heavy, time.process_time())"
    )
    took, empty = [], []
    for _ in range(5):
        empty.append(float(_said("import time; print(time.process_time())")))
        heavy, _, spent = _said(code).rpartition(" ")
        assert heavy == "[]"
        took.append(float(spent))
    assert min(took) < max(HELP_S_MAX, 4 * min(empty))


def _said(code: str) -> str:
    """The last line of an interpreter of its own."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.splitlines()[-1]


def _paths(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        ctx = click.Context(command)
        for name in command.list_commands(ctx):
            inner = command.get_command(ctx, name)
            assert inner is not None
            yield from _paths(inner, (*path, name))


def test_every_command_has_help() -> None:
    """Each noun and verb loads, and says in a line what it does."""
    paths = list(_paths(cli, ()))
    assert len(paths) > 40
    for path in paths:
        done = run(*path, "--help")
        assert done.exit_code == 0, (path, done.output)
        assert len(done.output.splitlines()) > 3, path


def test_the_table_of_commands_says_what_the_commands_say() -> None:
    """Help shows the table and loads nothing, so the two lines must not drift apart in number."""
    for name, (module, attribute, line) in COMMANDS.items():
        assert line.endswith(".") and module and attribute, name


@pytest.mark.parametrize(
    "words",
    ["group seek inventory --to earliest", "key skip t k --to 3", "dlq redrive --group g", "dlq drop 3", "token create --scope x", "sink ls", "audit",
     "migrate --check", "producer rotate-secret p", "outbox drop URL", "consume a:b"],
)  # fmt: skip
def test_what_is_known_and_not_built_says_so_by_name(words: str) -> None:
    """A misspelt command and a missing one are two answers."""
    done = run(*words.split())
    assert done.exit_code == 2
    assert "not built yet" in done.output
    assert words.partition(" ")[0] in done.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("ls nonsense", "halfmsg: 'nonsense' is not known here; there are sqlite:///FILE and postgresql://… (unknown_database)\n"),
        ("resend sqlite:///x.db --since now", "halfmsg: --since 'now' is not a time such as 2026-11-21T15:13:16.412Z. "
         "`halfmsg restore` prints the right one\n"),
    ],
)  # fmt: skip
def test_what_outbox_commands_refuse_is_a_line_for_people(words: str, told: str) -> None:
    """Without the name of a Python class."""
    done = run("outbox", *words.split())
    assert (done.exit_code, done.stderr) == (2, told)


def test_an_unknown_command_is_wrong_usage() -> None:
    assert run("nonsense").exit_code == 2


def test_a_misspelt_command_is_told_the_near_one() -> None:
    for words, near in (("pubish t x", "'publish'"), ("tx list", "'ls'")):
        done = run(*words.split())
        assert done.exit_code == 2 and f"Did you mean {near}?" in done.stderr


# --- settings ---


def test_settings_come_from_flag_then_environment_then_file_then_default(tmp_path: Path) -> None:
    """Each value is shown with the place that it comes from."""
    (tmp_path / "halfmsg.toml").write_text('drain_s = 3\nlisten = "127.0.0.1:1"\nstore = "file.db"\n[check]\nfirst_delay_s = 9\n')
    environment = {"HALFMSG_LISTEN": "127.0.0.1:2", "HALFMSG_CHECK__FIRST_DELAY_S": "8", "HALFMSG_STORE": "env.db"}
    done = run("config", "show", "--json", "--set", "listen=127.0.0.1:3", env=environment)
    assert done.exit_code == 0, done.output
    found = {item["name"]: (item["value"], item["origin"]) for item in map(json.loads, done.output.splitlines())}
    assert found["listen"] == ("127.0.0.1:3", "flag")
    assert found["store"] == ("env.db", "HALFMSG_STORE")
    assert found["check.first_delay_s"] == (8.0, "HALFMSG_CHECK__FIRST_DELAY_S")
    assert found["drain_s"] == (3.0, "halfmsg.toml")
    assert found["group.lease_s"] == (30.0, "default")


@pytest.mark.parametrize(
    ("args", "environment", "word"),
    [
        (["--set", "check.first_dealy_s=1"], {}, "first_dealy_s"),
        ([], {"HALFMSG_CHEKC__X": "1"}, "chekc"),
        (["--set", "listen=0.0.0.0:7610"], {}, "--insecure"),
        (["--set", "listen=nowhere"], {}, "HOST:PORT"),
        (["--set", "storage.synchronous=NORMAL"], {}, "i_accept_loss"),
        (["--set", "storage.synchronous=OFF"], {}, "It is one of FULL, NORMAL, EXTRA"),
        (["--set", "group.backoff_first_s=700"], {}, "group.backoff_max_s"),
        (["--set", "callback.allow=a b"], {}, "callback.allow"),
        ([], {"HALFMSG_OUTBOX__PREPARE_TIMEOUT_S": "1"}, "Outbox(..., prepare_timeout_s=...)"),
        (["--set", "inbox.keep_s=1"], {}, "Inbox(..., keep=...)"),
        (["--set", "oops"], {}, "name=value"),
        (["--config", "missing.toml"], {}, "missing.toml"),
        ([], {"HALFMSG_STORE_FILE": "/nowhere/at/all"}, "/nowhere/at/all"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_name(args: list[str], environment: dict[str, str], word: str) -> None:
    """Exit code 2, one line, the culprit and the way out; `serve` refuses the same ones before it touches anything."""
    for command in (["config", "check"], ["serve"]):
        done = run(*command, *args, env=environment)
        assert done.exit_code == 2, done.output
        assert word in done.output
        assert "Traceback" not in done.output


def test_an_unknown_fail_point_is_refused() -> None:
    """A harness that waits for what cannot fire would wait for ever."""
    done = run("serve", env={"HALFMSG_FAILPOINTS": "nonsense@2"})
    assert done.exit_code == 2
    assert "nonsense" in done.output


# --- answers of a coordinator ---


def test_nobody_there_is_exit_code_3_with_the_next_command() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        taken_port = taken.getsockname()[1]
        done = run("tx", "ls", "--url", f"http://127.0.0.1:{taken_port}")
    assert done.exit_code == 3
    assert f"http://127.0.0.1:{taken_port} (" in done.output and "--url or HALFMSG_URL" in done.output
    assert done.output.index("HALFMSG_URL") < done.output.index("halfmsg serve --store FILE") and "--dev" not in done.output


@pytest.mark.parametrize("code", [code for code, (status, _) in CODES.items() if status != 405])
def test_every_error_code_has_an_exit_code(canned: Any, code: str) -> None:
    """Scripts tell "no" from "not now" from "not you"."""
    status = CODES[code][0]
    done = ask(canned, "tx", "show", "x", status=status, body={"code": code, "detail": "because", "status": status})
    expected = {400: 2, 401: 4, 403: 4, 404: 1, 409: 5, 413: 2, 415: 2, 422: 2, 429: 75, 500: 1, 501: 2, 503: 75, 507: 75}[status]
    assert done.exit_code == expected
    assert "because" in done.output and code in done.output


def test_a_decision_that_stands_is_told_with_who_and_when(canned: Any) -> None:
    """P4: exit code 5, and the decision that won."""
    decided = {"id": "018f", "state": "rolled_back", "decided_by": "check_back", "decided_at": "2026-11-21T12:04:07.000Z"}
    body = {"code": "decided_otherwise", "detail": "the first decision stands", "transaction": decided}
    done = ask(canned, "tx", "commit", "018f", "--reason", "seen in orders", status=409, body=body)
    assert done.exit_code == 5
    assert "already rolled_back by check_back at 2026-11-21T12:04:07" in done.output


def test_an_act_sends_its_reason_and_v_prints_the_call(canned: Any) -> None:
    """What -v prints can be typed elsewhere."""
    done = ask(canned, "tx", "park", "018f", "--reason", "away", "-v", body={"id": "018f", "state": "parked"})
    assert (done.exit_code, canned.asked) == (0, [("POST", "/v1/transactions/018f/park", b'{"reason": "away"}')])
    assert "POST http" in done.stderr and '{"reason": "away"}' in done.stderr
    assert done.stdout == "018f  -> parked\n"


def test_an_operator_decides_by_force_and_with_a_reason(canned: Any) -> None:
    """R4: no force without a reason; numbers go with it."""
    assert ask(canned, "tx", "commit", "018f").exit_code == 2
    args = ("tx", "commit", "018f", "--reason", "r", "--if-state", "parked", "--numbers", "5,-")
    assert ask(canned, *args, body={"id": "018f", "state": "committed", "decided_by": "operator"}).exit_code == 0
    assert json.loads(canned.asked[-1][2]) == {"force": True, "reason": "r", "if_state": "parked", "numbers": [5, None]}
    assert ask(canned, "tx", "commit", "018f", "--reason", "r", "--numbers", "x").exit_code == 2


def test_tx_ls_goes_on_over_empty_pages(canned: Any) -> None:
    """The coordinator looks at a bounded number a page: what is in doubt behind them is shown without a second command."""
    pages = [{"items": [], "next": "20000"}, {"items": [{"id": "018f", "state": "prepared", "prepared_at": "2026-01-01T00:00:00Z"}], "next": None}]
    canned.bodies = [json.dumps(page).encode() for page in pages]
    assert json.loads(ask(canned, "tx", "ls", "--state", "prepared", "--newest", "--json").stdout)["id"] == "018f"
    assert [path.partition("?")[2] for _, path, _ in canned.asked[-2:]] == [
        "state=prepared&limit=100&order=newest", "state=prepared&limit=100&cursor=20000&order=newest"]  # fmt: skip


def test_another_service_on_the_port_is_said(canned: Any) -> None:
    """A web page instead of JSON is no coordinator."""
    assert ask(canned, "topic", "ls", body=b"<html>").exit_code == 3
    assert ask(canned, "topic", "ls", body=b"<html>", status=404).exit_code == 1


def test_lists_are_json_lines_or_plain_lines_and_tell_the_next_page(canned: Any) -> None:
    """No frame in a pipe; stdout has rows only."""
    group = {"name": "g", "topics": [{"topic": "t"}], "lag": 12, "paused": False}
    done = ask(canned, "group", "ls", "--json", "--limit", "1", "--cursor", "a b", body={"items": [group], "next": "g"})
    assert json.loads(done.stdout) == group
    assert done.stderr == "more: --cursor g\n"
    assert canned.asked[-1][1] == "/v1/groups?limit=1&cursor=a+b"
    done = ask(canned, "group", "ls", body={"items": [group], "next": None})
    assert done.stdout == "g\tt\t12\t-\t-\t-\t-\t-\tno\n"
    done = ask(canned, "group", "ls", body={"items": [], "next": None})
    assert (done.stdout, done.exit_code) == ("", 0)


def test_an_id_is_on_one_line_of_a_narrow_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is copied into the next command; the other columns give way."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    id = "01a22855-43dc-7039-9bcc-18b76b733a2d"
    item = {"id": id, "state": "rolled_back", "prepared_at": "2026-01-01T00:00:00Z", "producer": "a-service", "messages": [{"topic": "t" * 40}]}
    common.rows([item], COLUMNS, as_json=False, empty="")
    shown = capsys.readouterr().out
    assert id in shown and "rolled_back" in shown and "t" * 40 not in shown


def test_names_are_quoted_in_paths(canned: Any) -> None:
    """A key may have any character."""
    ask(canned, "key", "show", "t", "a/b c?", body={"items": []})
    assert canned.asked[-1][1] == "/v1/topics/t/keys/a%2Fb%20c%3F"


def test_a_producer_that_does_not_answer_is_exit_code_1(canned: Any) -> None:
    """The raw answer is shown either way."""
    items = [{"id": "018f", "verdict": "no_answer", "detail": "HTTP 503", "took_ms": 41}]
    done = ask(canned, "check", "orders", "018f", body={"items": items})
    assert done.exit_code == 1 and "HTTP 503" in done.output
    items[0]["verdict"] = "committed"
    assert ask(canned, "check", "orders", body={"items": items}).exit_code == 0
    assert canned.asked[-1][2] == b"{}"


def test_a_violated_invariant_is_exit_code_1(canned: Any) -> None:
    """And the rows that violate it are printed; an unfinished one is a warning."""
    bad = {"name": "log_is_committed", "ok": False, "meaning": "a ghost", "rows": [{"m": 7}]}
    done = ask(canned, "doctor", body={"items": [bad, {"name": "x", "ok": None, "meaning": "", "rows": []}]})
    assert done.exit_code == 1
    assert "ok 0  warn 1  fail 1" in done.output and "FAIL log_is_committed: a ghost" in done.output and "m=7" in done.output


# --- pieces ---


@pytest.mark.parametrize(("text", "seconds"), [("60s", 60), ("5m", 300), ("2h", 7_200), ("7d", 604_800), ("1.5", 1.5), ("250ms", 0.25)])
def test_durations_are_read_with_units(text: str, seconds: float) -> None:
    assert common.DURATION.convert(text, None, None) == seconds


def test_a_duration_without_sense_is_wrong_usage() -> None:
    assert run("tx", "ls", "--older", "soon").exit_code == 2


@pytest.mark.parametrize(("ms", "text"), [(412, "412ms"), (4_100, "4.1s"), (372_000, "6m12s"), (7_260_000, "2h1m"), (90_000_000, "1d1h")])
def test_ages_are_said_as_people_say_them(ms: int, text: str) -> None:
    assert common.span(ms) == text


@pytest.mark.parametrize("body", [b'{"a": 1.0}', b"[1,2]", b'"text"', b'{"a":1,"a":2}', "ü".join('""').encode()])
def test_a_json_body_is_sent_byte_for_byte(body: bytes) -> None:
    """P8 begins at the command line: 1.0 must not become 1, a doubled name must not vanish."""
    sent = publish.message({"id": "x"}, body, None)
    assert sent.endswith(b'"data": ' + body + b"}")
    json.loads(sent)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"hello", "text/plain; charset=utf-8"),
        (b" {}", "text/plain; charset=utf-8"),
        (b"NaN", "text/plain; charset=utf-8"),
        (b"\xff\x00", "application/octet-stream"),
        ("{}".encode("utf-16"), "application/octet-stream"),
    ],
)
def test_what_is_no_bare_json_is_sent_as_base64(body: bytes, kind: str) -> None:
    sent = json.loads(publish.message({}, body, None))
    assert sent["content_type"] == kind
    assert tail.text_of(sent)


def test_a_url_without_a_scheme_is_wrong_usage() -> None:
    assert run("tx", "ls", "--url", "localhost:7610").exit_code == 2


def test_a_token_file_is_read_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    monkeypatch.setenv("HALFMSG_TOKEN_FILE", str(tmp_path / "token"))
    assert remote.token() == "s3cret"


# --- a real coordinator ---


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """`halfmsg serve --dev` as a process of its own; it has said `started` before the first test."""
    folder = tmp_path_factory.mktemp("coordinator")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-c",
        "from halfmsg.coordinator.cli import main; main()",
        "serve",
        "--dev",
        "--listen",
        f"127.0.0.1:{port}",
        "--store",
        "s.db",
    ]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if "started" in line:
            break
    assert process.poll() is None, "".join(said)
    yield f"http://127.0.0.1:{port}", folder / "s.db"
    process.send_signal(signal.SIGTERM)
    with process.stdout:
        process.stdout.read()
    assert process.wait(30) == 0


def _ok(url: str, *args: str) -> str:
    done = run(*args, env={"HALFMSG_URL": url})
    assert done.exit_code == 0, (args, done.output)
    return done.stdout


def test_a_tour_from_topic_to_doctor(coordinator: tuple[str, Path]) -> None:
    """Make, publish, look, ask, check, remove: what the first ten minutes need."""
    url, store = coordinator
    _ok(url, "topic", "create", "mail", "--kind", "arrival", "--lanes", "2")
    _ok(url, "group", "create", "readers", "--topic", "mail", "--max-attempts", "none")
    sent = json.loads(_ok(url, "publish", "mail", '{"n": 1.0}', "--key", "k", "--json"))
    assert '{"n":1.0}' in _ok(url, "tail", "mail", "--from", "earliest", "--no-follow")
    assert "key=k" in _ok(url, "tail", "--group", "readers", "--from", "earliest", "--max", "1")
    assert sent["transaction_id"] in _ok(url, "tx", "ls", "--state", "committed", "--older", "0s")
    assert "offset 0" in _ok(url, "tx", "show", sent["transaction_id"])
    assert "offset 0" in _ok(url, "tx", "show", sent["id"])
    assert "arrival\t2\t1\t" in _ok(url, "topic", "ls")
    assert "86400" in _ok(url, "topic", "set", "mail", "--retention", "1d")
    assert "readers\tmail\t1\t" in _ok(url, "group", "ls")
    assert "next 2" in _ok(url, "key", "show", "mail", "k")
    assert "whsec_" in _ok(url, "producer", "set", "orders", "--check-url", "http://127.0.0.1:9/check")
    assert "whsec_" not in _ok(url, "producer", "set", "orders", "--dialect", "dtm")
    assert "orders\thttp" in _ok(url, "producer", "ls")
    looks = (
        "key ls",
        "dlq ls --group readers",
        "dlq ls --topic mail",
        "check orders",
        "group show readers",
        "topic show mail",
        "producer show orders",
    )
    for words in (*looks, "group pause readers", "group resume readers"):
        _ok(url, *words.split())
    assert f"ok {len(doctor.INVARIANTS) + 1}" in _ok(url, "doctor")
    assert f"ok {len(doctor.INVARIANTS) + 2}" in _ok(url, "doctor", "--store", str(store))
    _ok(url, "group", "rm", "readers", "--reason", "done", "--yes")
    assert run("topic", "rm", "mail", "--reason", "done", "--url", url).exit_code == 5


def test_a_repeat_with_the_same_id_sends_nothing_twice(coordinator: tuple[str, Path]) -> None:
    """A time-out is answered by the same command again."""
    url, _ = coordinator
    args = ("publish", "twice", "hello", "--id", "018f0000-0000-7000-8000-000000000001")
    assert _ok(url, *args) == _ok(url, *args)
    assert _ok(url, "tail", "twice", "--from", "earliest", "--no-follow").count("hello") == 1


def test_a_store_in_use_is_refused_with_75(coordinator: tuple[str, Path]) -> None:
    """One process, one file."""
    _, store = coordinator
    done = run("serve", "--store", str(store), "--listen", "127.0.0.1:1")
    assert done.exit_code == 75
    assert "in use" in done.output


def test_doctor_on_a_file_that_is_no_store_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("not a database at all, but longer than a header of one hundred bytes" * 3)
    for name in ("x.db", "missing.db"):
        done = run("doctor", "--store", name)
        assert done.exit_code == 1
        assert "Traceback" not in done.output and name in done.output


def test_a_database_of_something_else_is_named_so_and_nobody_is_told_to_replace_it(tmp_path: Path) -> None:
    """`doctor`, `restore` and `backup` on a service's own database, typed for the store's name."""
    with sqlite3.connect(tmp_path / "orders.db") as db:
        db.execute("CREATE TABLE orders (id TEXT PRIMARY KEY)")
    for words in ("doctor --store orders.db", "restore orders.db --store new.db", "backup b.db --store orders.db"):
        done = run(*words.split())
        assert done.exit_code == 1
        assert "orders.db is a SQLite file of something else. Name " in done.output and "--replace" not in done.output
    assert not (tmp_path / "new.db").exists() and not (tmp_path / "b.db").exists()
