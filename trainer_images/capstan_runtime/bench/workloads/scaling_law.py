"""Runs that were made elsewhere, given in the spec or in a file: read, checked, and kept as a trial's raw samples."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence

from capstan_runtime.bench.laws.runs import FEWEST_RUNS
from capstan_runtime.bench.measured import MOST_SAMPLES, Measured, point
from capstan_runtime.checkpoint.store import ObjectMissing, Store
from capstan_runtime.contract.benchmark import TrialTask
from capstan_runtime.errors import ConfigError

COLUMNS = ("parameters", "tokens", "loss")
SIZES, BUDGETS, LOSSES = "largest_run_parameters", "largest_run_tokens", "lowest_loss"
"""Metrics whose samples are the runs, one after the other in each."""
_FIELD = "workload.scalingLaw.file"


def run(trial: TrialTask, store: Store, environ: Mapping[str, str]) -> Measured:
    """The runs as three Points whose samples are the columns. Raises ConfigError for a file that is not there, or a
    line in it that is no run."""
    work = trial.work.scaling_law
    assert work is not None
    if work.file is not None:
        return _kept(_read(store, work.file))
    assert work.points is not None, "a grid's trials are TrainingJobs"
    return _kept([(each.parameters, each.tokens, each.loss) for each in work.points])


def _kept(runs: Sequence[tuple[float, float, float]]) -> Measured:
    sizes, budgets, losses = zip(*runs, strict=True)
    return Measured(
        (
            point(SIZES, "parameters", "neither", max(sizes), samples=sizes),
            point(BUDGETS, "tokens", "neither", max(budgets), samples=budgets),
            point(LOSSES, "nats", "lower", min(losses), samples=losses, is_headline=True),
        )
    )


def _read(store: Store, file: str) -> list[tuple[float, float, float]]:
    if file.startswith("/") or ".." in file.split("/"):
        raise ConfigError(f"{_FIELD}: {file} leaves results.store; write its path below {store.place}")
    try:
        text = store.get(file).decode("utf-8-sig")
    except ObjectMissing:
        raise ConfigError(f"{_FIELD}: {file} is not in {store.place}; put it there, or correct the path") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{_FIELD}: {file} is no text ({error}); save it as CSV in UTF-8") from None
    return parse_runs(file, text.splitlines())


def parse_runs(file: str, lines: Iterable[str]) -> list[tuple[float, float, float]]:
    """(parameters, tokens, loss) of each line of a CSV file. Its header names the columns, in any order; others may be
    there, and lines that are empty or begin with # count for nothing. Raises ConfigError that names the line."""
    rows = [
        (number, next(csv.reader([line])))
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.startswith("#")
    ]
    if not rows:
        raise ConfigError(f"{_FIELD}: {file} is empty; begin it with the line {','.join(COLUMNS)}")
    header_line, header = rows[0][0], [cell.strip() for cell in rows[0][1]]
    for column in COLUMNS:
        if header.count(column) != 1:
            raise ConfigError(
                f"{_FIELD}: {file} line {header_line}: {','.join(header)} names {column} {header.count(column)} times; "
                f"the header names each of {', '.join(COLUMNS)} once"
            )
    if len(rows) - 1 > MOST_SAMPLES:
        raise ConfigError(f"{_FIELD}: {file} has {len(rows) - 1} runs; give {MOST_SAMPLES} at most")
    if len(rows) - 1 < FEWEST_RUNS:
        raise ConfigError(
            f"{_FIELD}: {file} has {len(rows) - 1} runs, which determine no law; give {FEWEST_RUNS} or more"
        )
    return [_run_of(file, number, header, cells) for number, cells in rows[1:]]


def _run_of(file: str, number: int, header: Sequence[str], cells: Sequence[str]) -> tuple[float, float, float]:
    if len(cells) != len(header):
        raise ConfigError(
            f"{_FIELD}: {file} line {number}: has {len(cells)} columns, and the header {len(header)}; make them as many"
        )
    named = dict(zip(header, cells, strict=True))
    values = []
    for column in COLUMNS:
        text = named[column].strip()
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(
                f"{_FIELD}: {file} line {number}: {column} {text!r} is no number above 0; correct or remove the line"
            )
        values.append(value)
    return values[0], values[1], values[2]
