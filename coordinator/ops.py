"""The operations of one vocabulary (API §6), for batch and stream alike: wire op -> call of a transaction function -> wire result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from . import parse, render, wire
from .engine import Engine
from .errors import Problem
from .messages import Content, TransactionView
from .service import settling, transactions
from .store.writer import Call


def call_of(op: Any, *, packed: bool, now_ms: int) -> Call:
    """Raises Problem for what can be refused without the store."""
    return _BY_TYPE[type(op)](op, packed, now_ms)


def _prepare(op: wire.Prepare, packed: bool, now_ms: int) -> Call:
    if op.producer is None:
        raise Problem("bad_request", "a half message names its producer, who is asked about it - at `$.producer`")
    return transactions.store_content, parse.content(op, submit=False, packed=packed, now_ms=now_ms)


def _submit(op: wire.Submit, packed: bool, now_ms: int) -> Call:
    return transactions.store_content, parse.content(op, submit=True, packed=packed, now_ms=now_ms)


def _decide(op: wire.Commit | wire.Rollback, packed: bool, now_ms: int) -> Call:
    command = parse.decision(op.id, op)
    if op.force:
        raise Problem("bad_request", "a forced decision is a resource call of its own, not an operation of a batch")
    return transactions.decide, command


_BY_TYPE: dict[type, Callable[[Any, bool, int], Call]] = {
    wire.Prepare: _prepare,
    wire.Submit: _submit,
    wire.Commit: _decide,
    wire.Rollback: _decide,
    wire.Ack: lambda op, packed, now_ms: (settling.settle, parse.acks(op.group, op)),
    wire.Nack: lambda op, packed, now_ms: (settling.settle, parse.nacks(op.group, op)),
    wire.Reject: lambda op, packed, now_ms: (settling.settle, parse.rejects(op.group, op)),
    wire.Extend: lambda op, packed, now_ms: (settling.extend, parse.extension(op.group, op)),
}


def result_of(value: Any) -> dict[str, Any]:
    """`{ok: …}`"""
    if isinstance(value, TransactionView):
        return {"ok": render.transaction(value)}
    return {"ok": render.items(value)}


class Plan:
    """The calls of one envelope, and where each answer goes; what was refused at once has its answer already."""

    def __init__(self, engine: Engine, ops: list[Any], *, packed: bool) -> None:
        self.results: list[Any] = [None] * len(ops)
        self.calls: list[Call] = []
        self._at: list[int] = []
        self._metrics = engine.metrics
        now_ms = engine.clock.now_ms()
        for index, op in enumerate(ops):
            try:
                if isinstance(op, Problem):
                    raise op
                call = call_of(op, packed=packed, now_ms=now_ms)
                if isinstance(call[1], Content):
                    engine.check_open()
            except Problem as problem:
                self.results[index] = self._refused(problem)
            else:
                self.calls.append(call)
                self._at.append(index)

    def fill(self, answers: list[Any]) -> list[Any]:
        for index, answer in zip(self._at, answers, strict=True):
            self.results[index] = self._refused(answer) if isinstance(answer, Problem) else result_of(answer)
        return self.results

    def _refused(self, problem: Problem) -> dict[str, Any]:
        """`{error: …}`, counted as a call of its own would be."""
        self._metrics.rejected(problem.code)
        return {"error": render.problem(problem)}

    def refuse(self, problem: Problem) -> list[Any]:
        """The door refused the envelope as a whole."""
        return self.fill([problem] * len(self._at))


class RawOps(msgspec.Struct):
    """An ops envelope read op by op, when one of them is wrong: its neighbours still run."""

    ops: list[msgspec.Raw]


def decode_each(raw: list[msgspec.Raw], decode: Callable[[bytes, Any], Any]) -> list[Any]:
    if not 1 <= len(raw) <= wire.MAX_BATCH_OPS:
        raise Problem("too_large" if raw else "bad_request", f"{len(raw)} operations; an envelope takes 1 to {wire.MAX_BATCH_OPS}")
    found: list[Any] = []
    for each in raw:
        try:
            found.append(decode(bytes(each), wire.Op))
        except Problem as problem:
            found.append(problem)
    return found
