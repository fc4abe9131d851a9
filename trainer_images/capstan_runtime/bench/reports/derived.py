"""Sections of what a workload derives from its figures: scaling, roofs, laws, and lines through sweeps."""

from capstan_runtime.bench.reports.parts import Section, Table, confidence, interval_column
from capstan_runtime.bench.result import BenchmarkResult, LawParameter
from capstan_runtime.contract import words


def scaling(result: BenchmarkResult) -> Section:
    """Speed-up over numbers of workers."""
    rows = [
        (
            row.mode,
            str(row.workers),
            words.quantity(row.speedup, "x"),
            words.interval(row.speedup_low, row.speedup_high, "x", row.speedup),
            words.percent(100 * row.efficiency, is_signed=False),
            f"{words.number(100 * row.efficiency_low, 3)} – {words.number(100 * row.efficiency_high, 3)} %",
            "" if row.serial_fraction is None else words.number(row.serial_fraction, 3),
        )
        for row in result.scaling
    ]
    interval = interval_column(result, result.figures)
    columns = ("scaling", "workers", "speed-up", interval, "efficiency", interval, "serial fraction")
    return Section("scaling", "Scaling", (), [Table(columns, rows, frozenset(range(1, 7)))] if rows else [])


def roofline(result: BenchmarkResult) -> Section:
    """Ceilings, and what is under them."""
    interval = interval_column(result, result.figures)
    tables = []
    if result.roofs:
        rows = [
            (
                roof.name,
                roof.kind,
                words.quantity(roof.median, roof.unit),
                words.interval(roof.low, roof.high, roof.unit, roof.median),
            )
            for roof in result.roofs
        ]
        tables.append(Table(("ceiling", "of", "median", interval), rows, frozenset({2, 3}), "Ceilings"))
    if result.dots:
        dots = [
            (
                str(number),
                dot.name,
                words.number(dot.intensity),
                words.quantity(dot.performance, "FLOP/s"),
                words.interval(dot.low, dot.high, "FLOP/s", dot.performance),
                dot.bound,
                dot.ceiling,
                words.percent(100 * dot.share, is_signed=False),
            )
            for number, dot in enumerate(result.dots, 1)
        ]
        columns = ("", "name", "FLOP/B", "performance", interval, "bound by", "ceiling", "of the roof")
        tables.append(Table(columns, dots, frozenset({0, 2, 3, 4, 7}), "Kernels and models"))
    return Section("roofline", "Roofline", (), tables)


def law(result: BenchmarkResult) -> Section:
    """Fits, the runs that were left out of one, and all runs."""
    law = result.law
    if law is None:
        return Section("law", "Scaling law")
    said: list[str] = []
    tables = []
    for fit in law.fits:
        why = f" Warnings: {'; '.join(fit.warnings)}." if fit.warnings else ""
        said.append(f"{'Fitted' if fit.is_trusted else 'Not to be relied on'} ({fit.form}): {fit.formula}.{why}")
        rows = [_parameter(one) for one in (*fit.parameters, *fit.derived)]
        rows.append(("sum of Huber losses", words.number(fit.objective), ""))
        columns = (fit.form, "value", f"{confidence(result)} interval")
        tables.append(Table(columns, rows, frozenset({1, 2}), f"Fit: {fit.form}"))
    if law.held_out:
        rows_out = [(*_run(*row[:3]), words.number(row[3])) for row in law.held_out]
        columns_out = ("parameters", "tokens", "loss", "predicted by the others")
        tables.append(Table(columns_out, rows_out, frozenset(range(4)), "Held out"))
    runs = [(*_run(*point), *(f"{fit.residuals[at]:+.4f}" for fit in law.fits)) for at, point in enumerate(law.points)]
    columns_runs = ("parameters", "tokens", "loss", *(f"residual, {fit.form}" for fit in law.fits))
    tables.append(Table(columns_runs, runs, frozenset(range(len(columns_runs))), "Every run", is_aside=True))
    return Section("law", "Scaling law", said, tables)


def _run(parameters: float, tokens: float, loss: float) -> tuple[str, ...]:
    return words.count(parameters), words.count(tokens), words.number(loss)


def _parameter(one: LawParameter) -> tuple[str, str, str]:
    text = words.count if one.name.startswith("best ") else _coefficient
    return one.name, text(one.value), f"{text(one.low)} – {text(one.high)}"


def _coefficient(value: float) -> str:
    """Over so many magnitudes that digits are worth less than the exponent."""
    return words.number(value) if abs(value) < 1e6 else f"{value:.4g}"


def collectives(result: BenchmarkResult) -> Section:
    """Latency and bandwidth of each operation."""
    rows = [
        (
            words.words(fit.operation),
            words.quantity(fit.latency_seconds, "s"),
            words.interval(fit.latency_low, fit.latency_high, "s", fit.latency_seconds),
            words.quantity(fit.bandwidth_bytes_per_second, "B/s"),
            words.interval(fit.bandwidth_low, fit.bandwidth_high, "B/s", fit.bandwidth_bytes_per_second),
        )
        for fit in result.collectives
    ]
    interval = interval_column(result, result.figures)
    table = Table(("operation", "latency", interval, "bandwidth", interval), rows, frozenset(range(1, 5)))
    said = ["Fitted: time = latency + size / bandwidth."] if rows else []
    return Section("collectives", "Collectives", said, [table] if rows else [])
