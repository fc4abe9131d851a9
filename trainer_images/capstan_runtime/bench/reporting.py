"""The end of a Benchmark: what its trials say, beside its baseline, kept and told.

store: trials ─▶ series ─▶ figures, what the workload derives, comparison ─▶ result.json, reports ─▶ termination message
"""

import importlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from capstan_runtime.bench.analysis.collect import Trials, build_distributions, build_series, read_trials
from capstan_runtime.bench.analysis.compare import (
    DEFAULT_GATE,
    Compared,
    Side,
    unlike,
)
from capstan_runtime.bench.analysis.judged import compare_alike, look_at, notes_on
from capstan_runtime.bench.analysis.summary import build_figures, headline, outlier_notes, summarize
from capstan_runtime.bench.ending import end_with_error, write_last_words
from capstan_runtime.bench.reports import markdown, write_reports
from capstan_runtime.bench.result import Baseline, BenchmarkResult, Series
from capstan_runtime.checkpoint.digest import digest_of, name_of
from capstan_runtime.checkpoint.layout import PINNED, SaveName
from capstan_runtime.checkpoint.open import open_store
from capstan_runtime.checkpoint.store import ObjectMissing, Store
from capstan_runtime.contract import env
from capstan_runtime.contract.benchmark import (
    SCHEMA_VERSION,
    BaselineTask,
    BenchTask,
    Environment,
    ReportTask,
    Verdict,
)
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.contract.reference import REFERENCE_ROWS
from capstan_runtime.errors import ConfigError

Derive = Callable[[tuple[Series, ...], Trials, float, int], dict[str, Any]]
"""Fields of BenchmarkResult that follow from the series and trials of one arm, by confidence and seed. Its `series` are
added to those that were measured, and compared like them; of the baseline's arm nothing else is used. Its `headline`,
if there is one, takes the place of a figure's."""

DERIVED = {
    "serving": "capstan_runtime.bench.analysis.serving",
    "scaling": "capstan_runtime.bench.analysis.scaling",
    "scalingLaw": "capstan_runtime.bench.analysis.law",
    "roofline": "capstan_runtime.bench.analysis.roofline",
    "collectives": "capstan_runtime.bench.analysis.collectives",
}
"""Module of each workload that says more than medians, by its key in the spec; each has a `derive: Derive`."""
RESULT = "result.json"


def result_folder(benchmark: str, uid: str) -> str:
    """Where in the store the result and reports of a Benchmark are."""
    return f"{benchmark}/{uid}"


def run_report(task: BenchTask, environ: Mapping[str, str]) -> int:
    """The exit code: OK when result and reports are in the store, else that of the error's class; CONFIG says that
    trying again is of no use. The termination message is then the Summary, else a TrialEnd."""
    try:
        place = environ.get(env.STORE)
        if not place:
            raise ConfigError(f"environment variable {env.STORE} is not set; a report is made by the operator's pod")
        store = open_store(place, environ)
        result = build_result(task, store, environ)
        digest = keep_result(result, store)
        remove_saves(task, store)
        where = f"{place.rstrip('/')}/{result_folder(task.benchmark, task.uid)}"
        write_last_words(summarize(result, digest, where), environ)
    except Exception as error:
        return end_with_error(error, environ)
    print(markdown(result))
    return ExitCode.OK


def keep_result(result: BenchmarkResult, store: Store) -> str:
    """The digest of result.json, which is in the store with all reports beside it."""
    folder = result_folder(result.name, result.uid)
    text = result.model_dump_json(by_alias=True, exclude_none=True).encode()
    store.put(f"{folder}/{RESULT}", [text])
    write_reports(result, store, folder)
    store.settle(folder)
    return name_of(digest_of(text))


def remove_saves(task: BenchTask, store: Store) -> None:
    """Of trials that were TrainingJobs, the checkpoints that these leave when they end are removed: nobody asked for
    them. Their records stay, since a report may be made again, and so does what a person pinned. What cannot be removed
    is told, and spoils no report."""
    assert task.report is not None
    for ref in task.report.trials:
        name, _, uid = (ref.job or "").partition("/")
        if not name.startswith(f"{task.benchmark}-t"):
            continue
        try:
            for child in store.children(f"{name}/{uid}"):
                save = SaveName.parse(child)
                folder = f"{name}/{uid}/{child}"
                if save is not None and save.is_of_run(uid) and PINNED not in store.children(folder):
                    store.remove_all(folder)
        except OSError as error:
            print(f"trial {ref.trial}: its checkpoint stays in {store.place}/{name}/{uid}: {error}", file=sys.stderr)


