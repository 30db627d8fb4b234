"""The repository as text and syntax trees, for the tidy tests. Knows nothing of what the code does."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("coordinator", "txclient", "outbox", "checkback")
LINKED = (*PACKAGES, "samples")
"""The folders that halfmsg/ links to, and whose bare names nobody imports."""

_NOT_SOURCE = {".git", ".venv", "venv", "build", "dist", "__pycache__", "node_modules"}


@dataclass(frozen=True)
class Source:
    path: Path
    name: str  # relative to the root, with slashes

    @functools.cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @functools.cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.name)

    @property
    def module(self) -> str:
        """The one real name: `halfmsg.outbox.fence` for outbox/fence.py."""
        parts = self.name.removesuffix(".py").split("/")
        if parts[0] in LINKED:
            parts = ["halfmsg", *parts]
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def package(self) -> str:
        return self.module if self.path.name == "__init__.py" else self.module.rpartition(".")[0]


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name in _NOT_SOURCE or path.name.endswith(".egg-info") or (path.is_symlink() and path.is_dir()):
            continue  # a link shows the same file twice
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


@functools.cache
def _all_files() -> tuple[Source, ...]:
    return tuple(Source(path, path.relative_to(ROOT).as_posix()) for path in _walk(ROOT))


def files(*folders: str, suffix: str = ".py") -> list[Source]:
    """Every file with that suffix below these folders of the repository; without folders, all of them."""
    return [s for s in _all_files() if s.name.endswith(suffix) and (not folders or s.name.startswith(tuple(f"{f}/" for f in folders)))]


def imports(source: Source) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of all that is imported anywhere in the file; `from a import b` gives `a.b`."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = source.package.split(".")
                above = above[: len(above) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def aliases(source: Source) -> dict[str, str]:
    """Local name -> what it stands for: `from time import time as t` gives `t` -> `time.time`."""
    found: dict[str, str] = {}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name.partition(".")[0]] = alias.name if alias.asname else alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return found


def python_blocks(source: Source) -> Iterator[tuple[int, str]]:
    """Line and text of each line in the ```python blocks of a Markdown file."""
    inside = False
    for number, line in enumerate(source.text.splitlines(), 1):
        fence = re.match(r"\s*`{3,}(\w*)", line)
        if fence:
            inside = not inside and fence[1] == "python"
        elif inside:
            yield number, line


def prose(source: Source) -> str:
    """A Markdown file without its fenced blocks (a longer fence may hold shorter ones)."""
    kept: list[str] = []
    open_fence = 0
    for line in source.text.splitlines():
        fence = re.match(r"\s*(`{3,})(.*)", line)
        if fence and not open_fence:
            open_fence = len(fence[1])
        elif fence and len(fence[1]) >= open_fence and not fence[2].strip():
            open_fence = 0
        elif not open_fence:
            kept.append(line)
    return "\n".join(kept)
