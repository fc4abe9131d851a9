"""Every metric and alert is documented, and what pages and alerts ask for is exposed."""

from __future__ import annotations

import re
from pathlib import Path

from scripts.metric_docs import of_operator, of_serving, of_trainer

OPERATING = Path("docs/operating.md")
REFERENCE = Path("docs/reference/metrics.md")
ALERTS = Path("charts/capstan/files/alerts.yaml")
EXPOSED = {name for name, *_ in (*of_operator(), *of_trainer(), *of_serving())}
_SERIES = re.compile(r"\bcapstan_[a-z_]+[a-z](?=[{\[\s)`]|$)", re.MULTILINE)
_LABEL = "capstan_dev_"
"""How labels of pods begin, by which series are put together."""


def _asked_for(text: str) -> set[str]:
    found = {name for name in _SERIES.findall(text) if not name.startswith(_LABEL)}
    # A histogram is asked for by its parts.
    return {re.sub(r"_(?:bucket|sum|count)$", "", name) for name in found}


def test_series_that_alerts_ask_for_are_exposed() -> None:
    expressions = re.findall(r"^  expr: (?:\|\n((?: {4,}.*\n)+)|(.*)\n)", ALERTS.read_text(), re.MULTILINE)
    asked = _asked_for("\n".join(one or other for one, other in expressions))
    assert asked
    assert sorted(asked - EXPOSED) == []


def test_series_that_the_page_on_operating_names_are_exposed() -> None:
    asked = _asked_for(OPERATING.read_text())
    assert asked
    assert sorted(asked - EXPOSED) == []


def test_every_metric_of_the_code_is_in_the_reference() -> None:
    """Those that the pages' generator cannot know of, because a condition hides them, too."""
    sources = [
        *Path("operator/capstan_operator").rglob("*metrics.py"),
        Path("trainer_images/capstan_runtime/supervisor/exposition.py"),
        Path("trainer_images/capstan_runtime/serving/metrics.py"),
    ]
    listed = re.findall(r"^\| `(capstan_\w+)`", REFERENCE.read_text(), re.MULTILINE)
    bare = {re.sub(r"^capstan_(?:operator_|trainer_|serving_)?|_total$", "", name) for name in listed}
    for source in sources:
        named = re.findall(r"\b(?:Counter|Gauge|Histogram|_gauge|_family)\(\s*f?\"([^\"]+)\"", source.read_text())
        names = {re.sub(r"^(?:\{prefix\}|capstan_(?:operator_|serving_)?)|_total$", "", name) for name in named}
        assert sorted(name for name in names if "{" not in name and name not in bare) == [], source


def test_every_alert_is_in_the_reference_and_those_on_jobs_in_the_page_on_operating() -> None:
    alerts = re.findall(r"^- alert: (\w+)", ALERTS.read_text(), re.MULTILINE)
    assert sorted(set(alerts) - set(re.findall(r"^\| (Capstan\w+) \|", REFERENCE.read_text(), re.MULTILINE))) == []
    assert sorted(set(re.findall(r"\bCapstan[A-Z]\w+", OPERATING.read_text())) - set(alerts)) == []
    assert sorted(set(alerts) - set(re.findall(r"\bCapstan[A-Z]\w+", OPERATING.read_text()))) == []
