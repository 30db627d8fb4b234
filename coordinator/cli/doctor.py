"""`halfmsg doctor`: the invariants, asked of a running coordinator or read from a store file. It repairs nothing."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import click

from . import http
from .common import Item, connected, emit, json_option, now_ms
from .lazy import Failure

CLOCK_DIFFERENCE_MS = 5_000


@click.command()
@click.option("--store", type=click.Path(path_type=Path), metavar="FILE", help="Read this file in place of asking a coordinator.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="Violations shown of each invariant.")
@click.option("--sample", type=click.IntRange(0, 10_000_000), default=200, show_default=True, help="Messages whose digest is computed (--store).")
@json_option
@connected
def doctor(remote: http.Remote, store: Path | None, limit: int, sample: int, as_json: bool) -> None:
    """Check the invariants of the store; exit code 1 if one is violated."""
    items = of_file(store, limit, sample) if store is not None else remote.get("/v1/doctor")["items"]
    warnings = _notes(remote) if store is None else _library_note()
    failed = [item for item in items if item["ok"] is False]
    if as_json:
        for item in items:
            emit(item)
    else:
        _print(items, warnings, failed, limit)
    if failed:
        raise click.exceptions.Exit(1)


def of_file(store: Path, limit: int, sample: int) -> list[Item]:
    """Every invariant over the file, read-only. A coordinator may be using it."""
    import msgspec

    from .. import doctor as invariants
    from ..store.sqlite import file

    if not store.is_file():
        raise Failure(f"there is no file {store}. Name the store: halfmsg doctor --store FILE", 1)
    try:
        conn = sqlite3.connect(file.read_only(store), uri=True, isolation_level=None)
        try:
            found = invariants.run(conn, limit=limit, sample=sample, integrity=True)
        finally:
            conn.close()
    except sqlite3.Error as error:
        raise Failure(f"cannot read {store}: {error}. Is it a store of this version? Keep a copy before anything else", 1) from error
    return [msgspec.to_builtins(finding) for finding in found]


def _print(items: list[Item], warnings: list[str], failed: list[Item], limit: int) -> None:
    unknown = [item for item in items if item["ok"] is None]
    ok = len(items) - len(failed) - len(unknown)
    click.echo(f"ok {ok}  warn {len(warnings) + len(unknown)}  fail {len(failed)}")
    for warning in warnings:
        click.echo(f"warn: {warning}")
    for item in unknown:
        click.echo(f"warn: {item['name']} was not finished within its limit of work; use --store FILE")
    for item in failed:
        click.echo(f"FAIL {item['name']}: {item['meaning']}")
        for row in item["rows"][:limit]:
            click.echo("     " + "  ".join(f"{name}={value}" for name, value in row.items()))


def _library_note() -> list[str]:
    from ..store.sqlite import file

    note = file.version_note()
    return [] if note is None else [note]


def _notes(remote: http.Remote) -> list[str]:
    """The coordinator's clock decides; one that is far off is worth knowing."""
    if remote.time_ms is None:
        return []
    ahead = remote.time_ms - now_ms()
    if abs(ahead) < CLOCK_DIFFERENCE_MS:
        return []
    return [f"the coordinator's clock is {abs(ahead) / 1000:.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"]
