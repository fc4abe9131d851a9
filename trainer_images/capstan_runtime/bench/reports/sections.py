"""What a report says, in order: sections of sentences and tables. How they look is up to who shows them."""

import re
import time
from collections.abc import Sequence
from dataclasses import replace

from capstan_runtime.bench.reports import derived
from capstan_runtime.bench.reports.parts import Section, Table, confidence, interval_column, interval_notes
from capstan_runtime.bench.result import QUANTILE_PERCENTS, Baseline, BenchmarkResult, Distribution
from capstan_runtime.contract import words
from capstan_runtime.contract.benchmark import Comparison, Environment, Figure

VERDICT_MEANS = {
    "Passed": "any difference is smaller than what counts",
    "Improved": "it is better by more than what counts, for certain",
    "Regressed": "it is worse by more than what counts, for certain",
    "Inconclusive": "neither a difference nor its absence is certain",
}
_BETTER = {"higher": "↑ higher", "lower": "↓ lower", "neither": "–"}
_SHOWN_PERCENTS = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}


def sections(result: BenchmarkResult) -> list[Section]:
    """All of them that have something to say."""
    made = (
        _comparison(result),
        derived.scaling(result),
        derived.roofline(result),
        derived.law(result),
        derived.collectives(result),
        _figures(result),
        _latency(result),
        _reference(result),
        _environment(result),
        _repeats(result),
        _notes(result),
    )
    return [
        _without_empty_columns(section) for section in made if section.paragraphs or section.tables or section.items
    ]


def _without_empty_columns(section: Section) -> Section:
    """Tables in which nothing is at anything, or nothing is an outlier, need no column for it."""
    return replace(section, tables=[_narrowed(table) for table in section.tables])


def _narrowed(table: Table) -> Table:
    kept = [at for at in range(len(table.columns)) if any(row[at] for row in table.rows)]
    return replace(
        table,
        columns=[table.columns[at] for at in kept],
        rows=[[row[at] for at in kept] for row in table.rows],
        numeric=frozenset(place for place, at in enumerate(kept) if at in table.numeric),
    )


def about(result: BenchmarkResult) -> str:
    """Workload, runs, time and machine in one sentence."""
    runs = max((figure.n for figure in result.figures), default=0)
    parts = [
        f"workload {words.words(result.workload)}",
        *([f"{runs} {'run' if runs == 1 else 'runs'} of each case"] if runs else []),
        f"seed {result.seed}",
        f"measured {_moment(result.started_at)} to {_moment(result.finished_at)}",
    ]
    if result.environments:
        parts.append(f"on {machine(result.environments[0])}")
    return "; ".join(parts)


def machine(environment: Environment) -> str:
    """CPU and GPUs in a few words."""
    cores = f"{environment.cores} {'core' if environment.cores == 1 else 'cores'}"
    return ", ".join([f"{environment.cpu} ({cores})", *_gpus(environment)])


def _gpus(environment: Environment) -> list[str]:
    return [f"{environment.gpus.count(name)} × {name}" for name in dict.fromkeys(environment.gpus)]


def baseline_words(baseline: Baseline) -> str:
    """What was compared with."""
    kinds = {
        "benchmark": "what Benchmark {} found",
        "rerun": "Benchmark {}, run again in turns with this one",
        "file": "the result in {}",
        "reference": "the reference row {}",
    }
    return kinds.get(baseline.kind, baseline.kind + " {}").format(baseline.name)


def _comparison(result: BenchmarkResult) -> Section:
    baseline = result.baseline
    if baseline is None or baseline.kind == "reference":
        return Section("comparison", "Comparison")
    said = [f"Baseline: {baseline_words(baseline)}."]
    if not baseline.is_comparable:
        said.append(f"Not compared: {baseline.problem or 'the two are not alike'}.")
    if result.gate is not None:
        said.append(
            f"A difference counts from {words.number(result.gate.minimum_effect_percent)} % on, at "
            f"{confidence(result)} confidence."
        )
    rows = [
        (
            words.words(one.metric),
            words.case(one.labels),
            words.quantity(one.baseline, one.unit),
            words.quantity(one.candidate, one.unit),
            words.percent(one.effect_percent),
            f"{words.percent(one.low_percent)} to {words.percent(one.high_percent)}",
            _chance(one),
            one.verdict,
        )
        for one in result.comparisons
    ]
    columns = ("metric", "at", "baseline", "now", "effect", f"{confidence(result)} interval", "p", "verdict")
    tables = [Table(columns, rows, frozenset({2, 3, 4, 5, 6}))] if rows else []
    tables += [
        Table(
            ("metric", "at", "verdict", "why"),
            [(words.words(one.metric), words.case(one.labels), one.verdict, one.reason) for one in result.comparisons],
            title="Why",
            is_aside=True,
        )
    ] * bool(rows)
    differences = (*baseline.spec_differences, *baseline.differences)
    return Section("comparison", "Comparison", said, tables, [f"Differs: {one}" for one in differences])


def _chance(comparison: Comparison) -> str:
    return "< 0.001" if comparison.p_value < 0.001 else f"{comparison.p_value:.3f}"


