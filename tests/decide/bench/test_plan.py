"""The plan of runs: complete, in turns, and always the same."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan_operator.api.benchmark import MOST_TRIALS, BenchmarkSpec
from capstan_operator.decide.bench.cases import cases_of, job_spec
from capstan_operator.decide.bench.plan import PlanError, plan_digest, plan_trials
from tests.support.benchmarks import job_of, spec_of

Document = dict[str, Any]


def training(batch_sizes: list[int], **more: Any) -> BenchmarkSpec:
    return BenchmarkSpec.parse(spec_of({"training": {"batchSizes": batch_sizes}}, job=job_of(), **more))


@given(
    sizes=st.lists(st.integers(1, 64).map(lambda n: n * 4), min_size=1, max_size=6, unique=True),
    more=st.lists(st.integers(1, 64).map(lambda n: n * 4), max_size=6),
    fewer=st.integers(0, 1),
    repetitions=st.integers(1, 15),
    seed=st.integers(0, 2**31 - 1),
)
@settings(max_examples=60)
def test_every_case_is_run_as_often_as_asked_for_in_turns(
    sizes: list[int], more: list[int], fewer: int, repetitions: int, seed: int
) -> None:
    others = list(dict.fromkeys([*sizes[fewer:], *more])) or [2]
    spec = training(sizes, repetitions=repetitions, seed=seed)
    baseline = training(others)
    common = {f"batchSize={size}" for size in sizes}
    alone = [f"batchSize={size}" for size in sizes if size not in others]
    if alone:
        with pytest.raises(PlanError, match=f"has no case {'; '.join(alone)}, so that could not be compared"):
            plan_trials(spec, baseline)
        return
    trials = plan_trials(spec, baseline)
    assert trials == plan_trials(spec, baseline)
    assert [trial.name for trial in trials] == [f"t{place:02d}" for place in range(len(trials))]
    expected = Counter({("candidate", f"batchSize={size}"): repetitions for size in sizes})
    expected += Counter({("baseline", case): repetitions for case in common})
    assert Counter((trial.arm, trial.case.text) for trial in trials) == expected
    # Whole repetitions follow each other, and so do the two arms of a case, each as often first as the other.
    assert [trial.repetition for trial in trials] == sorted(trial.repetition for trial in trials)
    for repetition in range(repetitions):
        rounds = [trial for trial in trials if trial.repetition == repetition]
        assert len({trial.seed for trial in rounds}) == 1
        for case in common:
            places = [place for place, trial in enumerate(rounds) if trial.case.text == case]
            assert places == [places[0], places[0] + 1]
            first = "candidate" if repetition % 2 == 0 else "baseline"
            assert rounds[places[0]].arm == first


def test_the_order_differs_between_repetitions_and_seeds() -> None:
    def orders(seed: int) -> list[tuple[str, ...]]:
        trials = plan_trials(training([4, 8, 12, 16, 20], repetitions=8, seed=seed))
        return [tuple(t.case.text for t in trials if t.repetition == n) for n in range(8)]

    assert len(set(orders(1))) > 4
    assert orders(1) != orders(2)


def test_seeds_of_repetitions_differ() -> None:
    trials = plan_trials(training([4], repetitions=50))
    assert len({trial.seed for trial in trials}) == 50


@pytest.mark.parametrize(
    ("sizes", "repetitions", "message"),
    [
        (
            [4, 8, 12],
            70,
            f"repetitions: 70 of 3 cases are 210 runs, and {MOST_TRIALS} are the most; choose at most 66 repetitions, "
            "or fewer cases",
        ),
    ],
)
def test_too_many_runs_are_refused_with_the_fix(sizes: list[int], repetitions: int, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan_trials(training(sizes, repetitions=repetitions))
    assert str(caught.value) == message
    plan_trials(training(sizes, repetitions=66))


def test_a_law_of_given_points_is_fitted_once() -> None:
    points = [{"parameters": 10.0**n, "tokens": 10.0 ** (n + 1), "loss": 5.0 - n} for n in range(1, 5)]
    spec = BenchmarkSpec.parse(spec_of({"scalingLaw": {"points": [*points, points[0]]}}, repetitions=5))
    assert [trial.name for trial in plan_trials(spec)] == ["t00"]


def test_the_plan_is_another_one_beside_another_baseline() -> None:
    spec, one, other = training([4], seed=1), training([4]), training([4], pods={"image": "x"})
    digests = [
        plan_digest(plan_trials(spec, baseline), spec, baseline)
        for baseline in (None, one, other, training([4], seed=9))
    ]
    assert len(set(digests)) == 3
    assert digests[1] == digests[3], "neither seed nor repetitions of the baseline count"


def test_the_plan_is_another_one_of_another_run() -> None:
    job = job_of(steps=77)
    elsewhere = {"store": {"claim": {"name": "other"}}}
    others = [
        training([4]),
        BenchmarkSpec.parse(spec_of({"training": {"batchSizes": [4], "warmupSteps": 3}}, job=job_of())),
        BenchmarkSpec.parse(spec_of({"training": {"batchSizes": [4]}}, job=job)),
        training([4], pods={"image": "x"}),
        training([4], results=elsewhere),
    ]
    assert len({plan_digest(plan_trials(spec), spec, None) for spec in others}) == len(others)
    judged = training([4], suspend=True, baseline={"configMap": {"name": "kept"}}, trialDeadlineSeconds=60)
    assert plan_digest(plan_trials(judged), judged, None) == plan_digest(plan_trials(others[0]), others[0], None)


JOBS: dict[str, tuple[Document, list[tuple[str, Document]]]] = {
    "training over its own batch": ({"training": {}}, [("", {"globalBatchSize": 64})]),
    "training over batch sizes": (
        {"training": {"batchSizes": [32, 16]}},
        [("batchSize=32", {"globalBatchSize": 32}), ("batchSize=16", {"globalBatchSize": 16})],
    ),
    "weak scaling": (
        {"scaling": {"workers": [1, 2], "strong": False, "weak": True}},
        [
            ("workers=1, mode=weak", {"globalBatchSize": 64, "virtualRanks": 1, "max": 1}),
            ("workers=2, mode=weak", {"globalBatchSize": 128, "virtualRanks": 2, "max": 2}),
        ],
    ),
    "strong and weak scaling": (
        {"scaling": {"workers": [1, 2], "weak": True}},
        [
            ("workers=1, mode=strong", {"globalBatchSize": 64, "virtualRanks": 1, "max": 1}),
            ("workers=2, mode=strong", {"globalBatchSize": 64, "virtualRanks": 2, "max": 2}),
            ("workers=2, mode=weak", {"globalBatchSize": 128, "virtualRanks": 2, "max": 2}),
        ],
    ),
}


@pytest.mark.parametrize("what", JOBS)
def test_each_case_is_a_job_of_its_own_that_nothing_disturbs(what: str) -> None:
    workload, expected = JOBS[what]
    job = job_of()
    job["workers"] = {"max": 2, "min": 1}
    job["training"] |= {"globalBatchSize": 64}
    spec = BenchmarkSpec.parse(spec_of(workload, job=job))
    found = []
    for case in cases_of(spec):
        made = job_spec(spec, case, 0, spec.results.store)
        varied = expected[len(found)][1]
        found.append((case.text, {name: (made["training"] | made["workers"]).get(name) for name in varied}))
        assert "min" not in made["workers"]
        assert made["checkpoint"]["store"] == {"claim": {"name": "results"}}
        assert (made["recovery"], made["recordSteps"]) == ({"warmSpare": False, "memoryTier": False}, True)
    assert found == expected


def test_a_grid_varies_model_length_and_seed() -> None:
    models = [{"name": f"m{n}", "architecture": {"mlp": {"hidden": [n]}}} for n in (4, 8, 16)]
    grid = {"models": models, "steps": [10, 20, 30]}
    job = job_of(seed=2**31 - 1)
    del job["training"]["steps"]
    job["training"]["epochs"] = 1
    spec = BenchmarkSpec.parse(spec_of({"scalingLaw": {"grid": grid}}, job=job))
    case = cases_of(spec)[5]
    assert case.text == "model=m8, steps=30"
    first, second = (job_spec(spec, case, repetition, spec.results.store) for repetition in (0, 1))
    assert first["model"]["mlp"]["hidden"] == [8]
    assert first["training"]["steps"] == 30
    assert "epochs" not in first["training"]
    assert (first["training"]["seed"], second["training"]["seed"]) == (2**31 - 1, 0)
