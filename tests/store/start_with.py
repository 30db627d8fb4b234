"""Opens a store as a later version would: with a made-up second schema step, which is never shipped. `FAIL_AT` arms a fail point."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from halfmsg.coordinator.store import failpoints
from halfmsg.coordinator.store.sqlite import file

SECOND = """-- A column with a default, a table that is filled from old rows, an index, a rewrite of every row of one table.
ALTER TABLE conflict ADD COLUMN made_up TEXT NOT NULL DEFAULT 'x';
CREATE TABLE new (a INTEGER PRIMARY KEY, b INTEGER NOT NULL);
INSERT INTO new SELECT 1, count(*) FROM tx;
CREATE INDEX new_b ON new (b);
UPDATE conflict SET made_up = said;
DROP INDEX dead_at;
CREATE INDEX dead_at ON dead (topic, lane, off) WHERE grp IS NULL;
"""

_shipped = file.migrations


def known() -> list[tuple[int, str, str]]:
    return [*_shipped(), (2, "0002_made_up.sql", SECOND)]


def main(path: Path, fail_at: str) -> None:
    from tests.support.stores import open_sqlite

    file.migrations = known
    with tempfile.TemporaryDirectory() as folder:
        failpoints.arm(fail_at, str(Path(folder) / "log"))
        open_sqlite(path).close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), os.environ.get("FAIL_AT", ""))
