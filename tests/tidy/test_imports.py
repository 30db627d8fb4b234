"""Who may import whom (docs/design.md section 7), and by which name."""

from __future__ import annotations

import re

import pytest

from tests.tidy import source

MAY_IMPORT = {
    "txclient": set(),
    "checkback": set(),
    "outbox": {"txclient", "checkback"},
    "coordinator": {"checkback"},
    "samples": {"txclient", "outbox", "checkback"},
}
"""Package -> the other packages that it may know. Server and client share no code."""

CLI_MAY_IMPORT = {"txclient", "outbox", "samples"}
"""The command line is a user of everything: `publish` and `tail` are clients, `outbox` installs tables, `demo` runs the sample."""

LEVELS = (
    ("states", "policies", "messages", "errors", "clock", "ids", "digests", "rules"),  # pure
    ("wire", "settings", "env"),
    ("store", "metrics", "logs", "gauges", "doctor"),
    ("service",),
    ("reader", "hub", "watchdog", "memory", "parse", "render", "routes"),
    ("engine", "ops", "backup"),
    ("api", "stream", "console", "openapi", "auth", "checks", "gaps", "loops", "sinks", "face"),
    ("app",),
    ("cli", "bench"),
)
"""The coordinator's parts from left to right: a part imports from its own level and from those above it in this list.
`api_groups` counts as `api`, `cli/` and `cli_demo` as `cli`; each `*_rules` is pure and counts as `rules`."""

_PARTS = {part: level for level, parts in enumerate(LEVELS) for part in parts}


def _part(module: str) -> str | None:
    """`halfmsg.coordinator.store.sqlite` -> `store`; None where it is the package itself or another package."""
    parts = module.split(".")
    if parts[:2] != ["halfmsg", "coordinator"] or len(parts) < 3:
        return None
    if parts[2].endswith("_rules"):
        return "rules"
    return parts[2] if parts[2] in _PARTS else parts[2].partition("_")[0]


def test_packages_import_only_what_they_may_know() -> None:
    """checkback, txclient and outbox never import the coordinator; txclient knows neither of the other two."""
    wrong = []
    for file in source.files(*source.LINKED):
        own = file.name.partition("/")[0]
        allowed = MAY_IMPORT[own] | {own}
        if own == "coordinator" and _part(file.module) in ("cli", "bench"):
            allowed |= CLI_MAY_IMPORT
        for line, name in source.imports(file):
            parts = name.split(".")
            if parts[0] != "halfmsg":
                continue
            if len(parts) > 1 and parts[1] in source.LINKED:
                if parts[1] not in allowed:
                    wrong.append(f"{file.name}:{line} imports {name}")
            elif own != "samples" and name not in ("halfmsg", "halfmsg.__version__"):
                wrong.append(f"{file.name}:{line} imports {name}: inside the house by the package's own name, not through the facade")
    assert not wrong, "\n".join(wrong)


def test_coordinator_imports_point_left() -> None:
    """states, policies, messages, errors <- store <- service <- api, stream, console <- app <- cli."""
    wrong = []
    for file in source.files("coordinator"):
        own = _part(file.module)
        if own is None:  # the package's __init__
            continue
        if own not in _PARTS:
            wrong.append(f"{file.name}: give {own!r} a place in LEVELS of tests/tidy/test_imports.py")
            continue
        for line, name in source.imports(file):
            other = _part(name)
            if other in _PARTS and _PARTS[other] > _PARTS[own]:
                wrong.append(f"{file.name}:{line} {own} imports {other}, which stands to its right")
    assert not wrong, "\n".join(wrong)


def test_nobody_imports_by_the_bare_folder_name() -> None:
    """A bare name makes two modules of one file: `except Conflict` then misses."""
    wrong = [
        f"{file.name}:{line} imports {name}"
        for file in source.files()
        for line, name in source.imports(file)
        if name.partition(".")[0] in source.LINKED
    ]
    bare = re.compile(rf"^\s*(?:from|import)\s+(?:{'|'.join(source.LINKED)})\b")
    for page in source.files(suffix=".md"):
        wrong += [f"{page.name}:{number} {line.strip()}" for number, line in source.python_blocks(page) if bare.match(line)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", source.LINKED)
def test_link_is_relative_and_points_to_its_folder(name: str) -> None:
    """A clone with links off has text files here, and a wheel built from it has no packages."""
    link = source.ROOT / "halfmsg" / name
    assert link.is_symlink(), f"halfmsg/{name} is no link: clone with  git clone -c core.symlinks=true"
    assert link.readlink().as_posix() == f"../{name}"
