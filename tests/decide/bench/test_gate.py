"""A gate that no difference could reach is refused before the first run, with the number of runs that it needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan_operator.api.benchmark import BenchmarkSpec
from capstan_operator.decide.bench.gate import count_judged, gate_problem, metrics_problem
from capstan_runtime.bench.statistics import holm
from capstan_runtime.bench.statistics.effect import measure_effect
from capstan_runtime.bench.statistics.verdict import Rule, judge
from tests.support.benchmarks import job_of, spec_of

Document = dict[str, Any]
BEFORE: Document = {"benchmark": {"name": "before"}}
GRID: Document = {
    "models": [{"name": f"m{n}", "architecture": {"mlp": {"hidden": [n]}}} for n in (4, 8, 16)],
    "steps": [10, 20, 30],
}
MODEL: Document = {
    "fresh": {"architecture": {"mlp": {"hidden": [8]}}, "input": {"vector": {"features": 4, "classes": 2}}}
}


def gated(workload: Document, repetitions: int = 5, **gate: Any) -> BenchmarkSpec:
    job = {"job": job_of()} if {"training", "scaling", "scalingLaw"} & workload.keys() else {}
    return BenchmarkSpec.parse(spec_of(workload, repetitions=repetitions, baseline=BEFORE, gate=gate, **job))


def batches(count: int) -> Document:
    return {"training": {"batchSizes": [2 * (n + 1) for n in range(count)]}}


LOAD: Document = {"url": "http://x", "rates": [5, 10, 20], "scenario": [{"name": "a", "path": "/"}]}
COLLECTIVES: Document = {"framework": {"flax": {}}, "operations": ["allReduce", "allGather"]}
JUDGED: dict[str, tuple[Document, list[str], int]] = {
    "training": (batches(3), [], 3),
    "training of one size": ({"training": {}}, [], 1),
    "two names of training": (batches(3), ["samples_per_second", "step_seconds"], 6),
    "scaling": ({"scaling": {"workers": [1, 2, 4]}}, [], 3 + 2),
    "strong and weak scaling": ({"scaling": {"workers": [1, 2, 4], "weak": True}}, [], 1 + 4 + 4),
    "efficiency alone": ({"scaling": {"workers": [1, 2, 4]}}, ["efficiency"], 2),
    "a grid": ({"scalingLaw": {"grid": GRID}}, [], 18),
    "the loss of a grid": ({"scalingLaw": {"grid": GRID}}, ["loss"], 9),
    "inference": ({"inference": {"runtime": "torch", "model": MODEL, "batchSizes": [1, 2, 4]}}, [], 3),
    "serving": ({"serving": LOAD}, [], 2),
    "a latency at each rate": ({"serving": LOAD}, ["latency_p99_seconds"], 3),
    "collectives": ({"collectives": COLLECTIVES}, [], 2),
    "collectives of 4 KiB to 16 MiB": ({"collectives": COLLECTIVES}, ["bus_bandwidth_bytes_per_second"], 2 * 7),
    "a roofline": ({"roofline": {"runtime": "torch", "dtypes": ["fp32", "bf16"]}}, [], 3),
    "checkpoints": ({"checkpoint": {}}, [], 3),
    "the control plane": ({"controlPlane": {}}, [], 1),
}


@pytest.mark.parametrize("what", JUDGED)
def test_what_is_judged_is_counted_before_anything_is_measured(what: str) -> None:
    workload, metrics, count = JUDGED[what]
    assert count_judged(gated(workload, metrics=metrics)) == count


def test_the_refusal_says_how_many_runs_it_takes() -> None:
    assert gate_problem(gated(batches(6))) is None
    assert gate_problem(gated(batches(7))) == (
        "repetitions: 5 can show no difference in 7 figures at once at gate.confidence 0.95, however large it is; "
        "raise repetitions to 6, or name fewer in gate.metrics"
    )
    assert gate_problem(gated(batches(7), repetitions=6)) is None


def test_a_name_that_is_never_measured_is_refused_with_those_that_are() -> None:
    assert metrics_problem(gated(batches(2), metrics=["samples_per_second", "speed", "loss"])) == (
        "gate.metrics: speed, loss would not be measured by this training; choose from samples_per_second, "
        "tokens_per_second, step_seconds"
    )
    assert metrics_problem(gated(batches(2))) is None
    sustained = {"metrics": ["sustained_requests_per_second"]}
    objective = {"objective": {"p99Milliseconds": 100}}
    assert [metrics_problem(gated({"serving": load}, **sustained)) is None for load in (LOAD, LOAD | objective)] == [
        False,
        True,
    ]


@pytest.mark.parametrize("what", JUDGED)
def test_what_is_counted_can_be_named(what: str) -> None:
    workload, metrics, _ = JUDGED[what]
    assert metrics_problem(gated(workload, metrics=metrics)) is None


def test_a_baseline_of_fewer_runs_is_refused_and_one_of_more_is_not() -> None:
    spec = gated({"training": {}})
    assert [gate_problem(spec, runs) is None for runs in (1, 2, 3, 5, 50)] == [False, False, True, True, True]
    assert gate_problem(spec, 2) == (
        "gate: 5 runs against the 2 of the baseline can show no difference in 1 figure at confidence 0.95; give the "
        "baseline 5 or more, or name fewer in gate.metrics"
    )


@given(judged=st.integers(1, 16), repetitions=st.integers(5, 8), confidence=st.sampled_from([0.8, 0.9, 0.95, 0.99]))
@settings(max_examples=40)
def test_what_is_refused_is_exactly_what_the_verdict_could_never_call_worse(
    judged: int, repetitions: int, confidence: float
) -> None:
    """One figure of many is ten times slower, without any noise worth the name: there is no clearer difference."""
    spec = gated(batches(judged), repetitions=repetitions, confidence=confidence)
    noise = 1 + 1e-6 * np.arange(repetitions)
    rng = np.random.default_rng(0)
    effect = measure_effect(tuple(noise), tuple(10 * noise), confidence, rng, resamples=200)
    adjusted = holm.adjust([effect.p_value] + [1.0] * (judged - 1))[0]
    found = judge(effect, "lower", adjusted, Rule(5.0, confidence), judged)
    assert (found.verdict == "Regressed") == (gate_problem(spec) is None)
