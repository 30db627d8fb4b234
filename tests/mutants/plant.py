"""A planted bug as a file: what is changed, which promise it breaks, and which tests must see it. No test is run here."""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "planted"
ROOT = FOLDER.parents[2]
PROMISES = tuple(f"P{number}" for number in range(1, 11))
FIELDS = {"promise", "rule", "why", "on_sqlite", "asked", "tests", "fast", "hang", "worlds", "edit"}
WORLDS = "tests/sim/test_sim.py::test_promises_hold_in_a_few_simulated_worlds"
_RULE = re.compile(r"(P([1-9]|10)|R([1-9]|[12]\d|30)|W\d+)(, (P([1-9]|10)|R([1-9]|[12]\d|30)|W\d+))*")


class Unfit(Exception):
    """The planted bug itself is at fault: it cannot be read, does not apply, or is no bug but a slip."""


@dataclass(frozen=True)
class Edit:
    """One exact text of one file, which stands there once, and what replaces it."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """`tests`: node ids without parameters mean all of them. `hang`: a test's time-out is how it is seen. `worlds`: simulated worlds must see it
    as well, by themselves.
    """

    name: str
    promise: str
    rule: str
    why: str
    asked: str
    on_sqlite: str
    tests: tuple[str, ...]
    fast: bool
    hang: bool
    edits: tuple[Edit, ...]
    worlds: bool = False

    def apply(self, root: Path) -> None:
        """Change the files below `root`. Raises Unfit, with nothing changed, where an old text does not stand there exactly once."""
        texts: dict[str, str] = {}
        for edit in self.edits:
            text = texts.get(edit.file) or _read(root / edit.file, self.name, edit.file)
            count = text.count(edit.old)
            if count != 1:
                found = "is not there" if count == 0 else f"stands there {count} times"
                raise Unfit(f"{self.name}: its old text {found} in {edit.file}; mend the mutant: {_first_line(edit.old)!r}")
            texts[edit.file] = text.replace(edit.old, edit.new)
        for file, text in texts.items():
            if file.endswith(".py"):
                _compile(text, self.name, file)
            (root / file).write_text(text, encoding="utf-8")

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(edit.file for edit in self.edits))


def _read(path: Path, name: str, file: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise Unfit(f"{name}: cannot read {file} ({error.strerror}); mend the mutant") from error


def _compile(text: str, name: str, file: str) -> None:
    try:
        compile(text, file, "exec")
    except SyntaxError as error:
        raise Unfit(f"{name}: {file} is no Python any more (line {error.lineno}: {error.msg}); mend the mutant") from error


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def load(path: Path) -> Mutant:
    """Read one. Raises Unfit for what is missing or not known."""
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise Unfit(f"{path.name} is no TOML: {error}") from error
    if unknown := given.keys() - FIELDS:
        raise Unfit(f"{path.name}: unknown {', '.join(sorted(unknown))}")
    for name in ("promise", "rule", "why", "tests", "edit"):
        if not given.get(name):
            raise Unfit(f"{path.name}: {name} is missing")
    if given["promise"] not in PROMISES or _RULE.fullmatch(given["rule"]) is None:
        raise Unfit(f"{path.name}: promise is one of P1-P10, rule something like `R5, R9`")
    return Mutant(
        path.stem, given["promise"], given["rule"], given["why"], given.get("asked", ""), given.get("on_sqlite", ""), tuple(given["tests"]),
        bool(given.get("fast")), bool(given.get("hang")), tuple(_edit(path.name, each) for each in given["edit"]), bool(given.get("worlds")),
    )  # fmt: skip


def _edit(name: str, given: dict[str, Any]) -> Edit:
    if given.keys() != {"file", "old", "new"} or not given["old"].strip() or given["old"] == given["new"]:
        raise Unfit(f"{name}: an edit is file, old and new, and changes something")
    return Edit(given["file"], given["old"], given["new"])


def load_all() -> list[Mutant]:
    """Each of the folder, and those of `worlds` once more under a name of their own."""
    found = [load(path) for path in sorted(FOLDER.glob("*.toml"))]
    return found + [_in_worlds(mutant) for mutant in found if mutant.worlds]


def _in_worlds(mutant: Mutant) -> Mutant:
    return replace(mutant, name=f"world_{mutant.name}", tests=(WORLDS,), asked="", fast=False)


def file_and_name(test: str) -> tuple[str, str]:
    """`tests/a.py::Class::test_x[p]` -> (`tests/a.py`, `Class::test_x`)."""
    file, _, name = test.partition("::")
    return file, name.partition("[")[0]


@functools.cache
def names_in(file: Path) -> frozenset[str]:
    """Names of the tests that a file defines, by its text alone; a class by itself too, since hypothesis makes its test."""
    return frozenset(_names(ast.parse(file.read_text(encoding="utf-8")).body, ""))


def _names(body: list[ast.stmt], before: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
            yield before + node.name
        elif isinstance(node, ast.ClassDef):
            yield node.name
            yield from _names(node.body, f"{node.name}::")
