"""The committed dashboard asks for metrics that exist, in PromQL that parses, and says what each panel means."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest

from halfmsg.coordinator.metrics import Metrics
from tests.tidy import source

DASHBOARDS = sorted((source.ROOT / "grafana").glob("*.json"))
PANELS_MAX = 20


def _load(path: Any) -> dict[str, Any]:
    board: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return board


def _panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def _queries(board: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for panel in _panels(board):
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])
    yield from ((note["name"], note["expr"]) for note in board["annotations"]["list"])


def _plain(query: str) -> str:
    """Grafana's own variables are not PromQL."""
    return re.sub(r"\$__(rate_interval|range|interval)", "5m", query)


def _series(node: Any) -> Iterator[tuple[str, set[str]]]:
    """(metric, labels named in its matchers or in what it is summed by) of every selector."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node.name or "", {matcher.name for matcher in node.matchers.matchers}
    for attribute in ("expr", "lhs", "rhs", "vector_selector", "param"):
        inner = getattr(node, attribute, None)
        if inner is not None and not isinstance(inner, str | int | float):
            yield from _series(inner)
    for inner in getattr(node, "args", None) or ():
        yield from _series(inner)


def _exported() -> set[str]:
    names = set()
    for name, kind in Metrics().families().items():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(kind, ("",))
        names |= {name + suffix for suffix in suffixes}
    return names


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_every_query_parses_and_names_only_exported_metrics(path: Any) -> None:
    """A renamed metric would leave an empty panel, which looks like health."""
    exported = _exported()
    wrong = []
    for title, query in _queries(_load(path)):
        names = [name for name, _ in _series(promql_parser.parse(_plain(query)))]
        assert names, f"{title}: no metric found in {query}"
        wrong += [f"{title}: {name}" for name in names if name not in exported]
    assert not wrong, "\n".join(wrong)


TABLE = (source.ROOT / "docs/operations.md").read_text(encoding="utf-8").partition("| PromQL |")[2].partition("\n\n")[0]
ALERTS = re.findall(r"^\| [^|]+ \| `(.+?)` \| .+ \|$", TABLE, re.MULTILINE)


@pytest.mark.parametrize("query", ALERTS)
def test_every_alert_of_the_operators_page_parses_and_names_only_exported_metrics(query: str) -> None:
    """A misspelt alert never fires."""
    names = [name for name, _ in _series(promql_parser.parse(query.replace("\\|", "|")))]
    assert names and set(names) <= _exported()


def test_dashboard_and_alerts_know_what_a_person_must_see() -> None:
    """Parked and contradicted transactions are nobody's business but a person's."""
    shown = {name for _, query in _queries(_load(DASHBOARDS[0])) for name, _ in _series(promql_parser.parse(_plain(query)))}
    assert len(ALERTS) > 6
    for name in ("halfmsg_parked_transactions", "halfmsg_conflicts_total"):
        assert name in shown and any(name in query for query in ALERTS)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_every_panel_has_an_id_of_its_own_a_unit_and_a_description(path: Any) -> None:
    """Who looks at a panel at night did not write it."""
    board = _load(path)
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    assert len(_panels(board)) < PANELS_MAX
    bare = [panel["title"] for panel in _panels(board) if not panel["description"] or not panel["fieldConfig"]["defaults"].get("unit")]
    assert not bare
    assert board["schemaVersion"] == 41


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_the_data_source_is_a_variable(path: Any) -> None:
    """A dashboard that names somebody else's Prometheus shows nothing."""
    board = _load(path)
    assert [variable["type"] for variable in board["templating"]["list"] if variable["name"] == "datasource"] == ["datasource"]
    for panel in _panels(board):
        assert {target["datasource"]["uid"] for target in panel["targets"]} | {panel["datasource"]["uid"]} == {"${datasource}"}


def test_there_is_a_dashboard() -> None:
    """Else the tests above would pass on an empty folder."""
    assert [path.name for path in DASHBOARDS] == ["halfmsg-overview.json"]
