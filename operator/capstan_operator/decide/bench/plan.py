"""The plan: which runs are made, in which order."""

import hashlib
import json
from dataclasses import dataclass

from capstan_operator.api.benchmark import MOST_TRIALS, BenchmarkSpec
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
    others = set(cases_by_label(baseline)) if baseline else set()
    if baseline and not others & {case.labels for case in cases}:
        raise PlanError(
            "baseline.benchmark: has no case in common with this one, so nothing could be compared; choose the same "
            "batch sizes, workers or models"
        )
    repetitions = 1 if is_run_once(spec) else spec.repetitions
    total = repetitions * (len(cases) + sum(case.labels in others for case in cases))
    if total > MOST_TRIALS:
        arms = ", each beside one of the baseline," if baseline else ""
        most = max(1, MOST_TRIALS * repetitions // total)
        raise PlanError(
            f"repetitions: {repetitions} of {len(cases)} cases{arms} are {total} runs, and {MOST_TRIALS} are the most; "
            f"choose at most {most} repetitions, or fewer cases"
        )
    baselines = cases_by_label(baseline) if baseline else {}
    runs: list[tuple[Arm, Case, int]] = []
    for repetition in range(repetitions):
        for case in _shuffled(cases, spec.seed, repetition):
            pair: list[tuple[Arm, Case, int]] = [("candidate", case, repetition)]
            if case.labels in baselines:
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


def plan_digest(trials: tuple[Trial, ...], baseline: BenchmarkSpec | None) -> str:
    """Digest of what is run; what a newer operator fills in for fields that nobody wrote makes no other plan."""
    runs = [[trial.arm, trial.case.text, trial.repetition, trial.seed] for trial in trials]
    told = {"workload", "job", "pods"}
    other = baseline.model_dump(mode="json", by_alias=True, include=told, exclude_defaults=True) if baseline else None
    return "sha256:" + hashlib.sha256(json.dumps([runs, other], sort_keys=True).encode()).hexdigest()[:16]


def _shuffled(cases: tuple[Case, ...], seed: int, repetition: int) -> list[Case]:
    return sorted(cases, key=lambda case: _digest(seed, repetition, case.text))


def _digest(seed: int, repetition: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}/{repetition}/{text}".encode()).digest()


def _seed(seed: int, repetition: int) -> int:
    return int.from_bytes(_digest(seed, repetition, "seed")[:8]) % MOST_SEED
