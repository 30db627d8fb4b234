"""`make mutants`: plant each bug in a copy, run the tests named for it, and expect them to fail.

Exit code 0: each was caught. 1: a survivor, which is a defect of our tests, or a mutant that no longer applies. 2: the named tests do not
pass without any bug, so nothing was learnt.
"""

from __future__ import annotations

import argparse
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.mutants.plant import Mutant, Unfit, file_and_name, load_all
from tests.mutants.tree import Copy, verdict

CLEAN_TIMEOUT_S = 240


@dataclass(frozen=True)
class Result:
    mutant: Mutant
    caught: bool
    by: str
    seconds: float


def chosen(mutants: Sequence[Mutant], names: Sequence[str], fast: int | None) -> list[Mutant]:
    """All, those named, or the first `fast` of those marked for `make test`. Raises Unfit for an unknown name."""
    if unknown := set(names) - {mutant.name for mutant in mutants}:
        raise Unfit(f"no such mutant: {', '.join(sorted(unknown))}")
    found = [mutant for mutant in mutants if not names or mutant.name in names]
    return found if fast is None else [mutant for mutant in found if mutant.fast][:fast]


def check_clean(copies: Sequence[Copy], mutants: Sequence[Mutant]) -> list[str]:
    """What is wrong before any bug is planted: copies that are not imported, tests that fail, mutants of which no test ran (all skipped)."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    shares = [tests[at :: len(copies)] for at in range(len(copies))]
    passed: set[str] = set()
    wrong: list[str] = []

    def one(copy: Copy, share: list[str]) -> None:
        with copy.probe() as probe:
            seen = copy.pytest([probe, *share], timeout_s=CLEAN_TIMEOUT_S)
        passed.update(seen.passed)
        if not any(test.startswith(probe) for test in seen.passed):
            wrong.append(f"it is not shown that the copy is what its tests import:\n{seen.output[-4_000:]}")
        elif seen.code != 0:
            wrong.append(f"without any bug the named tests do not pass (exit code {seen.code}):\n{seen.output[-4_000:]}")

    _together([(one, copy, share) for copy, share in zip(copies, shares, strict=True)])
    ran = {file_and_name(test) for test in passed} | {(file_and_name(test)[0], file_and_name(test)[1].partition("::")[0]) for test in passed}
    wrong += [f"{mutant.name}: none of its tests ran here" for mutant in mutants if not any(file_and_name(test) in ran for test in mutant.tests)]
    return wrong


def run(copies: Sequence[Copy], mutants: Sequence[Mutant]) -> list[Result]:
    """Each mutant in one of the copies, as many at a time as there are copies."""
    waiting: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    for mutant in mutants:
        waiting.put(mutant)
    results: dict[str, Result] = {}

    def worker(copy: Copy) -> None:
        while True:
            try:
                mutant = waiting.get_nowait()
            except queue.Empty:
                return
            results[mutant.name] = _one(copy, mutant)

    _together([(worker, copy) for copy in copies])
    return [results[mutant.name] for mutant in mutants]


def _one(copy: Copy, mutant: Mutant) -> Result:
    began = time.monotonic()
    try:
        copy.plant(mutant)
    except Unfit as error:
        copy.mend(mutant)
        return Result(mutant, False, str(error), time.monotonic() - began)
    try:
        caught, by = verdict(mutant, copy.pytest(list(mutant.tests), "-x"))
    finally:
        copy.mend(mutant)
    return Result(mutant, caught, by, time.monotonic() - began)


def _together(work: Sequence[tuple[Callable[..., None], *tuple[Any, ...]]]) -> None:
    """Each in a thread of its own; the first error is raised when all have ended."""
    errors: list[BaseException] = []

    def guarded(act: Callable[..., None], *given: Any) -> None:
        try:
            act(*given)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=each) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def table(results: Sequence[Result]) -> str:
    """mutant, promise, caught by, seconds."""
    width = max(len(result.mutant.name) for result in results)
    lines = [f"{'mutant':{width}}  {'':4} {'s':>5}  caught by"]
    for result in results:
        by = result.by.splitlines()[0] if result.caught else f"NOT CAUGHT: {result.by.splitlines()[0]}"
        lines.append(f"{result.mutant.name:{width}}  {result.mutant.promise:4} {result.seconds:5.1f}  {by}")
    return "\n".join(lines)


def run_all(mutants: Sequence[Mutant], jobs: int = 2) -> list[Result]:
    """From copies to results. Raises Unfit where the copy is not what is imported, or the named tests fail without any bug."""
    with tempfile.TemporaryDirectory(prefix="halfmsg-mutants-") as folder:
        copies = [Copy(Path(folder) / str(number)) for number in range(max(1, min(jobs, len(mutants))))]
        if wrong := check_clean(copies, mutants):
            raise Unfit("\n".join(wrong))
        return run(copies, mutants)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="only these")
    parser.add_argument("--fast", type=int, metavar="N", help="only N of those marked for make test")
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    began = time.monotonic()
    try:
        mutants = chosen(load_all(), given.names, given.fast)
        results = run_all(mutants, given.jobs)
    except Unfit as error:
        print(error, file=sys.stderr)
        return 2
    print(table(results))
    survivors = [result for result in results if not result.caught]
    for result in survivors:
        print(f"\n{result.mutant.name} ({result.mutant.promise}, {result.mutant.rule}): {result.mutant.why}\n{result.by}")
    print(f"\n{len(results) - len(survivors)} of {len(results)} planted bugs caught in {time.monotonic() - began:.0f} s")
    if survivors:
        print("survivors: " + " ".join(result.mutant.name for result in survivors))
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