def _figures(result: BenchmarkResult) -> Section:
    metrics = list(dict.fromkeys(figure.metric for figure in result.figures))
    figures = sorted(result.figures, key=lambda figure: metrics.index(figure.metric))
    headline = [figure for figure in figures if figure.is_headline]
    further = [figure for figure in figures if not figure.is_headline]
    tables = [
        _figure_table(result, of_kind, title)
        for of_kind, title in ((headline, "Headline" if further else ""), (further, "Further" if headline else ""))
        if of_kind
    ]
    runs = [
        (
            words.words(one.metric),
            words.case(one.labels),
            one.arm,
            ", ".join(words.quantity(value, one.unit) for value in one.values),
        )
        for one in result.series
        if one.is_shown_first
    ]
    if runs:
        tables.append(Table(("metric", "at", "arm", "each run, in order"), runs, title="Every run", is_aside=True))
    return Section("figures", "Figures", _steadiness(result), tables, interval_notes(result, result.figures))


def _figure_table(result: BenchmarkResult, figures: Sequence[Figure], title: str) -> Table:
    rows = [
        (
            words.words(figure.metric),
            words.case(figure.labels),
            words.quantity(figure.median, figure.unit),
            words.interval(figure.low, figure.high, figure.unit, figure.median) if figure.n > 1 else "one run: none",
            str(figure.n),
            str(figure.outliers) if figure.outliers else "",
            _BETTER[figure.better],
        )
        for figure in figures
    ]
    columns = ("metric", "at", "median", interval_column(result, figures), "n", "outliers", "better")
    return Table(columns, rows, frozenset({2, 3, 4, 5}), title)


def _steadiness(result: BenchmarkResult) -> list[str]:
    """The machine's own pace, beside what was measured on it."""
    if not result.control_seconds:
        return []
    least, most = min(result.control_seconds), max(result.control_seconds)
    return [
        "A fixed piece of arithmetic, timed beside each run, took "
        f"{words.interval(least, most, 's', most)}: how steady the machine was."
    ]


def _latency(result: BenchmarkResult) -> Section:
    rows = [
        (
            distribution_name(one),
            words.case(one.labels),
            f"{one.count:,}",
            *(
                words.quantity(one.quantiles[QUANTILE_PERCENTS.index(percent)], one.unit)
                if percent == 100 or one.count * (100 - percent) >= 100
                else "too few"
                for percent in _SHOWN_PERCENTS.values()
            ),
        )
        for one in result.distributions
    ]
    if not rows:
        return Section("latency", "Distributions")
    columns = ("metric", "at", "samples", *_SHOWN_PERCENTS)
    said = [
        "All samples of all runs together; nothing is judged by them, because those of one run depend on each other."
    ]
    if any(one.metric == "step_seconds" for one in result.distributions):
        said.append(
            "A sample of the step time is the mean over training.logEverySteps steps, which hides single slow ones."
        )
    return Section("latency", "Distributions", said, [Table(columns, rows, frozenset(range(2, len(columns))))])


def distribution_name(one: Distribution) -> str:
    """Of its samples, which are not always of the metric's own kind: a rate is made of times."""
    metric = re.sub("_p[0-9]+(?=_)", "", one.metric)
    if one.unit == "s" and not metric.endswith("seconds"):
        return f"time of calls for {words.words(metric)}"
    return words.title(metric).lower()


def _reference(result: BenchmarkResult) -> Section:
    row = result.reference
    if row is None:
        return Section("reference", "Reference figures")
    ours = {(figure.metric, tuple(sorted(figure.labels.items()))): figure for figure in result.figures}
    rows = []
    for figure in row.figures:
        here = ours.get((figure.metric, tuple(sorted(figure.labels.items()))))
        rows.append(
            (
                words.words(figure.metric),
                words.case(figure.labels),
                words.quantity(figure.value, figure.unit),
                "not measured" if here is None else words.quantity(here.median, here.unit),
            )
        )
    said = [
        f"{row.title}: {row.source}.",
        "Not comparable: the two stand side by side, and are not judged.",
    ]
    table = Table(("metric", "at", f"reference ({row.hardware})", "measured here"), rows, frozenset({2, 3}))
    return Section("reference", "Reference figures", said, [table])


def _environment(result: BenchmarkResult) -> Section:
    found = result.environments
    rows = [
        (name, *(value(one) for one in found))
        for name, value in (
            ("fingerprint", lambda one: one.fingerprint),
            ("node", lambda one: one.node or "–"),
            ("CPU", lambda one: f"{one.cpu}, {one.cores} usable"),
            ("memory", lambda one: words.quantity(one.memory_bytes, "B")),
            ("GPUs", lambda one: ", ".join(_gpus(one)) or "none"),
            ("driver", lambda one: one.driver or "–"),
            ("governor", lambda one: one.governor or "not told"),
            ("threads", lambda one: "not set" if one.threads is None else str(one.threads)),
            ("kernel", lambda one: one.kernel),
            ("Python", lambda one: one.python),
            ("packages", lambda one: ", ".join(f"{name} {version}" for name, version in one.packages.items()) or "–"),
            ("image", lambda one: one.image or "not told"),
        )
    ]
    columns = ("", *(["value"] if len(found) == 1 else [f"machine {at + 1}" for at in range(len(found))]))
    said = [f"The runs were on {len(found)} kinds of machine."] if len(found) > 1 else []
    return Section("environment", "Environment", said, [Table(columns, rows)] if found else [])


def _repeats(result: BenchmarkResult) -> Section:
    rows = [(one.trial, str(one.attempt), one.reason) for one in result.repeats]
    said = ["Nothing of these is in the figures."] if rows else []
    table = Table(("run", "attempt", "why it failed"), rows, frozenset({1}))
    return Section("repeats", "Runs that were repeated", said, [table] if rows else [])


def _notes(result: BenchmarkResult) -> Section:
    return Section("notes", "Notes", items=result.notes)


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
