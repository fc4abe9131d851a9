"""Two arms and a gate: what is compared, how, and what is said where nothing can be."""

import math
import random
from typing import Any

import pytest

from capstan_runtime.bench.analysis.compare import (
    DEFAULT_GATE,
    Compared,
    Side,
    compare,
    hardware_difference,
    software_differences,
    spec_differences,
)
from capstan_runtime.bench.result import Series
from capstan_runtime.contract.benchmark import UNKNOWN_GPU, Environment, GateTask

QUIET = (1.0, 1.01, 0.99, 1.005, 0.995)
REPETITIONS = {f"t{index:02d}": index % 8 for index in range(16)}
"""t00 to t07 are one arm's, t08 to t15 the other's."""


def series(values: tuple[float, ...], metric: str = "latency_seconds", first: int = 0, **more: Any) -> Series:
    fields = {
        "metric": metric,
        "unit": "s",
        "better": "lower",
        "arm": "candidate",
        "values": values,
        "trials": tuple(f"t{first + index:02d}" for index in range(len(values))),
        "is_headline": True,
    }
    return Series.model_validate(fields | more)


def side(*own: Series, control: tuple[float, ...] = QUIET) -> Side:
    return Side(own, control)


def times(factor: float, values: tuple[float, ...] = QUIET) -> tuple[float, ...]:
    return tuple(factor * value for value in values)


def verdicts(compared: Compared) -> list[tuple[str, str]]:
    return [(one.metric, one.verdict) for one in compared.comparisons]


def test_headlines_are_judged_and_the_worst_is_told_first() -> None:
    then = side(series(QUIET), series(QUIET, "restore_seconds"), series(QUIET, "aside", is_headline=False))
    now = side(series(times(1.2)), series(QUIET, "restore_seconds"), series(times(9), "aside", is_headline=False))
    compared = compare(then, now, DEFAULT_GATE, seed=1)
    assert verdicts(compared) == [("latency_seconds", "Regressed"), ("restore_seconds", "Passed")]
    assert compared.verdict == "Regressed"
    assert compared.reason == "latency seconds: +20.0 % (+18.2 % to +21.8 %), p 0.016"


def test_a_gate_chooses_its_metrics() -> None:
    then = side(series(QUIET), series(QUIET, "aside", is_headline=False))
    now = side(series(times(1.2)), series(times(0.5), "aside", is_headline=False))
    gate = DEFAULT_GATE.model_copy(update={"metrics": ("aside",)})
    compared = compare(then, now, gate, seed=1)
    assert (verdicts(compared), compared.verdict) == ([("aside", "Improved")], "Improved")


@pytest.mark.parametrize(
    ("then", "now", "gate", "reason"),
    [
        (
            side(series(QUIET), series(QUIET, "gone")),
            side(series(QUIET)),
            DEFAULT_GATE,
            "gone is missing now, so it cannot be compared",
        ),
        (
            side(series(QUIET)),
            side(series(QUIET), series(QUIET, labels={"batchSize": "64"})),
            DEFAULT_GATE,
            "latency seconds at batch size 64 is missing in the baseline, so it cannot be compared",
        ),
        (
            side(series(QUIET), series(QUIET, "busy")),
            side(series(QUIET), series(QUIET, "busy", is_headline=False)),
            DEFAULT_GATE,
            "busy is no headline now, so it cannot be compared",
        ),
        (
            side(series(QUIET)),
            side(series(QUIET)),
            DEFAULT_GATE.model_copy(update={"metrics": ("latency_seconds", "typo")}),
            "gate.metrics: typo is not measured; choose from latency_seconds",
        ),
        (
            side(series(QUIET), series(QUIET, "loss", better="neither")),
            side(series(QUIET), series(QUIET, "loss", better="neither")),
            DEFAULT_GATE.model_copy(update={"metrics": ("latency_seconds", "loss")}),
            "gate.metrics: of loss neither more nor less is better; remove it",
        ),
        (
            side(series(QUIET, is_headline=False)),
            side(series(QUIET, is_headline=False)),
            DEFAULT_GATE,
            "nothing that was measured can be judged: no metric is a headline; name some in gate.metrics",
        ),
        (
            side(series(QUIET)),
            side(series((1.0, 1.0, -2.0, 1.0, 1.0))),
            DEFAULT_GATE,
            "latency seconds: a value is negative, and a ratio of it says nothing (candidate t02: -2 s)",
        ),
        (
            side(series((1.0, math.nan))),
            side(series(QUIET)),
            DEFAULT_GATE,
            "latency seconds: a value is not a number (candidate t01: not a number s)",
        ),
        (
            side(series(QUIET), control=()),
            side(series(times(2))),
            DEFAULT_GATE,
            "the baseline's runs did not time the control, so whether the machine itself changed is not known; "
            "baseline.benchmark.rerun: true measures both in turns",
        ),
        (
            side(series(QUIET)),
            side(series(times(2)), control=times(1.3)),
            DEFAULT_GATE,
            "the machine itself changed: a fixed piece of arithmetic now takes +30.0 % (+28.1 % to +32.0 %) against "
            "then; baseline.benchmark.rerun: true measures both in turns",
        ),
        (
            side(series((1.0, 1.0, 1.0))),
            side(series((2.0, 2.0, 2.0))),
            DEFAULT_GATE,
            "latency seconds: +100.0 % (+100.0 % to +100.0 %): so few runs can show nothing at 95 %, since p cannot go "
            "below 0.1; raise repetitions (at 95 % to 4 or more)",
        ),
    ],
)
def test_where_nothing_can_be_said_that_is_said(then: Side, now: Side, gate: GateTask, reason: str) -> None:
    compared = compare(then, now, gate, seed=1)
    assert (compared.verdict, compared.reason) == ("Inconclusive", reason)