def build_result(task: BenchTask, store: Store, environ: Mapping[str, str]) -> BenchmarkResult:
    """Everything the Benchmark found. Raises ConfigError, StoreUnavailable, OSError."""
    report = task.report
    assert report is not None
    gate = report.gate or (DEFAULT_GATE if report.baseline else None)
    confidence = (gate or DEFAULT_GATE).confidence
    trials = read_trials(store, task.benchmark, task.uid, report.trials)
    candidates = trials.of("candidate")
    if not candidates.environments:
        raise ConfigError("report.trials: holds no trial of the candidate; there is nothing to report")
    series, derived = _series(report, trials, confidence, task.seed)
    own_headline = derived.pop("headline", None)
    figures = build_figures(series, confidence, task.seed)
    baseline, compared, verdict = _against_baseline(task, report, store, environ, trials, series)
    mixed = unlike(candidates.environments, "candidate")
    told = notes_on(baseline) if baseline is not None else ()
    started, finished = _times(candidates)
    notes = [
        f"{'' if ref.arm == 'candidate' else 'baseline: '}{note}" for ref, one in trials.results for note in one.notes
    ]
    return BenchmarkResult(
        name=task.benchmark,
        namespace=task.namespace,
        uid=task.uid,
        workload=report.workload,
        spec=report.spec,
        seed=task.seed,
        started_at=started,
        finished_at=finished,
        environments=_distinct(candidates.environments),
        control_seconds=candidates.control_seconds,
        headline=own_headline or headline(figures),
        series=series,
        figures=figures,
        distributions=build_distributions(candidates, report.warmup_steps),
        comparisons=compared.comparisons if compared else (),
        verdict=verdict,
        reason=compared.reason if compared else _measured(report, figures_count=len(figures)),
        baseline=baseline,
        reference=REFERENCE_ROWS.get(report.baseline.reference or "") if report.baseline else None,
        gate=gate if compared else None,
        repeats=report.repeats,
        notes=tuple(dict.fromkeys([*([mixed] if mixed else []), *told, *outlier_notes(series), *notes])),
        **derived,
    )


def _series(
    report: ReportTask, trials: Trials, confidence: float, seed: int
) -> tuple[tuple[Series, ...], dict[str, Any]]:
    """All series of both arms, derived ones last, and the other fields that the workload derives."""
    measured = build_series(trials, report.warmup_steps)
    module = DERIVED.get(report.workload)
    if module is None or find_spec(module) is None:
        return measured, {}
    derive: Derive = importlib.import_module(DERIVED[report.workload]).derive
    own = derive(tuple(one for one in measured if one.arm == "candidate"), trials.of("candidate"), confidence, seed)
    further = list(own.pop("series", ()))
    baselines = trials.of("baseline")
    if baselines.environments:
        theirs = tuple(one for one in measured if one.arm == "baseline")
        further += derive(theirs, baselines, confidence, seed).get("series", ())
    return (*measured, *further), own


def _measured(report: ReportTask, figures_count: int) -> str:
    runs = len([ref for ref in report.trials if ref.arm == "candidate"])
    figures = f"{figures_count} {'figure' if figures_count == 1 else 'figures'}"
    return f"{figures} of {runs} {'run' if runs == 1 else 'runs'}; there is no baseline to judge by"


def _times(trials: Trials) -> tuple[float, float]:
    """Of the first and last trial; of TrainingJobs that did not record theirs, now."""
    now = time.time()
    started = [one.started_at for one in trials.kept if one.started_at is not None]
    finished = [one.finished_at for one in trials.kept if one.finished_at is not None]
    return min(started, default=now), max(finished, default=now)


def _distinct(environments: Sequence[Environment]) -> tuple[Environment, ...]:
    """One of each; names of nodes apart."""
    found = {environment.model_copy(update={"node": ""}).model_dump_json(): environment for environment in environments}
    return tuple(found.values())


