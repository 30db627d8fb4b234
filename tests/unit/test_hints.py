"""Each command that a text advises can be typed as it stands there: it exists, with these options, and none that it needs is missing."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator

import click
import pytest

from halfmsg.coordinator.cli import COMMANDS, NOT_BUILT, cli
from tests.tidy import source

PACKAGES = ("coordinator", "txclient", "outbox", "checkback", "samples")
UP_TO = re.compile(r"[`;,)?]|[.:](?=\s|$)| \(|…|\n")
"""What ends a command within a sentence."""
HINT = re.compile(r"(`|: |, |\()?halfmsg (?=([a-z]+)\b)")
MADE_UP = "X"


def _texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """String literals but docstrings; what is filled in is `X`."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node) if part is not node}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(str(part.value) if isinstance(part, ast.Constant) else MADE_UP for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose | inside:
            yield node.lineno, re.sub(r"%s|{}", MADE_UP, node.value)


def _hints() -> list[tuple[str, str, bool]]:
    """(where, command, is it mentioned by its name alone)"""
    found = []
    for file in source.files(*PACKAGES):
        for line, text in _texts(file.tree):
            for match in HINT.finditer(text):
                words = UP_TO.split(text[match.end() :], maxsplit=1)[0].strip()
                if match[2] in COMMANDS or match[2] in NOT_BUILT or match[1] == "`":
                    found.append((f"{file.name}:{line}", words, match[1] == "`"))
    return found


def _try(words: str, mentioned: bool) -> None:
    """Raises click's usage error where it could not be typed."""
    command: click.Command = cli
    ctx = click.Context(cli, info_name="halfmsg")
    args = shlex.split(words)
    while isinstance(command, click.Group) and args:
        name, command_found, args = command.resolve_command(ctx, args)
        assert command_found is not None
        if command_found.hidden:
            raise click.UsageError(f"{name} is not built")
        command, ctx = command_found, click.Context(command_found, ctx, name)
    if mentioned and not args:
        return
    choices = {option: param.type.choices for param in command.params if isinstance(param.type, click.Choice) for option in param.opts}
    for at, word in enumerate(args[:-1]):
        if word in choices and args[at + 1] == MADE_UP:
            args[at + 1] = choices[word][0]
    since = args.index("--since") + 1 if "--since" in args else 0
    if since:
        args[since] = "2026-11-21T15:13:16Z"
    command.make_context(words, args)


@pytest.mark.parametrize(("where", "words", "mentioned"), _hints())
def test_advised_command_can_be_typed(where: str, words: str, mentioned: bool) -> None:
    """A hint that fails when it is typed is worse than none: it is followed at night."""
    try:
        _try(words, mentioned)
    except click.ClickException as error:
        pytest.fail(f"{where}: halfmsg {words}: {error.format_message()}")


def test_hints_are_found() -> None:
    """Else the test above would pass by finding none."""
    assert len(_hints()) > 40
    for words in ("group rm X", "topic create X", "key skip t k", "tx ls --nonsense", "check"):
        with pytest.raises(click.ClickException):
            _try(words, mentioned=False)
