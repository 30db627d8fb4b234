"""Every setting, frozen, with its default and its limit. Where values come from is told by `origins`; only the command line reads
argv and the environment, and hands both down.

Precedence: flag > `HALFMSG_SECTION__KEY` (or `…_FILE`) > `--config FILE` or `./halfmsg.toml` > default.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from .errors import StartError

Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


class _Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Storage(_Section, frozen=True, kw_only=True):
    synchronous: Literal["FULL", "NORMAL", "EXTRA"] = "FULL"
    i_accept_loss: bool = False
    free_bytes_min: Annotated[int, Meta(ge=0)] = 64 * 1024 * 1024
    queue_commands_max: Count = 20_000
    queue_bytes_max: Count = 256 * 1024 * 1024


class Check(_Section, frozen=True, kw_only=True):
    first_delay_s: Positive = 5.0
    gap_delay_s: Positive = 0.05
    max_interval_s: Positive = 300.0
    max_attempts: Count = 30
    max_age_s: Positive = 7 * 86_400.0
    parked_interval_s: Positive = 86_400.0
    concurrency_per_producer: Annotated[int, Meta(ge=1, le=64)] = 8
    ids_per_question: Annotated[int, Meta(ge=1, le=50)] = 50
    question_timeout_s: Positive = 10.0


class Groups(_Section, frozen=True, kw_only=True):
    lease_s: Annotated[float, Meta(ge=0.05, le=3_600)] = 30.0
    max_attempts: Count = 16
    backoff_first_s: Positive = 1.0
    backoff_max_s: Positive = 600.0
    max_dead_letters: Count = 1_000_000


class Messages(_Section, frozen=True, kw_only=True):
    max_bytes: Annotated[int, Meta(ge=1, le=16 * 1024 * 1024)] = 1024 * 1024


class Topics(_Section, frozen=True, kw_only=True):
    retention_s: Positive = 7 * 86_400.0
    max_backlog: Count = 10_000_000
    lanes_unordered: Annotated[int, Meta(ge=1, le=1_024)] = 1
    lanes_ordered: Annotated[int, Meta(ge=1, le=1_024)] = 64


class Transactions(_Section, frozen=True, kw_only=True):
    dedupe_s: Positive = 7 * 86_400.0


class Callback(_Section, frozen=True, kw_only=True):
    allow: tuple[str, ...] = ("127.0.0.0/8", "::1/128")


class Producers(_Section, frozen=True, kw_only=True):
    max_in_doubt: Count = 10_000


class Streams(_Section, frozen=True, kw_only=True):
    connections_max: Count = 1_000
    unsent_bytes_max: Count = 64 * 1024 * 1024


class Settings(_Section, frozen=True, kw_only=True):
    listen: str = "127.0.0.1:7610"
    store: str = "halfmsg.db"
    dev: bool = False
    insecure: bool = False
    drain_s: Positive = 20.0
    stuck_s: Positive = 5.0
    storage: Storage = Storage()
    check: Check = Check()
    group: Groups = Groups()
    message: Messages = Messages()
    topic: Topics = Topics()
    transaction: Transactions = Transactions()
    callback: Callback = Callback()
    producer: Producers = Producers()
    stream: Streams = Streams()

    @property
    def host_port(self) -> tuple[str, int]:
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


LOOPBACK = ("127.", "localhost", "::1")


def check(settings: Settings) -> Settings:
    """What no single field can say. Raises StartError with exit code 2."""
    host, _, port = settings.listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise StartError(f"listen = {settings.listen!r} is not HOST:PORT", "Example: --listen 127.0.0.1:7610", 2)
    if not host.strip("[]").startswith(LOOPBACK) and not settings.insecure:
        raise StartError(
            f"listen = {settings.listen!r} is not a loopback address, and tokens and TLS are not built yet",
            "Listen on 127.0.0.1, or say --insecure if everybody who reaches this address may do everything",
            2,
        )
    if settings.storage.synchronous == "NORMAL" and not settings.storage.i_accept_loss:
        raise StartError(
            "storage.synchronous = NORMAL loses acknowledged messages on power failure",
            "Keep FULL, or set storage.i_accept_loss = true as well",
            2,
        )
    if settings.store.startswith(("postgres://", "postgresql://")):
        raise StartError("PostgreSQL as the coordinator's store is not built yet", "Name a file: --store halfmsg.db", 2)
    if settings.store.startswith("sqlite:"):
        raise StartError(f"store = {settings.store!r} is a URL, and the coordinator's store a file", "Example: --store halfmsg.db", 2)
    if settings.check.first_delay_s > settings.check.max_interval_s:
        raise StartError("check.first_delay_s is above check.max_interval_s", "Lower the first or raise the second", 2)
    if not 0.001 <= settings.group.backoff_first_s <= settings.group.backoff_max_s:
        raise StartError("group.backoff_first_s is under 0.001 or above group.backoff_max_s", "Lower the first or raise the second", 2)
    from halfmsg.checkback.allowlist import AllowList

    try:
        AllowList(settings.callback.allow)
    except ValueError as error:
        raise StartError(str(error), "Example: --set callback.allow=loopback,10.0.0.0/8,orders.internal", 2) from error
    return settings


ALIASES = {"HALFMSG_LISTEN": "listen", "HALFMSG_STORE": "store"}
IN_THE_SERVICE = {"outbox.prepare_timeout_s": "Outbox(..., prepare_timeout_s=...)", "inbox.keep_s": "Inbox(..., keep=...)"}
_NOT_SETTINGS = (
    "HALFMSG_URL",
    "HALFMSG_TOKEN",
    "HALFMSG_NAMESPACE",
    "HALFMSG_CHECK_SECRET",
    "HALFMSG_FAILPOINTS",
    "HALFMSG_FAILPOINT_LOG",
    "HALFMSG_LOOP",
)


def load(flags: Mapping[str, Any], environment: Mapping[str, str], config: Path | None) -> tuple[Settings, dict[str, str]]:
    """(settings, origin of each dotted name that is not a default). Raises StartError (exit code 2) naming the culprit."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, value, origin in [*_from_file(config), *_from_environment(environment), *((k, v, "flag") for k, v in flags.items() if v is not None)]:
        _put(values, name, value)
        origins[name] = origin
    try:
        return check(msgspec.convert(values, Settings, strict=False)), origins
    except msgspec.ValidationError as error:
        for name in origins.keys() & IN_THE_SERVICE.keys():
            raise StartError(f"{name} is a setting of the service, not of the coordinator", f"Say it there: {IN_THE_SERVICE[name]}", 2) from error
        culprit = _culprit(str(error))
        where = next((origin for name, origin in origins.items() if f"{name}.".startswith(f"{culprit}.")), "the settings")
        raise StartError(f"{culprit}: {error} (from {where})", _near(culprit), 2) from error