def _against_baseline(
    task: BenchTask,
    report: ReportTask,
    store: Store,
    environ: Mapping[str, str],
    trials: Trials,
    series: tuple[Series, ...],
) -> tuple[Baseline | None, Compared | None, Verdict | None]:
    """What was compared with, what that says, and the verdict: None without a baseline, or with a reference row."""
    wanted = report.baseline
    if wanted is None:
        return None, None, None
    if wanted.reference is not None:
        return _reference(wanted.reference), None, None
    candidates, gate = trials.of("candidate"), report.gate or DEFAULT_GATE
    is_rerun = wanted.benchmark is not None and wanted.benchmark.is_rerun
    ours = Side(tuple(one for one in series if one.arm == "candidate"), candidates.control_seconds)
    if is_rerun:
        environments = trials.of("baseline").environments
        if not environments:
            raise ConfigError("baseline.benchmark.rerun: no trial of the baseline was run; create the Benchmark again")
        theirs = Side(tuple(one for one in series if one.arm == "baseline"))
        spec = _own_spec(wanted, store)
    else:
        kept = read_kept(wanted, store, environ, report.workload)
        environments, spec = kept.environments, kept.spec
        theirs = Side(tuple(one for one in kept.series if one.arm == "candidate"), kept.control_seconds)
    kind = "rerun" if is_rerun else wanted.kind
    name = wanted.benchmark.name if wanted.benchmark else str(wanted.value)
    specs = (spec, report.spec) if spec is not None else None
    baseline = look_at(kind, name, environments, candidates.environments, specs)
    repetitions = {ref.trial: ref.repetition for ref in report.trials} if is_rerun else None
    compared = compare_alike(baseline, theirs, ours, gate, task.seed, repetitions)
    return baseline, compared, compared.verdict


def _own_spec(wanted: BaselineTask, store: Store) -> Mapping[str, Any] | None:
    """Of the Benchmark that was run again, from its own result; None: it has none yet, or none that can be read."""
    assert wanted.benchmark is not None
    try:
        text = store.get(f"{result_folder(wanted.benchmark.name, wanted.benchmark.uid)}/{RESULT}")
        return parse_result(text, wanted.benchmark.name).spec
    except (ObjectMissing, ConfigError):
        return None


def _reference(name: str) -> Baseline:
    row = REFERENCE_ROWS.get(name)
    if row is None:
        raise ConfigError(f"baseline.reference: {name} is no reference row; choose one of {', '.join(REFERENCE_ROWS)}")
    problem = f"it was measured by others on {row.hardware}, so it is shown beside and not judged"
    return Baseline(kind="reference", name=name, is_comparable=False, problem=problem)


def read_kept(wanted: BaselineTask, store: Store, environ: Mapping[str, str], workload: str) -> BenchmarkResult:
    """The result that was kept, of another Benchmark or in a file. Raises ConfigError that says what to do when there
    is none, or none that can be read."""
    if wanted.benchmark is not None:
        name = wanted.benchmark.name
        field = f"baseline.benchmark.name: {name}"
        key = f"{result_folder(name, wanted.benchmark.uid)}/{RESULT}"
        try:
            text = store.get(key)
        except ObjectMissing as error:
            raise ConfigError(
                f"{field} has no {key} in {store.place}; wait until it has Succeeded, or give "
                "both Benchmarks the same results.store"
            ) from error
        return _comparable(parse_result(text, field), field, workload)
    path = Path(env.host_path(str(wanted.file), environ))
    field = f"baseline.configMap.key: {path.name}"
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{field} cannot be read ({error.strerror}); make the ConfigMap with kubectl "
            "create configmap NAME --from-file=result.json"
        ) from error
    return _comparable(parse_result(text, field), field, workload)


def _comparable(result: BenchmarkResult, field: str, workload: str) -> BenchmarkResult:
    if result.workload != workload:
        raise ConfigError(
            f"{field} measured workload {result.workload}, and this is {workload}; choose a baseline of {workload}"
        )
    if not result.environments:
        raise ConfigError(f"{field} does not say what it ran on; measure it again")
    return result


def parse_result(text: bytes, field: str) -> BenchmarkResult:
    """The result in a result.json; `field` begins the message of errors. Raises ConfigError for what is none, and for
    one of a newer schema."""
    try:
        document = json.loads(text)
        schema = document["schemaVersion"] if isinstance(document, dict) else None
        if isinstance(schema, int) and schema > SCHEMA_VERSION:
            raise ConfigError(
                f"{field} has schemaVersion {schema}, and {SCHEMA_VERSION} is the newest known here; read it with the "
                "version that wrote it"
            )
        return BenchmarkResult.model_validate(document, by_alias=True, by_name=False)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{field} is no result.json of a Benchmark ({_told(error)})") from error


def _told(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
