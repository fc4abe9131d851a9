"""The plan: which runs are made, in which order."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from capstan_operator.api.benchmark import MOST_TRIALS, BenchmarkSpec
from capstan_operator.api.benchmark_status import BenchmarkStatus
from capstan_operator.decide.bench.cases import MOST_SEED, Case, cases_of
from capstan_runtime.contract.benchmark import Arm


class PlanError(ValueError):
    """There is no such plan; the text is `field: value, rule; fix`."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of one case."""

    name: str
    """Its place in the order: t00, t01, …"""
    arm: Arm
    case: Case
    repetition: int
    seed: int
    """Of everything random in it; the same for both arms and all cases of a repetition."""


def plan_trials(spec: BenchmarkSpec, baseline: BenchmarkSpec | None = None) -> tuple[Trial, ...]:
    """All runs in order; `baseline` is the spec whose workload is run again in turns with this one's.

    In each repetition every case comes once, in an order of its own, so that what drifts with time is spread over all
    cases. Candidate and baseline of a case follow each other, ABBA over the repetitions, so that neither is always
    first. The same for the same specs. Raises PlanError.
    """
    cases = cases_of(spec)
    baselines = cases_by_label(baseline) if baseline else {}
    alone = [case.text or "without any" for case in cases if baseline and case.labels not in baselines]
    if alone:
        raise PlanError(
            f"baseline.benchmark: has no case {'; '.join(alone)}, so that could not be compared, and no comparison "
            "could pass; choose the same batch sizes, workers or models"
        )
    repetitions = 1 if is_run_once(spec) else spec.repetitions
    total = repetitions * len(cases) * (2 if baseline else 1)
    if total > MOST_TRIALS:
        arms = ", each beside one of the baseline," if baseline else ""
        most = max(1, MOST_TRIALS * repetitions // total)
        raise PlanError(
            f"repetitions: {repetitions} of {len(cases)} cases{arms} are {total} runs, and {MOST_TRIALS} are the most; "
            f"choose at most {most} repetitions, or fewer cases"
        )
    runs: list[tuple[Arm, Case, int]] = []
    for repetition in range(repetitions):
        for case in _shuffled(cases, spec.seed, repetition):
            pair: list[tuple[Arm, Case, int]] = [("candidate", case, repetition)]
            if baseline:
                pair.append(("baseline", baselines[case.labels], repetition))
            runs += pair if repetition % 2 == 0 else reversed(pair)
    return tuple(
        Trial(f"t{place:02d}", arm, case, repetition, _seed(spec.seed, repetition))
        for place, (arm, case, repetition) in enumerate(runs)
    )


def is_run_once(spec: BenchmarkSpec) -> bool:
    """A law that is fitted to runs made elsewhere: there is nothing that another run could show."""
    law = spec.workload.scaling_law
    return law is not None and law.grid is None


def cases_by_label(spec: BenchmarkSpec) -> dict[tuple[tuple[str, str], ...], Case]:
    return {case.labels: case for case in cases_of(spec)}


def recorded_trials(status: BenchmarkStatus) -> tuple[Trial, ...]:
    """As many as were planned, and of each what is on record: of what is over no more is needed."""
    arms = {done.trial: done.arm for done in status.trials}
    names = (f"t{place:02d}" for place in range(status.progress.total))
    return tuple(Trial(name, arms.get(name, "candidate"), Case(), 0, 0) for name in names)


def plan_digest(trials: tuple[Trial, ...], spec: BenchmarkSpec, baseline: BenchmarkSpec | None) -> str:
    """Digest of what is run; what a newer operator fills in for fields that nobody wrote makes no other plan. Of `spec`
    it is in the digest, too: API servers without CEL let it change."""
    runs = [[trial.arm, trial.case.text, trial.repetition, trial.seed] for trial in trials]
    told = json.dumps([runs, _run_of(spec), _run_of(baseline) if baseline else None], sort_keys=True)
    return "sha256:" + hashlib.sha256(told.encode()).hexdigest()[:16]


def _run_of(spec: BenchmarkSpec) -> dict[str, Any]:
    """What makes a run what it is."""
    told = {"workload", "job", "pods", "results"}
    return spec.model_dump(mode="json", by_alias=True, include=told, exclude_defaults=True)


def _shuffled(cases: tuple[Case, ...], seed: int, repetition: int) -> list[Case]:
    return sorted(cases, key=lambda case: _digest(seed, repetition, case.text))


def _digest(seed: int, repetition: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}/{repetition}/{text}".encode()).digest()


def _seed(seed: int, repetition: int) -> int:
    return int.from_bytes(_digest(seed, repetition, "seed")[:8]) % MOST_SEED
