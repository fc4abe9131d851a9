"""What the result is compared with, as far as it is there."""

import hashlib
import json
from dataclasses import dataclass

from capstan_operator.api.benchmark import BenchmarkSpec, ConfigMapBaseline
from capstan_operator.api.meta import BenchmarkCondition
from capstan_operator.decide.bench.blueprint import read_spec
from capstan_operator.decide.bench.gate import gate_problem
from capstan_operator.decide.bench.plan import PlanError, plan_trials
from capstan_operator.decide.bench.reasons import BenchReason
from capstan_operator.decide.blueprint import Refusal
from capstan_operator.decide.conditions import is_true
from capstan_operator.observe_benchmark import ObservedBenching, ObservedBenchmark, ObservedKept
from capstan_runtime.contract.benchmark import MOUNTED_BASELINE, BaselineBenchmark, BaselineTask

DIGEST_DIGITS = 8
_BUSY = (
    "Benchmark {name}, which spec.baseline names, has not ended yet ({what}), and measuring side by side would disturb "
    "both; it is waited for, or suspend it"
)

_MOST_TOLD = 63
"""Characters of what stands in a file."""
_MAKE = "make it with kubectl create configmap {name} --from-file=result.json"
_UNENDED = ("Pending", "Running", "Reporting")


@dataclass(frozen=True, slots=True)
class Missing:
    """The baseline is not there, or not yet. It may come to be, so this is waited for."""

    reason: BenchReason
    message: str


@dataclass(frozen=True, slots=True)
class Standard:
    """What the result is compared with."""

    task: BaselineTask | None
    """None: nothing."""
    rerun: BenchmarkSpec | None = None
    """The spec whose workload is run in turns with this one's; None: none is."""


def find_standard(observed: ObservedBenching, spec: BenchmarkSpec) -> Standard | Missing:
    """What `spec.baseline` means now."""
    baseline = spec.baseline
    if baseline is None:
        return Standard(None)
    if baseline.config_map is not None:
        return _of_config_map(observed.kept, baseline.config_map, spec.workload.kind)
    if baseline.reference is not None:
        return Standard(BaselineTask(reference=baseline.reference))
    return _of_benchmark(observed, spec)


def judged_by(spec: BenchmarkSpec) -> str:
    """Digest of baseline and gate: the report is made anew when it changes."""
    told = spec.model_dump(mode="json", by_alias=True, include={"baseline", "gate"}, exclude_none=True)
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:DIGEST_DIGITS]


def _of_config_map(kept: ObservedKept | None, wanted: ConfigMapBaseline, workload: str) -> Standard | Missing:
    """As far as the operator understands a result; the report reads all of it."""
    what = f"ConfigMap {wanted.name}, which spec.baseline names,"
    if kept is None:
        return Standard(BaselineTask(file=f"{MOUNTED_BASELINE}/{wanted.key}"))
    if not kept.is_there:
        message = f"there is no ConfigMap {wanted.name}, which spec.baseline names; {_MAKE.format(name=wanted.name)}"
        return Missing(BenchReason.BASELINE_NOT_FOUND, message)
    if kept.text is None:
        return Missing(BenchReason.BASELINE_NOT_FOUND, f"{what} has no key {wanted.key}; name the key of a result.json")
    try:
        found = json.loads(kept.text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("schemaVersion"), int):
        problem = f"{what} holds no result of a Benchmark under {wanted.key}; {_MAKE.format(name=wanted.name)}"
        return Missing(BenchReason.BASELINE_UNFIT, problem)
    if found.get("workload") != workload:
        measured = str(found.get("workload"))[:_MOST_TOLD]
        problem = f"{what} is of workload {measured}, and this is {workload}; name one of {workload}"
        return Missing(BenchReason.BASELINE_UNFIT, problem)
    return Standard(BaselineTask(file=f"{MOUNTED_BASELINE}/{wanted.key}"))


def _of_benchmark(observed: ObservedBenching, spec: BenchmarkSpec) -> Standard | Missing:
    wanted = spec.baseline.benchmark if spec.baseline else None
    assert wanted is not None
    found = observed.baseline
    if found is None:
        return Missing(
            BenchReason.BASELINE_NOT_FOUND, f"there is no Benchmark {wanted.name}, which spec.baseline names"
        )
    other = read_spec(found, observed.settings)
    problem = _unfit(wanted.name, spec, other)
    if problem is not None:
        return Missing(BenchReason.BASELINE_UNFIT, problem)
    assert isinstance(other, BenchmarkSpec)
    task = BaselineTask(benchmark=BaselineBenchmark(name=found.name, uid=found.uid, is_rerun=wanted.rerun))
    if wanted.rerun:
        is_begun = observed.benchmark.status.plan is not None
        if not is_begun and _is_busy(found, other, observed.benchmark.name):
            return Missing(BenchReason.BASELINE_NOT_READY, _BUSY.format(name=wanted.name, what=found.status.phase))
        return Standard(task, other)
    if not is_true(found.status, BenchmarkCondition.SUCCEEDED):
        message = f"Benchmark {wanted.name}, which spec.baseline names, has not succeeded yet"
        return Missing(BenchReason.BASELINE_NOT_READY, message)
    return Standard(task)


def _is_busy(found: ObservedBenchmark, other: BenchmarkSpec, name: str) -> bool:
    """It measures, or will without being asked. `name` is that of the one that is to wait for it."""
    its = other.baseline.benchmark if other.baseline else None
    if found.status.running is not None:
        return True
    is_waiting_for_us = its is not None and its.name == name
    return found.status.phase in _UNENDED and not other.suspend and not is_waiting_for_us


def _unfit(name: str, spec: BenchmarkSpec, other: BenchmarkSpec | Refusal) -> str | None:
    """Why the other one is no baseline for this one; None: it is."""
    if isinstance(other, Refusal):
        return f"Benchmark {name} has an invalid spec: {other.problems[0]}"
    if other.workload.kind != spec.workload.kind:
        return (
            f"Benchmark {name} measures {other.workload.kind} and this one {spec.workload.kind}; name one that "
            "measures the same"
        )
    if other.results.store != spec.results.store:
        return (
            f"Benchmark {name} keeps its results in another store, where nobody would find them; name one that does not"
        )
    if spec.baseline is not None and spec.baseline.benchmark is not None and spec.baseline.benchmark.rerun:
        try:
            plan_trials(spec, other)
        except PlanError as error:
            return str(error)
        return None
    return gate_problem(spec, min(spec.repetitions, other.repetitions))
