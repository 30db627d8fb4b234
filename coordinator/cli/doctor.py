"""`halfmsg doctor`: the invariants, asked of a running coordinator or read from a store file. It repairs nothing."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import click

from . import http
from .common import Item, connected, emit, finding, json_option, now_ms
from .lazy import Failure

CLOCK_DIFFERENCE_MS = 5_000
DOCTOR_TIMEOUT_S = 60.0
"""It looks through the whole store, each check within its limit of work."""
LIVE_STEPS_MAX = 200_000_000
"""About four seconds a statement, where a coordinator works beside it."""
LIVE_BYTES_MAX = 512 * 1024 * 1024
LOG, PAGES = "log_is_whole", "pages_are_as_written"


@click.command()
@click.option("--store", type=click.Path(path_type=Path), metavar="FILE", help="Read this file in place of asking a coordinator.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="Violations shown of each invariant.")
@click.option("--sample", type=click.IntRange(0, 10_000_000), default=200, show_default=True, help="Messages whose digest is computed (--store).")
@json_option
@connected
def doctor(remote: http.Remote, store: Path | None, limit: int, sample: int, as_json: bool) -> None:
    """Check the invariants of the store; exit code 1 if one is violated."""
    if store is not None:
        items, restored, warnings = of_file(store, limit, sample)
    else:
        answer = remote.call("GET", "/v1/doctor", timeout_s=DOCTOR_TIMEOUT_S)
        items, restored, warnings = answer["items"], answer.get("restored"), _notes(remote)
    failed = [item for item in items if item["ok"] is False]
    if as_json:
        for item in items:
            emit(item)
    else:
        _print(items, warnings, failed, limit)
        _print_restored(restored)
    if failed:
        raise click.exceptions.Exit(1)


def of_file(store: Path, limit: int, sample: int) -> tuple[list[Item], Item | None, list[str]]:
    """(findings, of a restore, warnings) of the file, read-only. A coordinator may be using it: then each statement has a limit of work,
    since the log cannot begin anew while one reads. A damaged log is not opened: SQLite would forget that there was more.
    """
    import msgspec

    from .. import doctor as invariants
    from ..store.sqlite import file

    if not store.is_file():
        raise Failure(f"there is no file {store}. Name the store: halfmsg doctor --store FILE", 1)
    store = file.real(store)
    live = file.in_use(store)
    warnings = _library_note()
    try:
        bytes_found = [] if live else _bytes_of(store, warnings)
        if any(found["name"] == LOG for found in bytes_found):
            return bytes_found, None, warnings
        with closing(sqlite3.connect(file.read_only(store), uri=True, isolation_level=None)) as conn:
            if file.is_foreign(conn):
                raise Failure(f"{store} is a SQLite file of something else. Name the store: halfmsg doctor --store FILE", 1)
            small = not live or store.stat().st_size <= LIVE_BYTES_MAX
            found = invariants.run(conn, limit=limit, sample=sample, steps_max=LIVE_STEPS_MAX if live else None, integrity=small)
            restored = invariants.restored(conn, limit=limit)
    except sqlite3.Error as error:
        raise Failure(f"cannot read {store}: {error}. Is it a store of this version? {file.instead(store)}", 1) from error
    if not small:
        warnings.append("the file is large and in use: file_is_sound was left out. Take a backup, which checks it: halfmsg backup FILE")
    return bytes_found + [msgspec.to_builtins(finding) for finding in found], restored, warnings


def _bytes_of(store: Path, warnings: list[str]) -> list[Item]:
    """What the log's checksums and the page sums say, before SQLite is asked."""
    from ..store.sqlite import file

    log, wrong = file.look(store)
    if log.torn:
        warnings.append(f"the log ends with {log.torn} unreadable pages of one transaction: torn by a power cut, or the last commit, damaged")
    if wrong is None:
        warnings.append(f"there are no page sums beside {store}: damage is seen where SQLite or a digest sees it")
    name, words = (LOG if log.damage else PAGES), file.damage(store, log, wrong)
    return [{"name": name, "ok": False, "rows": [{"next": file.instead(store)}], "meaning": words}] if words is not None else []


def _print_restored(restored: Item | None) -> None:
    if restored is None:
        return
    from ..clock import rfc3339

    at, of = rfc3339(restored["at"]), rfc3339(restored["backup_at"])
    again, keys = restored["again"], restored["waiting_keys"]
    click.echo(f"restored {at} from a backup of {of}: {again} transactions of before came again, {keys} keys wait for a number (halfmsg key ls)")
    for id_ in restored["again_ids"]:
        click.echo(f"     again {id_}")


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
            click.echo(f"     {finding(row)}")


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
