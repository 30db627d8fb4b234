"""What is measured and how: printed above every figure."""

from __future__ import annotations

import os
import platform
import sqlite3
import sys
from pathlib import Path

from msgspec import Struct

BODY_BYTES = 300


class Plan(Struct, frozen=True):
    seconds: float = 8.0
    runs: int = 3
    producers: int = 256
    http_connections: int = 64
    batch: int = 100
    folder: str = ""
    """Where the store's file goes; empty: a temporary folder."""


def machine() -> dict[str, str]:
    """Enough to compare two figures, and no more."""
    return {
        "machine": f"{os.cpu_count()} cores, {_cpu()}, {platform.system()} {platform.release()}",
        "python": f"{platform.python_version()}, {sys.implementation.name}",
        "durability": f"SQLite {sqlite3.sqlite_version}, WAL, synchronous=FULL: one fsync a group commit",
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown CPU"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def body() -> bytes:
    """One JSON body of 300 bytes."""
    start = b'{"order":"0123456789","note":"'
    return start + b"x" * (BODY_BYTES - len(start) - 2) + b'"}'
