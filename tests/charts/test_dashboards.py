"""Dashboards and alerts ask for series that exist, by labels that these have, and dashboards are whole."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from tests.charts.series import Series, all_series

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # the newer schema is for Grafana 12 and later
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

FOLDER = Path("charts/capstan/files/dashboards")
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
ALERTS = Path("charts/capstan/files/alerts.yaml")

_NAME = re.compile(r"\bcapstan_[a-z_]+\b")
_SELECTOR = re.compile(r"\b(capstan_[a-z_]+)\b(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")
_LEGEND = re.compile(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def series() -> Series:
    return await all_series()


def expressions(dashboard: dict[str, Any]) -> list[tuple[str, str]]:
    """(PromQL, legend) of all its queries and variables."""
    found = [
        (target["expr"], target.get("legendFormat", ""))
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            queried, _, label = variable["query"].removeprefix("label_values(").removesuffix(")").rpartition(", ")
            found.append((queried, f"{{{{{label}}}}}"))
    return found


def alerts() -> list[dict[str, Any]]:
    """The rules, with what Helm puts into them put in by hand."""
    text = ALERTS.read_text().replace("{{ .Values.metrics.prometheusRule.checkpointAgeSeconds }}", "7200")
    text = re.sub(r'\{\{ ("[^\n]*") \| quote \}\}', r"\1", text)
    rules: list[dict[str, Any]] = yaml.safe_load(text)
    return rules


def problems(expression: str, legend: str, series: Series) -> list[str]:
    """What is wrong with a query, one line each."""
    found = [
        f"{name}: there is no such series" for name in _NAME.findall(_unlabelled(expression)) if name not in series
    ]
    if found:
        return found
    of_all: set[str] = set()
    for name, matchers in _SELECTOR.findall(expression):
        if name not in series:  # the name of a label
            continue
        of_all |= series[name].keys()
        for label, operator, value in _MATCHER.findall(matchers):
            values = series[name].get(label)
            if values is None:
                found.append(f"{name}: has no label {label}")
            elif operator == "=" and values and "$" not in value and value not in values:
                found.append(f"{name}: {label} is never {value}")
    groups = [label.strip() for group in _GROUPING.findall(expression) for label in group.split(",")]
    found += [f"by {label}: no series here has it" for label in groups if label not in of_all]
    is_grouped = re.search(r"\b(sum|max|min|count|avg)\b", expression) is not None
    found += [
        f"{{{{{label}}}}}: is not in the result"
        for label in _LEGEND.findall(legend)
        if label not in (groups if is_grouped else of_all)
    ]
    found += [
        f"{expression}: brackets do not match" for pair in ("()", "{}", "[]") if not _is_balanced(expression, pair)
    ]
    return found


def _unlabelled(expression: str) -> str:
    """Without what is in braces or in `by (…)`: labels may have names like ours."""
    return re.sub(r"\{[^}]*\}|\b(?:by|on)\s*\([^)]*\)", "", expression)


def _is_balanced(expression: str, pair: str) -> bool:
    depth = 0
    for character in re.sub(r'"[^"]*"', "", expression):
        depth += (character == pair[0]) - (character == pair[1])
        if depth < 0:
            return False
    return depth == 0


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", DASHBOARDS)
async def test_every_query_of_a_dashboard_asks_for_series_and_labels_that_exist(name: str, series: Series) -> None:
    found = expressions(DASHBOARDS[name])
    assert [line for expression, legend in found for line in problems(expression, legend, series)] == []


@pytest.mark.asyncio(loop_scope="module")
async def test_every_alert_asks_for_series_and_labels_that_exist(series: Series) -> None:
    rules = alerts()
    assert len({rule["alert"] for rule in rules}) == len(rules) > 0
    found = [(rule["expr"], " ".join(rule["annotations"].values())) for rule in rules]
    assert [line for expression, text in found for line in problems(expression, text, series)] == []


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("expression", "legend", "problem"),
    [
        ("capstan_phase == 1", "", "capstan_phase: there is no such series"),
        ('capstan_trainer_phase{phase="Trainin"}', "", "capstan_trainer_phase: phase is never Trainin"),
        ('capstan_operator_leader{job="x"}', "", "capstan_operator_leader: has no label job"),
        ("sum by (verb) (capstan_operator_leader)", "", "by verb: no series here has it"),
        ("sum by (pod) (capstan_operator_leader)", "{{namespace}}", "{{namespace}}: is not in the result"),
        ("sum(capstan_operator_leader", "", "sum(capstan_operator_leader: brackets do not match"),
    ],
)
async def test_a_query_that_can_never_answer_is_noticed(
    expression: str, legend: str, problem: str, series: Series
) -> None:
    assert problems(expression, legend, series) == [problem]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_is_what_the_sdk_knows_as_one(name: str) -> None:
    again = json.loads(json.dumps(Dashboard.from_json(DASHBOARDS[name]), cls=JSONEncoder))
    assert again == DASHBOARDS[name]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_explains_itself_and_its_panels_fill_their_rows(name: str) -> None:
    dashboard = DASHBOARDS[name]
    assert dashboard["uid"] == f"capstan-{name}"
    assert (
        dashboard["templating"]["list"][0] | {"name": "datasource", "query": "prometheus"}
        == (dashboard["templating"]["list"][0])
    )
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (place.get("x", 0) + column, place["y"] + line)
            for column in range(place["w"])
            for line in range(place["h"])
        }
        assert not cells & taken, f"{panel['title']} covers another panel"
        taken |= cells
        if panel["type"] != "row":
            assert panel["title"], panel
            assert panel["description"].endswith("."), panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
    lines = {line for _, line in taken}
    assert {(column, line) for column in range(24) for line in lines} == taken, "a row has a hole"
