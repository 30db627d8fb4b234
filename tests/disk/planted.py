"""Bugs that a tired engineer would write, put into a coordinator of these tests so that each part shows that it would notice."""

from __future__ import annotations

from typing import Any

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
