"""`halfmsg config show|check`: each setting with its value and where it comes from."""

from __future__ import annotations

from pathlib import Path

import click

from .common import Item, json_option, rows
from .lazy import Noun
from .serve import load, settings_options

_SECRET = ("secret", "token", "password")


@click.group(cls=Noun)
def config() -> None:
    """Settings and where they come from: flag, environment, file, default, in this order."""


def _items(config_file: Path | None, assigned: tuple[str, ...]) -> list[Item]:
    import msgspec

    from ..settings import flatten

    settings, origins = load(config_file, assigned, {})
    values = flatten(msgspec.to_builtins(settings))
    return [{"name": name, "value": _shown(name, value), "origin": origins.get(name, "default")} for name, value in values.items()]


def _shown(name: str, value: object) -> object:
    if value and any(word in name for word in _SECRET):
        return "********"
    return value


@config.command()
@settings_options
@json_option
def show(config: Path | None, assigned: tuple[str, ...], as_json: bool) -> None:
    """Every setting, its value and its origin."""
    columns = (("setting", lambda item: item["name"]), ("value", lambda item: item["value"]), ("from", lambda item: item["origin"]))
    rows(_items(config, assigned), columns, as_json=as_json, empty="no settings")


@config.command()
@settings_options
def check(config: Path | None, assigned: tuple[str, ...]) -> None:
    """Would `serve` take these settings? Exit code 2 and the culprit if not."""
    changed = [item for item in _items(config, assigned) if item["origin"] != "default"]
    click.echo(f"ok  {len(changed)} settings differ from their defaults")
