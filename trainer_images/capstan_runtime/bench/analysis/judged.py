"""A result against a baseline: first whether the machines are alike, then what the numbers say."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from capstan_runtime.bench.analysis.compare import (
    Compared,
    Side,
    compare,
    hardware_difference,
    software_differences,
    spec_differences,
    unlike,
)
from capstan_runtime.bench.result import Baseline, BenchmarkResult
from capstan_runtime.contract import words
from capstan_runtime.contract.benchmark import Environment, GateTask
from capstan_runtime.errors import ConfigError

Spec = Mapping[str, Any]
_MOST_TOLD = 3
_LONGEST_FIRST = 80


def look_at(
    kind: str,
    name: str,
    theirs: Sequence[Environment],
    ours: Sequence[Environment],
    specs: tuple[Spec, Spec] | None = None,
) -> Baseline:
    """The baseline that was measured on `theirs`, whether `ours` may be compared with it, and what else differs.
    `specs` are the baseline's and the candidate's; None: the baseline's is not known."""
    problem = unlike(ours, "candidate") or unlike(theirs, "baseline") or hardware_difference(theirs[0], ours[0])
    return Baseline(
        kind=kind,
        name=name,
        environment=theirs[0],
        is_comparable=problem is None,
        problem=problem,
        differences=software_differences(theirs[0], ours[0]),
        spec_differences=spec_differences(*specs) if specs else (),
    )


def compare_alike(
    baseline: Baseline,
    theirs: Side,
    ours: Side,
    gate: GateTask,
    seed: int,
    repetitions: Mapping[str, int] | None = None,
) -> Compared:
    """As `compare` says, and that the specs differ; Inconclusive, and nothing compared, where the machines are not
    alike."""
    if baseline.problem is not None:
        return Compared((), "Inconclusive", f"unlike hardware is not compared: {baseline.problem}")
    compared = compare(theirs, ours, gate, seed, repetitions)
    if not baseline.spec_differences:
        return compared
    first, *others = baseline.spec_differences
    more = f" and {len(others)} more" if others else ""
    return replace(
        compared, reason=f"{compared.reason}; the specs differ: {words.shortened(first, _LONGEST_FIRST)}{more}"
    )


def notes_on(baseline: Baseline) -> Iterator[str]:
    """What a reader must know of a comparison beside its verdict."""
    if baseline.spec_differences:
        told = "; ".join(baseline.spec_differences[:_MOST_TOLD])
        more = f"; and {len(baseline.spec_differences) - _MOST_TOLD} more" * (
            len(baseline.spec_differences) > _MOST_TOLD
        )
        yield f"the baseline's spec is another one, so differences may come of that: {told}{more}"
    if baseline.kind in ("benchmark", "file") and baseline.environment is not None and baseline.environment.gpus:
        yield (
            "the baseline was kept, and the control, which tells whether the machine changed since, is arithmetic on "
            "its CPU: a GPU that is slower now looks like slower code; baseline.benchmark.rerun: true measures both in "
            "turns"
        )


def judge_anew(baseline: BenchmarkResult, candidate: BenchmarkResult, gate: GateTask) -> BenchmarkResult:
    """`candidate` with what comparing it with `baseline` says in place of what it said before. Raises ConfigError for
    results of different workloads, and for one without a machine."""
    if baseline.workload != candidate.workload:
        raise ConfigError(
            f"BASELINE measured workload {baseline.workload}, and CANDIDATE {candidate.workload}; choose two of one "
            "workload"
        )
    for what, one in (("BASELINE", baseline), ("CANDIDATE", candidate)):
        if not one.environments:
            raise ConfigError(f"{what} does not say what it ran on, so it cannot be compared; measure it again")
    specs = baseline.spec, candidate.spec
    looked_at = look_at("benchmark", baseline.name, baseline.environments, candidate.environments, specs)
    compared = compare_alike(looked_at, _side(baseline), _side(candidate), gate, candidate.seed)
    before = tuple(notes_on(candidate.baseline)) if candidate.baseline is not None else ()
    notes = [note for note in candidate.notes if note not in before]
    return candidate.model_copy(
        update={
            "baseline": looked_at,
            "reference": None,
            "gate": gate,
            "comparisons": compared.comparisons,
            "verdict": compared.verdict,
            "reason": compared.reason,
            "notes": (*notes_on(looked_at), *notes),
        }
    )


def _side(result: BenchmarkResult) -> Side:
    return Side(tuple(one for one in result.series if one.arm == "candidate"), result.control_seconds)