def test_a_regression_is_told_even_where_something_else_is_missing() -> None:
    then = side(series(QUIET), series(QUIET, "gone"))
    compared = compare(then, side(series(times(1.2))), DEFAULT_GATE, seed=1)
    assert compared.verdict == "Regressed"


@pytest.mark.parametrize(
    ("then", "now", "where"),
    [(False, True, "now"), (True, False, "in the baseline"), (True, True, "now and in the base")],
)
@pytest.mark.parametrize("metrics", [(), ("latency_seconds",)])
def test_what_was_withdrawn_is_not_judged_even_where_the_gate_names_it(
    then: bool, now: bool, where: str, metrics: tuple[str, ...]
) -> None:
    gate = DEFAULT_GATE.model_copy(update={"metrics": metrics})
    compared = compare(side(series(QUIET, is_withdrawn=then)), side(series(times(1.3), is_withdrawn=now)), gate, seed=1)
    assert verdicts(compared) == [("latency_seconds", "Inconclusive")]
    assert compared.reason.startswith(f"latency seconds: what measured it was in the way {where}")


def test_figures_of_unlike_numbers_of_ranks_are_not_compared() -> None:
    then = side(series(QUIET, world=1), series(QUIET, "same", world=2))
    now = side(series(times(0.3), world=4), series(QUIET, "same", world=2))
    compared = compare(then, now, DEFAULT_GATE, seed=1)
    assert verdicts(compared) == [("latency_seconds", "Inconclusive"), ("same", "Passed")]
    assert (compared.verdict, compared.reason) == (
        "Inconclusive",
        "latency seconds: the number of ranks must be the same, and was 1 in the baseline and 4 now; workload scaling "
        "compares numbers of workers",
    )


def test_many_metrics_need_more_runs_and_that_is_said() -> None:
    names = [f"m{index}" for index in range(8)]
    then = side(*(series(QUIET, name) for name in names))
    now = side(*(series(times(1.2), name) for name in names))
    compared = compare(then, now, DEFAULT_GATE, seed=1)
    assert {one.verdict for one in compared.comparisons} == {"Inconclusive"}
    assert "so few runs can show nothing among 8 metrics at 95 %" in compared.reason
    assert compared.reason.endswith("; and 7 more")


DRIFTING = (1.0, 1.9, 0.6, 1.4, 0.8, 2.2, 1.1, 0.7)


