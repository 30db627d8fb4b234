"""`halfmsg outbox`: the tables in a service's own database, and the relay. The coordinator is not needed for most of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from .common import Column, json_option, ms_of, rows
from .lazy import Failure, Noun, later

MARK_MARGIN_MS = 3_600_000
"""A transaction's mark is the newest time of the coordinator that its client had seen, so it may be older than the transaction."""
ADMIN = "halfmsg.outbox.admin"
NOT_BUILT = {"drop": "Refused rows stay listed: halfmsg outbox ls URL"}
COLUMNS: tuple[Column, ...] = (
    ("id", lambda item: item["id"]),
    ("topic", lambda item: item.get("topic")),
    ("key", lambda item: item.get("key")),
    ("number", lambda item: item.get("sequence")),
    ("state", lambda item: f"refused: {item['refused']}" if item.get("refused") else "waits"),
)


tables_option = click.option(
    "--tables", "prefix", default="halfmsg_", show_default=True, metavar="PREFIX", help="What the tables' names begin with: tables= of the Outbox."
)


@click.group(cls=Noun, not_built=NOT_BUILT)
def outbox() -> None:
    """Tables in YOUR database, and the relay."""


def _told(command: Callable[..., Any]) -> Callable[..., Any]:
    """Drivers have no common error: what one says is one line here, not a traceback."""

    @functools.wraps(command)
    def inner(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            code, text = getattr(error, "code", None), getattr(error, "text", None)
            words = f"{text} ({code})" if text and code else f"{type(error).__name__}: {str(error).strip() or 'no details'}"
            raise Failure(words, 2 if code is not None or isinstance(error, ValueError) else 1) from error

    return inner


@outbox.command()
@click.argument("url")
@click.option("--print", "print_only", is_flag=True, help="Print the SQL and change nothing.")
@tables_option
@_told
def install(url: str, print_only: bool, prefix: str) -> None:
    """Create the tables of outbox, fence and inbox in the database at URL; what is there already stays."""
    done = later(ADMIN, "install", "outbox install")(url, print_only, prefix)
    if print_only:
        click.echo("".join(f"{statement};\n" for statement in done), nl=False)
    else:
        click.echo(f"created {', '.join(done)}" if done else "nothing to do: the tables are there")


@outbox.command()
@click.argument("dialect", type=click.Choice(("sqlite", "postgresql")))
@_told
def sql(dialect: str) -> None:
    """Print the tables' SQL for your own migrations."""
    for statement in later("halfmsg.outbox.tables", "statements", "outbox sql")(dialect):
        click.echo(f"{statement};")


@outbox.command()
@click.argument("url")
@tables_option
@_told
def verify(url: str, prefix: str) -> None:
    """Are the tables as this version needs them? Exit code 1 and what differs if not."""
    problems = later(ADMIN, "verify", "outbox verify")(url, prefix)
    for problem in problems:
        click.echo(problem)
    if problems:
        raise click.exceptions.Exit(1)
    click.echo("ok  the tables are as this version needs them")


@outbox.command()
@click.argument("target", metavar="MODULE:OUTBOX")
@_told
def relay(target: str) -> None:
    """Hand over and answer check-backs, until Ctrl-C."""
    if ":" not in target:
        raise click.UsageError(f"{target!r} is not MODULE:OUTBOX, e.g. orders:outbox")
    raise click.exceptions.Exit(later(ADMIN, "relay", "outbox relay")(target) or 0)


@outbox.command()
@click.argument("url")
@click.option("--since", required=True, metavar="TIME", help="The time of the backup, as `halfmsg restore` prints it (RFC 3339).")
@tables_option
@_told
def resend(url: str, since: str, prefix: str) -> None:
    """Hand over again what was committed since then, after the coordinator was restored from a backup.

    Harmless for what it still knows: same ids, same numbers. Exit code 1 if there are some whose bodies only the coordinator had.
    """
    try:
        since_ms = ms_of(since)
    except ValueError as error:
        raise Failure(f"--since {since!r} is not a time such as 2026-11-21T15:13:16.412Z. `halfmsg restore` prints the right one", 2) from error
    done = later(ADMIN, "resend", "outbox resend")(url, since_ms - MARK_MARGIN_MS, prefix=prefix)
    click.echo(f"{done.again} will be handed over again by the relay")
    for each in done.bodiless:
        number = f"  number {each.sequence}" if each.sequence is not None else ""
        click.echo(f"{each.id}{number}  was prepared first: its body is not here. If the coordinator does not know it, send it anew")
    if done.bodiless:
        raise click.exceptions.Exit(1)


@outbox.command()
@click.argument("url")
@tables_option
@_told
def retry(url: str, prefix: str) -> None:
    """Hand over again what the coordinator refused, once the reason is gone: a topic or a producer that was not made."""
    click.echo(f"{later(ADMIN, 'retry', 'outbox retry')(url, prefix)} will be handed over again by the relay")


@outbox.command()
@click.argument("url")
@click.option("--limit", type=click.IntRange(1, 1_000), default=100, show_default=True)
@tables_option
@json_option
@_told
def ls(url: str, limit: int, prefix: str, as_json: bool) -> None:
    """Rows not handed over, and refused ones."""
    import msgspec

    found = [msgspec.to_builtins(each) for each in later(ADMIN, "waiting", "outbox ls")(url, limit, prefix)]
    rows(found, COLUMNS, as_json=as_json, empty="nothing waits to be handed over")
