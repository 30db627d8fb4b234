"""Time, randomness, ids and the environment come in through one door each (docs/design.md section 10)."""

from __future__ import annotations

import ast
import fnmatch

from tests.tidy import source

CLOCK = {"time.time", "time.time_ns", "datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today", "datetime.date.today"}
SLEEP = {"time.sleep", "asyncio.sleep"}
IDS = {"uuid.uuid1", "uuid.uuid4"}
ENVIRONMENT = {"os.environ", "os.getenv"}
RANDOM = {"random"}  # the module and all in it
ALL = CLOCK | SLEEP | IDS | ENVIRONMENT | RANDOM

ALLOWED: list[tuple[str, set[str], str]] = [
    # files, names, reason
    ("*/clock.py", CLOCK | SLEEP, "the clock that is handed down"),
    ("*/_clock.py", CLOCK | SLEEP, "the clock that is handed down"),
    ("*/ids.py", CLOCK | IDS | RANDOM, "UUIDv7 needs a time and random bits"),
    ("*/_ids.py", CLOCK | IDS | RANDOM, "UUIDv7 needs a time and random bits"),
    ("coordinator/cli.py", ALL, "the entry point reads the environment and hands the real clock down"),
    ("coordinator/cli_*.py", ALL, "the entry point"),
    ("coordinator/cli/*", ALL, "the entry point"),
    ("coordinator/bench/*", ALL, "a program that measures; it constructs its own load"),
    ("coordinator/loops.py", SLEEP, "the timer around tick(), which is what is tested"),
    ("txclient/_settings.py", ENVIRONMENT, "HALFMSG_URL, HALFMSG_TOKEN and HALFMSG_NAMESPACE are the defaults of Client()"),
    ("txclient/_retry.py", SLEEP | RANDOM, "the wait between two attempts, with jitter"),
]
"""Only the four packages are bound; samples and benchmarks are programs of their own and call what they like."""

SLEEPING_TESTS_ALLOWED = ("tests/support/*", "tests/kill/*", "tests/soak/*", "tests/sim/*", "tests/disk/processes.py", "tests/disk/responder.py")
"""Helpers that poll a real process with a deadline, the harnesses that kill at a random moment, and a world whose time is virtual."""


def _uses(file: source.Source, names: set[str]) -> list[tuple[int, str]]:
    """Where the file mentions one of these, called or handed on. `asyncio.sleep(0)` only yields; `random.Random` is what is handed in."""
    known = source.aliases(file)
    yields = {
        id(node.func)
        for node in ast.walk(file.tree)
        if isinstance(node, ast.Call) and len(node.args) == 1 and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
    }
    found = []
    for node in ast.walk(file.tree):
        if not isinstance(node, ast.Attribute | ast.Name) or id(node) in yields:
            continue
        name = _dotted(node, known)
        if name and (name in names - RANDOM or (names & RANDOM and name.startswith("random.") and name != "random.Random")):
            found.append((node.lineno, name))
    return found


def _dotted(node: ast.Attribute | ast.Name, known: dict[str, str]) -> str | None:
    tail: list[str] = []
    inner: ast.expr = node
    while isinstance(inner, ast.Attribute):
        tail.append(inner.attr)
        inner = inner.value
    if not isinstance(inner, ast.Name) or inner.id not in known:
        return None
    return ".".join([known[inner.id], *reversed(tail)])


def test_packages_take_time_chance_ids_and_environment_from_outside() -> None:
    """What is injected can be driven by a test; what is called cannot."""
    wrong = []
    for file in source.files(*source.PACKAGES, "halfmsg"):
        allowed = set().union(*(names for pattern, names, _ in ALLOWED if fnmatch.fnmatch(file.name, pattern)))
        wrong += [f"{file.name}:{line} {name}" for line, name in _uses(file, ALL - allowed)]
    assert not wrong, "\n".join(wrong)


def test_no_test_sleeps() -> None:
    """A test that waits on time is slow on a good day and red on a bad one."""
    wrong = [
        f"{file.name}:{line} {name}"
        for file in source.files("tests")
        if not any(fnmatch.fnmatch(file.name, pattern) for pattern in SLEEPING_TESTS_ALLOWED)
        for line, name in _uses(file, SLEEP)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_bare_assert_in_the_packages() -> None:
    """`python -O` removes it: logic raises, and a type checker is told with a cast or a check."""
    wrong = [f"{file.name}:{node.lineno}" for file in source.files(*source.PACKAGES) for node in ast.walk(file.tree) if isinstance(node, ast.Assert)]
    assert not wrong, "\n".join(wrong)


def test_the_check_itself_sees_through_aliases() -> None:
    """A check that finds nothing because it looks badly would be worse than none."""
    file = source.Source(source.ROOT / "planted.py", "planted.py")
    text = (
        "import time as t, asyncio, os, random, datetime as d\nfrom time import sleep\nfrom datetime import datetime\n"
        "t.time()\nsleep(1)\nasyncio.sleep(0)\nos.environ['X']\nrandom.random()\nd.datetime.now()\ndatetime.now()\ntime.time()\nf(now=t.time)\n"
    )
    file.__dict__["tree"] = ast.parse(text)
    assert sorted(_uses(file, ALL)) == [
        (4, "time.time"),
        (5, "time.sleep"),
        (7, "os.environ"),
        (8, "random.random"),
        (9, "datetime.datetime.now"),
        (10, "datetime.datetime.now"),
        (12, "time.time"),
    ]
