"""Copies of the repository in which bugs are planted, and what pytest says of a copy. The repository itself is never changed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.plant import ROOT, Mutant, Unfit

TEST_TIMEOUT_S = 30
RUN_TIMEOUT_S = 100
_SLIP = re.compile(
    r"\b(SyntaxError|IndentationError|ImportError|ModuleNotFoundError|NameError|UnboundLocalError|AttributeError|TypeError|ProgrammingError)\b"
    r"|OperationalError: (near|no such)"
)
"""A bug that breaks the language or the SQL is none that a tired engineer would commit; a test that stumbles over it proves nothing."""
_LATE = re.compile(r"^(TimeoutError|Failed: Timeout|asyncio\.TimeoutError)")
PROBE = "tests/test_probe_of_the_copy.py"
_PROBE = """
import subprocess, sys
from pathlib import Path
import halfmsg, halfmsg.coordinator.store.writer, halfmsg.outbox, halfmsg.txclient, halfmsg.checkback, tests.support.stores

HERE = Path(__file__).resolve().parents[1]
LOOK = ("import halfmsg, halfmsg.coordinator.store.writer as w, halfmsg.outbox as o, halfmsg.txclient as t, halfmsg.checkback as c;"
        "from pathlib import Path; print(*(Path(m.__file__).resolve() for m in (halfmsg, w, o, t, c)), sep=chr(10))")

def test_the_copy_is_what_is_imported():
    modules = (halfmsg, halfmsg.coordinator.store.writer, halfmsg.outbox, halfmsg.txclient, halfmsg.checkback, tests.support.stores)
    assert [m.__name__ for m in modules if not Path(m.__file__).resolve().is_relative_to(HERE)] == []
    for folder in ("/", str(HERE)):
        found = subprocess.run([sys.executable, "-c", LOOK], cwd=folder, check=True, capture_output=True, text=True).stdout.split()
        assert len(found) == 5 and [path for path in found if not Path(path).is_relative_to(HERE)] == []
"""


@dataclass(frozen=True)
class Seen:
    """What a run of pytest said: its exit code, the tests that passed, and (test, message) of those that failed in their body."""

    code: int | None
    passed: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    errors: tuple[str, ...]
    output: str
    seconds: float


class Copy:
    """One copy of the working tree: what git tracks and what is new, with links kept."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._before: dict[str, bytes] = {}
        for name in _listed():
            source, target = ROOT / name, root / name
            if not source.is_symlink() and not source.exists():
                continue  # deleted and not committed yet
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_symlink():
                target.symlink_to(os.readlink(source))
            elif source.is_file():
                shutil.copyfile(source, target)

    @contextmanager
    def probe(self) -> Iterator[str]:
        """A test that its tests and their child processes import the copy, not the repository."""
        path = self.root / PROBE
        path.write_text(_PROBE, encoding="utf-8")
        try:
            yield PROBE
        finally:
            path.unlink()

    def plant(self, mutant: Mutant) -> None:
        """Raises Unfit where it does not apply, or is a slip; `mend` either way."""
        self._before = {file: (self.root / file).read_bytes() for file in mutant.files if (self.root / file).is_file()}
        mutant.apply(self.root)
        self._forget(mutant)
        python = [file for file in mutant.files if file.endswith(".py")]
        if python:
            command = [sys.executable, "-m", "ruff", "check", "--isolated", "--quiet", "--no-cache", "--select", "F821,F822,F823", *python]
            done = subprocess.run(command, cwd=self.root, check=False, capture_output=True, text=True)
            if done.returncode != 0:
                raise Unfit(f"{mutant.name}: uses a name that is not there; mend the mutant\n{done.stdout}{done.stderr}")

    def mend(self, mutant: Mutant) -> None:
        for file, text in self._before.items():
            (self.root / file).write_bytes(text)
        self._forget(mutant)

    def _forget(self, mutant: Mutant) -> None:
        """Compiled files go by size and whole seconds: one of before could be taken for the one of now."""
        for file in mutant.files:
            path = self.root / file
            for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
                compiled.unlink()

    def pytest(self, tests: list[str], *more: str, timeout_s: float = RUN_TIMEOUT_S) -> Seen:
        """Run these tests in the copy, with the interpreter that runs this."""
        report = self.root / "report.xml"
        report.unlink(missing_ok=True)
        command = [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--timeout={TEST_TIMEOUT_S}", "--hypothesis-seed=0",
            f"--junitxml={report}", "-o", "junit_family=xunit1", "--tb=short", *more, *tests,
        ]  # fmt: skip
        began = time.monotonic()
        code, output = _bounded(command, self.root, _environment(self.root), timeout_s)
        return _read(report, code, output, time.monotonic() - began)


def _listed() -> list[str]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return sorted(set(done.stdout.split("\0")) - {""})


def _environment(root: Path) -> dict[str, str]:
    """Ours, without what would send a child back to the repository, or make it measure or configure itself."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV", "HALFMSG_", "PYTHON"))}
    return kept | {"PYTHONPATH": str(root)}


def _bounded(command: list[str], folder: Path, environment: dict[str, str], timeout_s: float) -> tuple[int | None, str]:
    """(exit code, output); None: it was cut off, with all that it had started."""
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            return None, output
        return process.returncode, output


def _read(report: Path, code: int | None, output: str, seconds: float) -> Seen:
    passed, failed, errors = [], [], []
    cases = ET.parse(report).getroot().iter("testcase") if report.exists() else ()
    for case in cases:
        name = f"{case.get('file')}::{_class_of(case)}{case.get('name')}"
        failure, error = case.find("failure"), case.find("error")
        if failure is not None:
            failed.append((name, f"{failure.get('message') or ''}\n{failure.text or ''}"))
        elif error is not None:
            errors.append(name)
        elif case.find("skipped") is None:
            passed.append(name)
    return Seen(code, tuple(passed), tuple(failed), tuple(errors), output, seconds)


def _class_of(case: ET.Element) -> str:
    module = (case.get("file") or "").removesuffix(".py").replace("/", ".")
    inner = (case.get("classname") or "").removeprefix(module).strip(".")
    return f"{inner}::" if inner else ""


def verdict(mutant: Mutant, seen: Seen) -> tuple[bool, str]:
    """(is it caught, by which test or why not). Only a test that fails in its body, on what it claims, counts."""
    if seen.code is None:
        return mutant.hang, "hang" if mutant.hang else f"no end in {RUN_TIMEOUT_S} s, and its file does not say that a hang is how it is seen"
    if seen.code == 0:
        return False, "SURVIVED: all its tests pass"
    if seen.code != 1 or not seen.failed:
        return False, f"nothing failed by its claim (exit code {seen.code}, errors: {', '.join(seen.errors) or 'none'})"
    test, message = seen.failed[0]
    first = message.splitlines()[0] if message else ""
    if _SLIP.search(first):
        return False, f"a slip, not a bug: {test} met {first}"
    if _LATE.search(first) and not mutant.hang:
        return False, f"{test} only timed out, and its file does not say that a hang is how it is seen"
    return True, test
