"""Structured logs of the server: JSON lines, or for people on a terminal. Libraries log through the standard library and are rendered here."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog
from aiohttp.http_exceptions import HttpProcessingError

log = logging.getLogger("halfmsg.api")

SECRET_WORDS = ("secret", "token", "password", "authorization")


def _mask(_: Any, __: str, event: Any) -> Any:
    """Secrets never stand in logs."""
    for name in event:
        if any(word in name.lower() for word in SECRET_WORDS):
            event[name] = "***"
    return event


class NotHttp(logging.Filter):
    """What is no HTTP (garbage, TLS, a scanner) is answered 400 and is no defect of ours: one line for who debugs, in place of an error with
    aiohttp's traceback for each piece. Everything else is let through.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, HttpProcessingError):
            return True
        log.debug("%s: %s", record.getMessage(), " ".join(str(error).split())[:200])
        return False


def configure(*, dev: bool) -> None:
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _mask,
    ]
    people = dev and sys.stderr.isatty()
    final: Any = structlog.dev.ConsoleRenderer() if people else structlog.processors.JSONRenderer()
    before: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if not people:
        before.append(structlog.processors.format_exc_info)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[*before, final]))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("aiohttp").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.server").addFilter(NotHttp())
