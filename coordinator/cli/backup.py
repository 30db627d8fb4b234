"""`halfmsg backup` and `halfmsg restore`: one file of a store, checked, and a store of such a file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .common import emit, finding, json_option, now_ms
from .lazy import Failure
from .serve import load, settings_options


@click.command()
@click.argument("target", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--store", type=click.Path(path_type=Path), help="The store; else that of the settings, as for `halfmsg serve`.")
@settings_options
@json_option
def backup(target: Path, store: Path | None, config: Path | None, assigned: tuple[str, ...], as_json: bool) -> None:
    """Write a checked copy of the store to FILE; the coordinator may be running.

    Exit code 1 if it could not be made, or if the store itself breaks an invariant: then it is made, and what is wrong is listed.
    """
    import msgspec

    from halfmsg import __version__

    from .. import backup as copies

    store = store or Path(load(config, assigned, {})[0].store)
    with _one_line():
        made = copies.backup(store, target, now_ms=now_ms(), version=__version__, progress=_progress())
    if as_json:
        emit(msgspec.to_builtins(made))
    else:
        click.echo(
            f"{made.path}  {made.bytes} bytes  {made.rows} rows  up to transaction {made.transactions}  {made.undecided} undecided  "
            f"of {_time(made.at)}  digest {made.digest}"
        )
    _tell(made.findings, f"the store {store} breaks an invariant, and so does its copy. Look: halfmsg doctor --store {store}")


@click.command()
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--store", type=click.Path(path_type=Path), required=True, metavar="FILE", help="The store to make.")
@click.option("--replace", is_flag=True, help="A store of this name is kept aside, under FILE.replaced-…")
@click.option("--accept-loss", is_flag=True, help="Go on with what can be read of a damaged FILE. Acknowledged messages may be gone.")
@json_option
def restore(source: Path, store: Path, replace: bool, accept_loss: bool, as_json: bool) -> None:
    """Make a store of a backup. The coordinator that used the store must be stopped."""
    import msgspec

    from .. import backup as copies

    with _one_line():
        done = copies.restore(source, store, replace=replace, accept_loss=accept_loss, now_ms=now_ms(), progress=_progress())
    if as_json:
        emit(msgspec.to_builtins(done))
    else:
        stands = f"a backup of {_time(done.backup_at)}" if done.backup_at is not None else "no backup: as far as it could be read"
        click.echo(f"{done.store}  {done.rows} rows  {stands}  {done.undecided} undecided  {done.taken_back} taken back from consumers")
        if done.aside is not None:
            click.echo(f"the old store is kept: {done.aside}")
        since = _time(done.stands_at)
        click.echo(f"What was acknowledged after that is not in it. Start it, then at each producer: halfmsg outbox resend URL --since {since}")
        click.echo("See: halfmsg key ls (numbers that are missing), halfmsg doctor (what came again)")
    _tell(done.findings, "not everything holds; see above before you start it")


class _one_line:
    """A StartError as one line with its exit code."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        from ..errors import StartError

        if isinstance(error, StartError):
            raise Failure(str(error), error.exit_code) from error
        if isinstance(error, OSError):
            raise Failure(f"{error.filename or 'the disk'}: {error.strerror}. Is there room, and may this user write there?", 1) from error


def _progress() -> Callable[[str, float], None]:
    """On a terminal, one line that is written over; else nothing."""
    if not sys.stderr.isatty():
        return lambda what, part: None

    def show(what: str, part: float) -> None:
        click.echo(f"\r{what} {part:4.0%}   ", err=True, nl=False)

    return show


def _time(ms: int) -> str:
    from ..clock import rfc3339

    return rfc3339(ms)


def _tell(findings: tuple[Any, ...], words: str) -> None:
    for found in findings:
        click.echo(f"FAIL {found.name}: {found.meaning}", err=True)
        for row in found.rows[:5]:
            click.echo(f"     {finding(row)}", err=True)
    if findings:
        raise Failure(words, 1)
