"""A result against a baseline: first whether the machines are alike, then what the numbers say."""

from collections.abc import Mapping, Sequence

from capstan_runtime.bench.analysis.compare import (
    Compared,
    Side,
    compare,
    hardware_difference,
    software_differences,
    unlike,
)
from capstan_runtime.bench.result import Baseline, BenchmarkResult
from capstan_runtime.contract.benchmark import Environment, GateTask
from capstan_runtime.errors import ConfigError


def look_at(kind: str, name: str, theirs: Sequence[Environment], ours: Sequence[Environment]) -> Baseline:
    """The baseline that was measured on `theirs`, and whether `ours` may be compared with it."""
    problem = unlike(ours, "candidate") or unlike(theirs, "baseline") or hardware_difference(theirs[0], ours[0])
    return Baseline(
        kind=kind,
        name=name,
        environment=theirs[0],
        is_comparable=problem is None,
        problem=problem,
        differences=software_differences(theirs[0], ours[0]),
    )


def compare_alike(
    baseline: Baseline,
    theirs: Side,
    ours: Side,
    gate: GateTask,
    seed: int,
    repetitions: Mapping[str, int] | None = None,
) -> Compared:
    """As `compare` says; Inconclusive, and nothing compared, where the machines are not alike."""
    if baseline.problem is not None:
        return Compared((), "Inconclusive", f"unlike hardware is not compared: {baseline.problem}")
    return compare(theirs, ours, gate, seed, repetitions)


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
    looked_at = look_at("benchmark", baseline.name, baseline.environments, candidate.environments)
    compared = compare_alike(looked_at, _side(baseline), _side(candidate), gate, candidate.seed)
    return candidate.model_copy(
        update={
            "baseline": looked_at,
            "reference": None,
            "gate": gate,
            "comparisons": compared.comparisons,
            "verdict": compared.verdict,
            "reason": compared.reason,
        }
    )


def _side(result: BenchmarkResult) -> Side:
    return Side(tuple(one for one in result.series if one.arm == "candidate"), result.control_seconds)
