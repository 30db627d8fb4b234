"""One adapter a driver, 5-10 lines of meaning each: what a transaction is there, how a statement runs, how it is ended.

Chosen by the module of the object's type, so no driver is imported unless the user did.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from halfmsg.txclient import UsageError

from ..effects import Adapter

_BY_MODULE = {"sqlite3": "sqlite", "aiosqlite": "aiosqlite", "psycopg": "psycopg"}


def adapter_of(on: Any) -> Adapter:
    """The adapter for a connection (or cursor) that was handed in. Raises UsageError(unknown_database)."""
    for base in type(on).__mro__:
        module = _BY_MODULE.get(base.__module__.partition(".")[0])
        if module is not None:
            adapter: Adapter = import_module(f"{__name__}.{module}").adapter(on)
            return adapter
    known = ", ".join(sorted(_BY_MODULE))
    raise UsageError("unknown_database", f"a {type(on).__module__}.{type(on).__qualname__} is no connection that is known here; there are {known}")
