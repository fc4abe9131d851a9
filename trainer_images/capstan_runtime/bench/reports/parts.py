"""What sections of a report are made of, however they are shown."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from capstan_runtime.bench.result import BenchmarkResult
from capstan_runtime.contract import words
from capstan_runtime.contract.benchmark import Figure

DEFAULT_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Table:
    """Text in rows."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()
    """Columns that are set to the right."""
    title: str = ""
    """Where a section has several; empty: its section's will do."""
    is_aside: bool = False
    """For who wants every number: folded where that can be, left out of Markdown."""


@dataclass(frozen=True, slots=True)
class Section:
    """One part of a report."""

    key: str
    """By which plots find their place."""
    title: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[Table] = ()
    items: Sequence[str] = field(default=())
    """A list after the tables."""


def confidence(result: BenchmarkResult) -> str:
    """Of its intervals: `95 %`."""
    return f"{100 * _confidence(result):.4g} %"


def interval_column(result: BenchmarkResult, figures: Sequence[Figure]) -> str:
    """What stands above the intervals of `figures`: `95 % interval`, or only `interval` where one has too few runs."""
    is_short = any(words.held_by_all(figure.n) < _confidence(result) for figure in figures)
    return "interval" if is_short else f"{confidence(result)} interval"


def interval_notes(result: BenchmarkResult, figures: Sequence[Figure]) -> list[str]:
    """What the intervals of figures with too few runs are."""
    return words.few_runs((figure.n for figure in figures), _confidence(result))


def _confidence(result: BenchmarkResult) -> float:
    return result.gate.confidence if result.gate else DEFAULT_CONFIDENCE
