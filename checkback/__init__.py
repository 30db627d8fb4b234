"""halfmsg.checkback: the coordinator asks what became of a transaction, the producer answers. Knows no framework, no database.

Two sides meet here and share only words. The side that asks: `schedule` (when) and `verdict` (what an answer means) are
pure, `poller` drives them over `ports`, `http_way` is one way to ask. The side that answers: `frames` and `responder`
without I/O, `deciding` and `mounts` around them. Both sign with `signing`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .answers import Answer, Question, Reply, Verdict

if TYPE_CHECKING:
    from .responder import Responder

__all__ = ["Answer", "Question", "Reply", "Responder", "Verdict"]


def __getattr__(name: str) -> object:
    """Load `Responder` at its first use, so that who only needs the words pays for no JSON library (PEP 562)."""
    if name != "Responder":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .responder import Responder

    return Responder
