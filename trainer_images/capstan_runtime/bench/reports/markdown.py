"""A result as Markdown: read in a terminal, where `kubectl logs` shows it, and on GitHub."""

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence

from capstan_runtime.bench.reports.parts import Section, Table
from capstan_runtime.bench.reports.sections import about, sections
from capstan_runtime.bench.result import BenchmarkResult
from capstan_runtime.contract import words

MOST_ROWS = 100
"""Of one table; result.json has all of them."""
_MARKUP = re.compile(r"[\\`*<|~]|&(?=[#A-Za-z])|\](?=[(\[:])|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")
"""Signs that mean something wherever they stand. Brackets alone do not, nor an underscore within a word."""
_AT_LINE_START = re.compile(r"^(\d*)(?=[#+=>-]|[.)](?:\s|$))")


def markdown(result: BenchmarkResult) -> str:
    """The whole report; ends with a line feed."""
    return "\n".join(_lines(result)) + "\n"


def comparison(result: BenchmarkResult) -> str:
    """Only the verdict and what it follows from."""
    lines = [*_head(result)]
    for section in sections(result):
        if section.key == "comparison":
            lines += _section(section)
    return "\n".join(lines) + "\n"


def _lines(result: BenchmarkResult) -> Iterator[str]:
    yield from _head(result)
    yield from ("", f"**{_escaped(result.headline)}**")
    yield from ("", _paragraph(about(result)))
    for section in sections(result):
        yield from _section(section)


def _head(result: BenchmarkResult) -> Iterator[str]:
    yield f"# {result.verdict or 'Measured'}: {_escaped(f'{result.namespace}/{result.name}')}"
    yield from ("", _paragraph(result.reason))


def _section(section: Section) -> Iterator[str]:
    yield from ("", f"## {section.title}")
    for sentence in section.paragraphs:
        yield from ("", _paragraph(sentence))
    for table in section.tables:
        if table.is_aside:
            continue
        if table.title:
            yield from ("", f"### {_escaped(table.title)}")
        yield ""
        yield from _table(table)
    if section.items:
        yield ""
        yield from (f"- {_paragraph(item)}" for item in section.items)


def _table(table: Table) -> Iterator[str]:
    """Padded, so that it is a table without a renderer, too."""
    head = [_escaped(column) for column in table.columns]
    rows = [[_escaped(cell) for cell in row] for row in table.rows[:MOST_ROWS]]
    widths = [max(3, *(_width(line[column]) for line in (head, *rows))) for column in range(len(head))]
    yield _row(head, widths, table.numeric)
    yield _row(
        ["-" * (width - 1) + (":" if at in table.numeric else "-") for at, width in enumerate(widths)], widths, ()
    )
    yield from (_row(row, widths, table.numeric) for row in rows)
    if len(table.rows) > MOST_ROWS:
        yield from ("", f"{len(table.rows) - MOST_ROWS} more rows are in result.json.")


def _row(cells: Sequence[str], widths: Sequence[int], numeric: Collection[int]) -> str:
    padded = []
    for at, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        space = " " * (width - _width(cell))
        padded.append(space + cell if at in numeric else cell + space)
    return f"| {' | '.join(padded)} |"


def _width(text: str) -> int:
    """Columns it takes in a terminal."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _paragraph(text: str) -> str:
    return _AT_LINE_START.sub(r"\1\\", _escaped(text).lstrip())


def _escaped(text: str) -> str:
    """The text itself, on one line, whatever it holds: names, notes and errors come from users and their programs."""
    return _MARKUP.sub(r"\\\g<0>", words.one_line(text))
