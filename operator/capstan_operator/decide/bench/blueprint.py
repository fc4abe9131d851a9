"""What follows from a spec alone: computed once, or refused with reasons."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from capstan_operator.api.benchmark import BenchmarkSpec
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.build.benchmark_children import BENCHMARK_NAME, LONGEST_BENCHMARK_NAME, child_name
from capstan_operator.build.benchmark_pod import BenchPod, build_bench_pod
from capstan_operator.build.pod_parts import GPU
from capstan_operator.build.pod_patch import PodPatchError
from capstan_operator.decide.bench.cases import cases_of, job_spec
from capstan_operator.decide.bench.gate import gate_problem, metrics_problem
from capstan_operator.decide.bench.plan import PlanError, plan_trials
from capstan_operator.decide.blueprint import Refusal, read_blueprint
from capstan_operator.decide.validation import explain
from capstan_operator.observe import ObservedJob, OperatorSettings
from capstan_operator.observe_benchmark import ObservedBenchmark
from capstan_runtime.contract.benchmark import BenchTask

MOST_SPEC_BYTES = 90_000
"""The report's pod gets the spec in one variable, and Linux takes no longer one than 128 KiB."""


def read_spec(benchmark: ObservedBenchmark, settings: OperatorSettings) -> BenchmarkSpec | Refusal:
    """The spec of `benchmark`, or why it is none. Never raises for what a user wrote."""
    return _read(benchmark.namespace, benchmark.name, json.dumps(dict(benchmark.spec)), settings)


def name_problem(name: str) -> str | None:
    """What is wrong with the name of a Benchmark, after which jobs, services and pods are named; None: nothing."""
    if len(name) <= LONGEST_BENCHMARK_NAME and re.fullmatch(BENCHMARK_NAME, name):
        return None
    return (
        f"metadata.name: {name} must begin with a letter, hold only small letters, digits and dashes, and have at most "
        f"{LONGEST_BENCHMARK_NAME} characters, because jobs, services and pods are named after it; choose such a name"
    )


# Enough for the benchmarks that are worked on at the same time.
@lru_cache(maxsize=128)
def _read(namespace: str, name: str, spec_json: str, settings: OperatorSettings) -> BenchmarkSpec | Refusal:
    document: Mapping[str, Any] = json.loads(spec_json)
    try:
        spec = BenchmarkSpec.parse(document)
    except ValidationError as error:
        return Refusal(explain(error, BenchmarkSpec))
    problems = [
        *filter(
            None,
            [
                name_problem(name),
                _own_baseline(name, spec),
                _length_problem(spec_json),
                _other_namespace(namespace, spec),
            ],
        ),
        *_plan_problems(spec),
        *_job_problems(namespace, name, spec, settings),
        *_pod_problems(namespace, name, spec, settings),
    ]
    return Refusal(tuple(sorted(problems))) if problems else spec


def _own_baseline(name: str, spec: BenchmarkSpec) -> str | None:
    other = spec.baseline.benchmark if spec.baseline else None
    if other is None or other.name != name:
        return None
    return f"spec.baseline.benchmark.name: {name} is this Benchmark itself; name another one"


def _other_namespace(namespace: str, spec: BenchmarkSpec) -> str | None:
    model = spec.workload.inference.model.checkpoint if spec.workload.inference else None
    if model is None or model.run.startswith(f"{namespace}/"):
        return None
    return (
        f"spec.workload.inference.model.checkpoint.run: {model.run} is of another namespace than {namespace}, and only "
        f"that folder of results.store is read; name a run of {namespace}, or create the Benchmark there"
    )


def _length_problem(spec_json: str) -> str | None:
    if len(spec_json.encode()) <= MOST_SPEC_BYTES:
        return None
    return (
        f"spec: has {len(spec_json.encode())} bytes, and {MOST_SPEC_BYTES} are the most; "
        "keep scalingLaw.points in a file, and use scalingLaw.file"
    )


def _plan_problems(spec: BenchmarkSpec) -> list[str]:
    try:
        plan_trials(spec)
    except PlanError as error:
        return [f"spec.{error}"]
    problem = metrics_problem(spec) or gate_problem(spec)
    return [f"spec.{problem}"] if problem else []


def _job_problems(namespace: str, name: str, spec: BenchmarkSpec, settings: OperatorSettings) -> list[str]:
    """What is wrong with the TrainingJobs that would be made, told of spec.job: before the first of them runs."""
    if spec.job is None:
        return []
    found: dict[str, list[str]] = {}
    cases = cases_of(spec)
    for case in cases:
        job = ObservedJob(
            namespace=namespace,
            # The longest there will be.
            name=child_name(name, "t000", 9),
            uid="",
            generation=1,
            created_at=0.0,
            is_deleting=False,
            spec=job_spec(spec, case, 0, spec.results.store),
            status=TrainingJobStatus(),
        )
        blueprint = read_blueprint(job, settings)
        for problem in blueprint.problems if isinstance(blueprint, Refusal) else ():
            found.setdefault(problem, []).append(case.text)
    return [
        problem.replace("spec.", "spec.job.", 1) + ("" if len(where) == len(cases) else f" (for {'; '.join(where)})")
        for problem, where in found.items()
        if not problem.startswith("metadata.")
    ]


def _pod_problems(namespace: str, name: str, spec: BenchmarkSpec, settings: OperatorSettings) -> list[str]:
    problems = []
    if GPU in spec.pods.resources:
        problems.append(
            f"spec.pods.resources[{GPU}]: {spec.pods.resources[GPU]} comes from pods.gpus; remove it and set pods.gpus"
        )
    task = BenchTask(benchmark=name, namespace=namespace, uid="", seed=0)
    pod = BenchPod(name, "t00", task, spec.results.store, spec.pods, None, spec.trial_deadline_seconds)
    try:
        build_bench_pod(_Identity(namespace, name, ""), pod, settings)
    except PodPatchError as error:
        problems += [f"spec.{problem}" for problem in error.problems]
    return problems


@dataclass(frozen=True, slots=True)
class _Identity:
    namespace: str
    name: str
    uid: str