def _culprit(words: str) -> str:
    """The dotted name that msgspec's words are about."""
    path, field = re.search(r"at `\$\.([^`]*)`", words), re.search(r"unknown field `([^`]*)`", words)
    return ".".join(found[1] for found in (path, field) if found) or "a setting"


def _near(name: str) -> str:
    known = list(flatten(msgspec.to_builtins(Settings())))
    if name in known:
        words = _words(name)
        return f"It is one of {', '.join(words)}" if words else "Mend it there"
    near = get_close_matches(name, known, 1)
    return f"Did you mean {near[0]}?" if near else "Leave it out: `halfmsg config show` has the names"


def _words(name: str) -> tuple[str, ...]:
    """What a setting may be, where it is one of a few words."""
    kind: Any = Settings
    for part in name.split("."):
        kind = get_type_hints(kind)[part]
    return get_args(kind) if get_origin(kind) is Literal else ()


def _from_file(config: Path | None) -> list[tuple[str, Any, str]]:
    if config is None:
        return []
    try:
        tree = tomllib.loads(config.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StartError(f"cannot read {config}: {error}", "Mend it, or leave --config out", 2) from error
    return [(name, value, str(config)) for name, value in flatten(tree).items()]


def _from_environment(environment: Mapping[str, str]) -> list[tuple[str, Any, str]]:
    found: list[tuple[str, Any, str]] = []
    for variable, value in sorted(environment.items()):
        if not variable.startswith("HALFMSG_") or variable.removesuffix("_FILE") in _NOT_SETTINGS:
            continue
        text = value
        key = variable
        if variable.endswith("_FILE"):
            key, text = variable.removesuffix("_FILE"), _secret(variable, value)
        found.append((ALIASES.get(key, key.removeprefix("HALFMSG_").lower().replace("__", ".")), text, variable))
    return found


def _secret(variable: str, path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise StartError(f"{variable} names {path}, which cannot be read: {error.strerror}", "Name a file that this user may read", 2) from error


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    *sections, last = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise StartError(f"{name}: {section} has a value and settings below it", "Set one of the two", 2)
    if last == "allow" and isinstance(value, str):
        value = [item.strip() for item in value.split(",")]
    values[last] = value
