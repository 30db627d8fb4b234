"""An error code is a promise to programs, so each one that code can say stands in docs/api.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.tidy import source

ERRORS = {
    "AlreadyCommitted",
    "ApiError",
    "Busy",
    "Conflict",
    "Fenced",
    "HalfmsgError",
    "NotInTransaction",
    "Problem",
    "TransportError",
    "UsageError",
}
_WORD = re.compile(r"[a-z]+(_[a-z]+)*")


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _targets(node: ast.Assign | ast.AnnAssign) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _codes(file: source.Source) -> Iterator[tuple[int, str]]:
    """Codes as they are written: `Problem("too_large", ...)`, `code="bad_url"`, `code = "fenced"` in a class, keys of CODES."""
    for node in ast.walk(file.tree):
        said: list[ast.expr | None] = []
        if isinstance(node, ast.Call):
            said += [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            said += node.args[:1] if _called(node) in ERRORS else []
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.Assign | ast.AnnAssign) and "code" in _targets(inner):
                    said.append(inner.value)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            said += node.value.keys if "CODES" in _targets(node) else []
        for value in said:
            if isinstance(value, ast.Constant) and isinstance(value.value, str) and _WORD.fullmatch(value.value):
                yield value.lineno, value.value


def test_every_error_code_stands_in_the_docs() -> None:
    """`code` in the answer leads a reader to docs/api.md."""
    documented = set(re.findall(r"`([a-z_]+)`", source.ROOT.joinpath("docs/api.md").read_text(encoding="utf-8")))
    wrong = [f"{f.name}:{line} {code}" for f in source.files(*source.PACKAGES) for line, code in _codes(f) if code not in documented]
    assert not wrong, "not in docs/api.md:\n" + "\n".join(wrong)


def test_the_coordinator_says_only_codes_that_it_lists() -> None:
    """A code without a status would be an `internal` on the wire."""
    listed = {code for _, code in _codes(next(f for f in source.files("coordinator") if f.name == "coordinator/errors.py"))}
    wrong = []
    for file in source.files("coordinator"):
        for node in ast.walk(file.tree):
            if isinstance(node, ast.Call) and node.args and _called(node) == "Problem":
                code = node.args[0]
                if isinstance(code, ast.Constant) and code.value not in listed:
                    wrong.append(f"{file.name}:{node.lineno} {code.value!r}")
    assert not wrong, "\n".join(wrong)
