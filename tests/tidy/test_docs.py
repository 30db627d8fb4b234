"""Pages that name things in the code name things that exist."""

from __future__ import annotations

import ast
import re
import runpy

import pytest

from tests.tidy import source


def test_states_page_is_drawn_from_the_table() -> None:
    """`make states` writes it anew."""
    render = runpy.run_path(str(source.ROOT / "docs/make_states.py"))["render"]
    assert source.ROOT.joinpath("docs/states.md").read_text(encoding="utf-8") == render()


def test_tests_named_on_the_reliability_page_exist() -> None:
    """A promise stands on tests that can be run."""
    page = source.ROOT.joinpath("docs/reliability.md").read_text(encoding="utf-8")
    there = {node.name for file in source.files("tests") for node in ast.walk(file.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    files = {file.name for file in source.files("tests")}
    named = set(re.findall(r"`(?:tests/[\w/]+\.py::)?(test_\w+)`", page))
    assert sorted(named - there) == []
    assert sorted(set(re.findall(r"\b(tests/[\w/]+\.py)", page)) - files) == []


def test_proofs_named_on_the_reliability_page_are_verbs_of_make_and_none_is_left_out() -> None:
    """What `make prove` runs has a line in its table, and a command that the page names can be typed."""
    makefile = source.ROOT.joinpath("Makefile").read_text(encoding="utf-8")
    page = source.ROOT.joinpath("docs/reliability.md").read_text(encoding="utf-8")
    table = page.partition("## What runs it")[2].partition("\n## ")[0]
    verbs = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    proofs = set(re.findall(r"\$\(MAKE\) --no-print-directory ([a-z-]+)", makefile))
    assert len(proofs) > 8
    assert sorted(set(re.findall(r"`make ([a-z-]+)", page)) - verbs) == []
    assert sorted(proofs - set(re.findall(r"^\| `make ([a-z-]+)", table, re.MULTILINE))) == []


def test_links_between_pages_lead_somewhere() -> None:
    """A relative link of a Markdown page is a file of the repository."""
    wrong = []
    for page in source.files(suffix=".md"):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", source.prose(page)):
            if "://" not in target and not (page.path.parent / target).exists():
                wrong.append(f"{page.name} -> {target}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("word", ["/work/", "../shared"])
def test_pages_name_no_path_outside_the_repository(word: str) -> None:
    """What a reader cannot open does not help."""
    assert [page.name for page in source.files(suffix=".md") if word in page.text] == []
