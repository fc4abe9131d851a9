"""Writes the Grafana dashboards of `dashboard_*.py` as JSON: `python scripts/dashboards.py [--check] FOLDER`."""

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

# The newer schema is for Grafana 12 and later; older ones, and the sidecar, read this one.
warnings.filterwarnings("ignore", "Prefer using dashboardv2", DeprecationWarning)

import dashboard_panels as panels  # noqa: E402 the filter comes first
from dashboard_benchmarks import BENCHMARKS  # noqa: E402
from dashboard_operator import OPERATOR  # noqa: E402
from dashboard_serving import SERVING  # noqa: E402
from dashboard_training import TRAINING  # noqa: E402
from grafana_foundation_sdk.builders import (  # noqa: E402
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder  # noqa: E402
from grafana_foundation_sdk.models import common as common_models  # noqa: E402
from grafana_foundation_sdk.models import dashboard as models  # noqa: E402
from grafana_foundation_sdk.models.prometheus import PromQueryFormat  # noqa: E402

DASHBOARDS = (OPERATOR, TRAINING, SERVING, BENCHMARKS)
_SOURCE = common_models.DataSourceRef(type_val="prometheus", uid="${datasource}")
_HEIGHTS = {"stat": 4, "table": 8, "timeseries": 8, "states": 8}


def render(drawn: panels.Dashboard) -> str:
    """The JSON of one dashboard, as Grafana imports it."""
    board = (
        dashboard.Dashboard(drawn.title)
        .uid(drawn.uid)
        .description(drawn.description)
        .tags(["capstan"])
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    for variable in drawn.variables:
        board.with_variable(_choice(variable))
    for title, row in drawn.rows.items():
        board.with_row(dashboard.Row(title))
        for panel in row:
            board.with_panel(_panel(panel))
    return json.dumps(board.build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def _choice(variable: panels.Variable) -> dashboard.QueryVariable:
    choice = (
        dashboard.QueryVariable(variable.name)
        .label(variable.label)
        .datasource(_SOURCE)
        .query(variable.query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
    )
    # What is matched by =~ may be several at a time.
    return choice.multi(True).include_all(True) if variable.is_multiple else choice


def _panel(drawn: panels.Panel) -> Any:
    kinds = {"stat": stat, "table": table, "timeseries": timeseries, "states": statetimeline}
    panel = (
        kinds[drawn.kind]
        .Panel()
        .title(drawn.title)
        .description(drawn.description)
        .unit(drawn.unit)
        .datasource(_SOURCE)
        .span(drawn.width)
        .height(_HEIGHTS[drawn.kind])
        .no_value("none")
    )
    for place, (legend, expression) in enumerate(drawn.queries.items()):
        panel.with_target(_query(drawn, expression, legend, chr(ord("A") + place)))
    if drawn.colours:
        panel.thresholds(_thresholds(drawn.colours))
    if drawn.kind == "stat":
        panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"])).graph_mode(
            common_models.BigValueGraphMode.NONE
        )
    elif drawn.kind == "timeseries":
        panel.axis_soft_min(0).fill_opacity(10).show_points(common_models.VisibilityMode.NEVER)
        if drawn.is_stacked:
            panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    return panel


def _query(drawn: panels.Panel, expression: str, legend: str, name: str) -> prometheus.Dataquery:
    query = prometheus.Dataquery().expr(expression).ref_id(name).datasource(_SOURCE)
    if drawn.kind == "table":
        return query.instant().format(PromQueryFormat.TABLE)
    if drawn.kind == "stat":
        return query.instant()
    return query.range().legend_format(legend or drawn.title)


def _thresholds(colours: Any) -> dashboard.ThresholdsConfig:
    steps = [models.Threshold(value=value, color=colour) for value, colour in colours]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def main() -> int:
    """Writes the files and returns 0; with --check compares and returns 1 if one is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a file is out of date")
    options = parser.parse_args()
    texts = {f"{drawn.uid.removeprefix('capstan-')}.json": render(drawn) for drawn in DASHBOARDS}
    if not options.check:
        options.folder.mkdir(parents=True, exist_ok=True)
        for path in options.folder.glob("*.json"):
            path.unlink()
        for name, text in texts.items():
            (options.folder / name).write_text(text)
        return 0
    there = {path.name: path.read_text() for path in options.folder.glob("*.json")}
    if there != texts:
        outdated = sorted(name for name in texts.keys() | there.keys() if texts.get(name) != there.get(name))
        print(f"{options.folder}: {', '.join(outdated)} out of date; run `make generate`", file=sys.stderr)
    return int(there != texts)


if __name__ == "__main__":
    raise SystemExit(main())
