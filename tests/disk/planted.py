"""Bugs that a tired engineer would write, put into a coordinator of these tests so that each part shows that it would notice.

`checkpoints` is no bug: its coordinator cuts its WAL whenever it has one, so that a short life has that as well.
"""

from __future__ import annotations

from typing import Any

from halfmsg.coordinator import loops
from halfmsg.coordinator.store.sqlite.backend import SqliteBackend
from halfmsg.coordinator.store.writer import Writer


def answer_before_commit() -> None:
    """The answers go out when the group is applied; COMMIT follows."""
    commit, answer, run_group = SqliteBackend.commit, Writer._answer, Writer._run_group

    def early(self: Writer, jobs: list[Any]) -> None:
        def answer_and_commit() -> None:
            answer(self, jobs, [], 0.0)
            commit(self._backend)  # type: ignore[arg-type]

        self._backend.commit = answer_and_commit  # type: ignore[method-assign]
        self._answer = lambda *_: None  # type: ignore[method-assign]
        run_group(self, jobs)

    Writer._run_group = early  # type: ignore[method-assign]


def checkpoints() -> None:
    every = loops.Ticks.all
    loops.CHECKPOINT_WAL_BYTES = 1
    loops.Ticks.all = lambda self: every(self) | {"checkpoint": (0.05, self.checkpoint)}  # type: ignore[method-assign]


def deaf_to_sync() -> None:
    """An error of COMMIT is logged, and the callers hear that all went well."""
    checkpoints()
    commit = SqliteBackend.commit

    def deaf(self: SqliteBackend) -> None:
        try:
            commit(self)
        except Exception:
            self.rollback()

    SqliteBackend.commit = deaf  # type: ignore[method-assign]
