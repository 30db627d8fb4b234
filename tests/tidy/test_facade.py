"""`import halfmsg` costs nothing, and every public name is there."""

from __future__ import annotations

import subprocess
import sys

import pytest

import halfmsg
from tests.tidy import source

LOOK = """
import sys
before = set(sys.modules)  # a coverage tool may be here already
import halfmsg
heavy = [m for m in set(sys.modules) - before if m.partition(".")[0] in {"aiohttp", "sqlite3", "asyncio"} or m.startswith("halfmsg.")]
print(*heavy)
"""


def test_import_loads_neither_aiohttp_nor_the_packages() -> None:
    """A consumer never loads the outbox, and nobody loads the server."""
    done = subprocess.run([sys.executable, "-c", LOOK], check=True, capture_output=True, text=True, cwd=source.ROOT)
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", halfmsg.__all__)
def test_public_name_resolves(name: str) -> None:
    """What the stubs promise can be imported."""
    assert getattr(halfmsg, name) is not None


@pytest.mark.parametrize("package", ["halfmsg.txclient", "halfmsg.outbox", "halfmsg.checkback"])
def test_facade_names_are_public_at_home_too(package: str) -> None:
    """`from halfmsg.outbox import Outbox` and `from halfmsg import Outbox` are the same class."""
    home = __import__(package, fromlist=["__all__"])
    assert set(halfmsg._HOMES[package]) <= set(home.__all__)


def test_all_is_sorted_and_complete() -> None:
    """One list, in one order, without a name that only a checker would find."""
    names = {name for names in halfmsg._HOMES.values() for name in names} | {"__version__"}
    assert halfmsg.__all__ == sorted(names)
    assert set(halfmsg.__all__) <= set(dir(halfmsg))


def test_unknown_name_is_an_attribute_error() -> None:
    """A misspelt name is told at once, by name."""
    with pytest.raises(AttributeError, match="Outbocks"):
        _ = halfmsg.Outbocks
