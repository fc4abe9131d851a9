"""A result as one HTML file that needs nothing else: no script, no font, no image from anywhere.

Its policy forbids the browser to load or run anything; all text is escaped, because names and notes are their users'.
"""

import base64
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import get_args

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from capstan_runtime.bench.reports.parts import Section, Table
from capstan_runtime.bench.reports.plots import plots_of
from capstan_runtime.bench.reports.plots.svg import Plot
from capstan_runtime.bench.reports.sections import VERDICT_MEANS, about, sections
from capstan_runtime.bench.result import BenchmarkResult
from capstan_runtime.contract import words
from capstan_runtime.contract.benchmark import Verdict

MOST_ROWS = 400
"""Of one table; result.json has all of them."""
_MOST_OPEN_ROWS = 40
_FOLDER = Path(__file__).parent
_SIGNS = {"Passed": "✓", "Improved": "▲", "Regressed": "▼", "Inconclusive": "?"}
_MOST_SPEC = 20_000


@dataclass(frozen=True, slots=True)
class _Shown:
    """A plot in the page."""

    title: str
    caption: str
    svg: Markup
    is_wide: bool


@dataclass(frozen=True, slots=True)
class _Part:
    """A section in the page."""

    key: str
    title: str
    paragraphs: list[str]
    plots: list[_Shown]
    tables: list[Table]
    items: list[str]


def page(result: BenchmarkResult) -> str:
    """The whole file; the same result gives the same bytes."""
    style, template = _loaded()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    plots = plots_of(result)
    trusted_style = Markup(style)  # nosec B704  # the package's own page.css
    return template.render(
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        style=trusted_style,
        verdict=result.verdict or "Measured",
        verdicts=get_args(Verdict),
        sign=_SIGNS.get(result.verdict or "", "•"),
        meaning=VERDICT_MEANS.get(result.verdict or "", ""),
        name=words.one_line(f"{result.namespace}/{result.name}"),
        headline=words.one_line(result.headline),
        reason=words.one_line(result.reason),
        about=words.one_line(about(result)),
        sections=[_part(section, plots.get(section.key, [])) for section in sections(result)],
        spec=json.dumps(result.spec, indent=2, ensure_ascii=False)[:_MOST_SPEC],
        schema_version=result.schema_version,
        uid=words.one_line(result.uid),
        most_rows=MOST_ROWS,
        most_open_rows=_MOST_OPEN_ROWS,
    )


@cache
def _loaded() -> tuple[str, Template]:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    style = (_FOLDER / "page.css").read_text("utf-8")
    return style, environment.from_string((_FOLDER / "page.html").read_text("utf-8"))


def _shown(plot: Plot) -> _Shown:
    svg = Markup(plot.svg)  # nosec B704  # made by ElementTree, which escapes what it is given
    return _Shown(plot.title, plot.caption, svg, plot.is_wide)


def _part(section: Section, plots: list[Plot]) -> _Part:
    return _Part(
        section.key,
        section.title,
        [words.one_line(sentence) for sentence in section.paragraphs],
        [_shown(plot) for plot in plots],
        [_one_line_cells(table) for table in section.tables],
        [words.one_line(item) for item in section.items],
    )


def _one_line_cells(table: Table) -> Table:
    rows = [[words.one_line(cell) for cell in row] for row in table.rows]
    return Table(table.columns, rows, table.numeric, table.title, table.is_aside)
