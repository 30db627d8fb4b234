"""`halfmsg serve`: read settings, arm fail points, hand both to the coordinator and end with its exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import pairs
from .lazy import Failure, later

if TYPE_CHECKING:
    from ..settings import Settings

CONFIG = Path("halfmsg.toml")


def settings_options(command: Any) -> Any:
    """--config and --set, shared by `serve` and `config`."""
    command = click.option("--set", "assigned", multiple=True, metavar="NAME=VALUE", help="Any setting, e.g. check.first_delay_s=1.")(command)
    return click.option("--config", type=click.Path(path_type=Path), help="Settings file (TOML); else ./halfmsg.toml where it exists.")(command)


def load(config: Path | None, assigned: tuple[str, ...], flags: dict[str, Any]) -> tuple[Settings, dict[str, str]]:
    """Flag > environment > file > default. Raises Failure (exit code 2) with the culprit's name."""
    from .. import settings
    from ..errors import StartError

    if config is None and CONFIG.exists():
        config = CONFIG
    try:
        return settings.load(flags | pairs(assigned, "--set"), os.environ, config)
    except StartError as error:
        raise Failure(str(error), error.exit_code) from error
    except OSError as error:
        raise Failure(f"cannot read {error.filename}, named by a HALFMSG_..._FILE variable: {error.strerror}", 2) from error


@click.command()
@click.option("--dev", is_flag=True, help="Make topics, groups and producers on first use. For trying out.")
@click.option("--listen", metavar="HOST:PORT", help="Where to listen [default: 127.0.0.1:7610].")
@click.option("--store", metavar="FILE", help="The store [default: halfmsg.db].")
@click.option("--insecure", is_flag=True, help="Allow an address that is not loopback, without tokens and TLS.")
@settings_options
def serve(dev: bool, listen: str | None, store: str | None, insecure: bool, config: Path | None, assigned: tuple[str, ...]) -> None:
    """Run the coordinator until SIGTERM or Ctrl-C."""
    settings, origins = load(config, assigned, {"dev": dev or None, "listen": listen, "store": store, "insecure": insecure or None})
    _arm(os.environ.get("HALFMSG_FAILPOINTS"))
    from ..errors import StartError

    try:
        code = later("halfmsg.coordinator.app", "run", "serve")(settings, origins)
    except StartError as error:
        raise Failure(str(error), error.exit_code) from error
    raise click.exceptions.Exit(code or 0)


def _arm(spec: str | None) -> None:
    """Fail points for tests that kill; off unless named."""
    if not spec:
        return
    from ..store import failpoints

    try:
        failpoints.arm(spec, os.environ.get("HALFMSG_FAILPOINT_LOG"))
    except ValueError as error:
        raise Failure(f"HALFMSG_FAILPOINTS: {error}", 2) from error
    print(f"fail points armed: {spec}", file=sys.stderr)
