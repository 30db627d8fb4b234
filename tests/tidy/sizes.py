"""`make sizes`: the longest files and functions of the packages, and the median function."""

from __future__ import annotations

import ast
import statistics

from tests.tidy import source

SHOWN = 10


def main() -> None:
    files: list[tuple[int, str]] = []
    functions: list[tuple[int, str]] = []
    for file in source.files(*source.PACKAGES):
        files.append((len(file.text.splitlines()), file.name))
        for node in ast.walk(file.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.append(((node.end_lineno or node.lineno) - node.lineno + 1, f"{file.name}:{node.lineno} {node.name}"))
    if not functions:
        print("no functions yet")
        return
    lengths = [n for n, _ in functions]
    print(f"{len(files)} files, {sum(n for n, _ in files)} lines, median {statistics.median(n for n, _ in files):g}")
    print(f"{len(functions)} functions, median {statistics.median(lengths):g} lines")
    for title, rows in (("longest files", files), ("longest functions", functions)):
        print(f"\n{title}")
        for n, name in sorted(rows, reverse=True)[:SHOWN]:
            print(f"{n:6} {name}")


if __name__ == "__main__":
    main()
