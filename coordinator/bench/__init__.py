"""`halfmsg bench`: the product on this machine, beside its own floors, with settings, machine and durability printed.

Floors are measured in the same run, since machines drift: (s) the store's life cycle through the same transaction functions, in groups
of 100 and without a network; (h) a bare aiohttp handler that answers the same bytes and stores nothing.
"""

from __future__ import annotations

from .plan import Plan
from .runner import run

__all__ = ["Plan", "run"]