def test_a_rerun_in_turns_is_compared_by_pairs_and_needs_no_control() -> None:
    noisy = tuple(
        factor * value for factor, value in zip((1.1, 1.11, 1.09, 1.1, 1.12, 1.1, 1.08, 1.1), DRIFTING, strict=True)
    )
    then = side(series(DRIFTING, first=8, arm="baseline"), control=())
    now = side(series(noisy), control=())
    (comparison,) = compare(then, now, DEFAULT_GATE, 1, REPETITIONS).comparisons
    assert (comparison.verdict, comparison.p_value) == ("Regressed", 2 / 2**8)
    assert comparison.reason.endswith("p 0.008, run by run")
    # Of 5 pairs no test can say anything, so the two arms are compared as they are.
    then = side(series(QUIET, first=8, arm="baseline"), control=())
    (comparison,) = compare(then, side(series(times(1.2))), DEFAULT_GATE, 1, REPETITIONS).comparisons
    assert (comparison.verdict, round(comparison.p_value, 4)) == ("Regressed", 0.0079)


def test_arms_without_the_same_repetitions_are_not_paired() -> None:
    then = side(series(DRIFTING[:7], first=9, arm="baseline"))
    (comparison,) = compare(then, side(series(times(1.1, DRIFTING))), DEFAULT_GATE, 1, REPETITIONS).comparisons
    assert comparison.verdict == "Inconclusive"
    assert comparison.p_value > 0.5


def test_the_order_of_trials_and_of_metrics_is_irrelevant() -> None:
    then = [series(DRIFTING, name, first=8, arm="baseline") for name in ("a", "b", "c")]
    now = [series(times(1.1, DRIFTING), name) for name in ("a", "b", "c")]
    expected = compare(side(*then), side(*now), DEFAULT_GATE, 1, REPETITIONS)

    def shuffled(one: Series) -> Series:
        order = random.Random(3).sample(range(8), 8)
        return one.model_copy(
            update={"values": tuple(one.values[at] for at in order), "trials": tuple(one.trials[at] for at in order)}
        )

    again = compare(side(*map(shuffled, then[::-1])), side(*map(shuffled, now[::-1])), DEFAULT_GATE, 1, REPETITIONS)
    assert sorted(again.comparisons, key=lambda one: one.metric) == list(expected.comparisons)


HERE = Environment(cpu="a CPU", cores=2, memory_bytes=2**34, kernel="6.1", python="3.11.2", gpus=("H200", "H200"))


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"node": "another", "memory_bytes": 1, "kernel": "6.2", "governor": "powersave"}, None),
        ({"cores": 4}, "cores 2 and 4"),
        ({"gpus": ()}, "gpus H200, H200 and none"),
        ({"driver": "570.1"}, "driver none and 570.1"),
        ({"threads": 1}, "threads none and 1"),
    ],
)
def test_the_first_difference_of_hardware_is_named(changed: dict[str, Any], problem: str | None) -> None:
    assert hardware_difference(HERE, HERE.model_copy(update=changed)) == problem


def test_unknown_gpus_are_like_no_others_not_even_themselves() -> None:
    unknown = HERE.model_copy(update={"gpus": (UNKNOWN_GPU,)})
    problems = {hardware_difference(*pair) for pair in ((HERE, unknown), (unknown, HERE), (unknown, unknown))}
    (problem,) = problems
    assert problem is not None
    assert problem.startswith("which GPUs there are is not known")


def test_differences_of_what_is_measured_are_listed_by_field() -> None:
    then = {
        "workload": {"training": {"batchSizes": [8, 16]}},
        "job": {"model": {"mlp": {"hidden": [8]}}, "workers": {"max": 1}},
        "repetitions": 5,
    }
    now = {
        "workload": {"training": {"batchSizes": [8, 16]}},
        "job": {"model": {"transformer": {"layers": 2}}, "workers": {"max": 4}},
        "pods": {"image": "x" * 80},
        "repetitions": 10,
    }
    assert spec_differences(then, now) == (
        "job.model.transformer.layers none -> 2",
        "job.workers.max 1 -> 4",
        f'pods.image none -> "{"x" * 58}…',
        "job.model.mlp.hidden [8] -> none",
    )
    assert spec_differences(then, {**then, "repetitions": 7}) == ()


def test_differences_of_software_are_listed() -> None:
    other = HERE.model_copy(
        update={"image": "capstan@sha256:1", "packages": {"jax": "0.10.2"}, "governor": "powersave"}
    )
    assert software_differences(HERE, other) == (
        "image none -> capstan@sha256:1",
        "governor none -> powersave",
        "jax none -> 0.10.2",
    )
