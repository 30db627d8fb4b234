"""Named SQL from a file: `-- name: words` stands above each statement."""

from __future__ import annotations

import re
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


class Queries:
    """Attribute access by name; a name that is not there fails at the first use, in any test."""

    def __init__(self, dialect: str) -> None:
        text = (files(__package__) / "sql" / dialect / "queries.sql").read_text()
        parts = _NAME.split(text)[1:]
        self.by_name: dict[str, str] = {}
        for name, sql in zip(parts[::2], parts[1::2], strict=True):
            if name in self.by_name:
                raise ValueError(f"two statements are named {name}")
            self.by_name[name] = _without_comments(sql)
        self.__dict__.update(self.by_name)

    def __getattr__(self, name: str) -> str:
        raise AttributeError(f"no statement is named {name}")


def _without_comments(sql: str) -> str:
    lines = [line for line in sql.splitlines() if line.strip() and not line.startswith("--")]
    return "\n".join(lines).rstrip(";")
