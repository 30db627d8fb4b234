"""Groups of commands: loaded when called, and honest about what is known and not built yet."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click


class Failure(click.ClickException):
    """One line for people: cause, evidence, next command. `exit_code` by API §5."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance

    def show(self, file: Any = None) -> None:
        click.echo(f"halfmsg: {self.message}", err=True)


class Noun(click.Group):
    """A group that answers for verbs which are known and not built: exit code 2, by name, and not in its help."""

    def __init__(self, *args: Any, not_built: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._not_built = dict(not_built or {})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        if found is None and cmd_name in self._not_built:
            return _not_built(ctx, cmd_name, self._not_built[cmd_name])
        return found


def _not_built(ctx: click.Context, name: str, instead: str) -> click.Command:
    words = " ".join(filter(None, (ctx.command_path.removeprefix("halfmsg").removeprefix("cli").strip(), name)))

    def say(words_given: tuple[str, ...]) -> None:
        raise Failure(f"`halfmsg {words}` is known and not built yet.{' ' + instead if instead else ''}", 2)

    return click.Command(
        name,
        callback=say,
        params=[click.Argument(["words_given"], nargs=-1, type=click.UNPROCESSED)],
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        add_help_option=False,
        hidden=True,
    )


class LazyRoot(Noun):
    """Commands by name of their module; their one-line help stands in the table, so that help loads none of them."""

    def __init__(self, *args: Any, package: str, lazy: Mapping[str, tuple[str, str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._package, self._lazy = package, lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._lazy:
            return super().get_command(ctx, cmd_name)
        module, attribute, _ = self._lazy[cmd_name]
        command: click.Command = getattr(import_module(f"{self._package}.{module}"), attribute)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """click looks for a near name among the commands that are loaded, and none is."""
        name = args[0]
        if name.startswith("-") or self.get_command(ctx, name) is not None:
            return super().resolve_command(ctx, args)
        from difflib import get_close_matches

        near = get_close_matches(name, self._lazy, 1)
        ctx.fail(f"No such command {name!r}.{f' Did you mean {near[0]!r}?' if near else ''}")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in self._lazy.items()])


def later(module: str, attribute: str, what: str) -> Any:
    """Load a part that a command hands over to. An installation without it says so instead of a traceback."""
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if missing.startswith("halfmsg"):
            raise Failure(f"{what} is not part of this version ({missing} is missing)", 2) from error
        raise Failure(f"{what} needs {missing}, which is not installed. Install it: pip install {missing.partition('.')[0]}") from error
    except AttributeError as error:
        raise Failure(f"{what} is not part of this version ({module} has no {attribute})", 2) from error
