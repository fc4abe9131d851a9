"""One table of what is found and what it means; and laws that hold for whatever is found."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from capstan_runtime.bench.statistics.effect import Effect, as_percent, measure_effect
from capstan_runtime.bench.statistics.verdict import Rule, judge, machine_changed, overall
from capstan_runtime.contract.benchmark import Better, Verdict

RULE = Rule(minimum_effect_percent=5.0, confidence=0.95)
FLIPPED = {"Regressed": "Improved", "Improved": "Regressed", "Passed": "Passed", "Inconclusive": "Inconclusive"}


def effect(percent: float, low: float, high: float, p: float = 0.008, smallest: float = 0.0079) -> Effect:
    logs = [math.log1p(value / 100) for value in (percent, low, high)]
    return Effect(*logs, p_value=p, smallest_p=smallest, is_paired=False)


def effect_of(baseline: list[float], candidate: list[float], pair: bool = False) -> Effect:
    return measure_effect(baseline, candidate, RULE.confidence, np.random.default_rng(5), pair, resamples=1000)


@pytest.mark.parametrize(
    ("found", "better", "verdict", "told"),
    [
        (effect(10, 8, 12), "lower", "Regressed", "+10.0 % (+8.0 % to +12.0 %), p 0.008"),
        (effect(10, 8, 12), "higher", "Improved", "+10.0 % (+8.0 % to +12.0 %), p 0.008"),
        (effect(-10, -12, -8), "higher", "Regressed", "-10.0 % (-12.0 % to -8.0 %), p 0.008"),
        (effect(-10, -12, -8), "lower", "Improved", "-10.0 % (-12.0 % to -8.0 %), p 0.008"),
        (effect(2, 1, 3), "lower", "Passed", "all of it less than 5 %"),
        (effect(0, 0, 0, p=1.0), "lower", "Passed", "all of it less than 5 %"),
        (effect(2, -1, 6, p=0.2), "lower", "Inconclusive", "neither no difference nor one of 5 % can be ruled out"),
        (effect(4, 1, 7), "lower", "Inconclusive", "it differs, and whether by 5 % is not sure; more repetitions tell"),
        (effect(10, 8, 12, p=0.06), "lower", "Inconclusive", "p 0.060, adjusted for 2 metrics, is too large"),
        (effect(10, 8, 12, p=0.1, smallest=0.1), "lower", "Inconclusive", "p cannot go below 0.1; raise repetitions"),
        (effect(0, 0, 0, p=1.0, smallest=1.0), "lower", "Inconclusive", "so few runs can show nothing at 95 %"),
        (
            effect(10, 8, 12, p=0.06, smallest=0.03),
            "lower",
            "Inconclusive",
            "so few runs can show nothing among 2 metr",
        ),
        (effect(math.inf, math.inf, math.inf), "lower", "Regressed", "∞ % (∞ % to ∞ %)"),
    ],
)
def test_what_an_effect_means(found: Effect, better: Better, verdict: Verdict, told: str) -> None:
    judged = judge(found, better, found.p_value, RULE, tests=2)
    assert judged.verdict == verdict
    assert told in judged.reason


@pytest.mark.parametrize(
    ("found", "drift", "verdict", "told"),
    [
        (effect(10, 8, 12), effect(1, -2, 4), "Regressed", "+10.0 %"),
        (
            effect(10, 8, 12),
            effect(4, -1, 9),
            "Inconclusive",
            "which may account for it; baseline.benchmark.rerun: true",
        ),
        # A machine that became faster explains no loss of speed.
        (effect(10, 8, 12), effect(-4, -9, 1), "Regressed", "+10.0 %"),
        (effect(-10, -12, -8), effect(-4, -9, 1), "Inconclusive", "which may account for it"),
        (effect(0, -1, 1), effect(1, -2, 4), "Passed", "less than 5 %"),
        (effect(0, -1, 1), effect(-4, -9, 1), "Inconclusive", "which may hide a difference"),
    ],
)
def test_what_the_machine_may_account_for_is_not_judged(
    found: Effect, drift: Effect, verdict: Verdict, told: str
) -> None:
    judged = judge(found, "lower", 0.008, RULE, drift=drift)
    assert judged.verdict == verdict
    assert told in judged.reason


def test_a_machine_that_changed_by_the_minimum_effect_is_another_machine() -> None:
    assert machine_changed(effect(8, 6, 10), RULE) == (
        "the machine itself changed: a fixed piece of arithmetic now takes +8.0 % (+6.0 % to +10.0 %) against then; "
        "baseline.benchmark.rerun: true measures both in turns"
    )
    assert machine_changed(effect(4, 3, 5), RULE) is None
    assert machine_changed(effect(8, -1, 18), RULE) is None


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        (["Passed", "Improved", "Inconclusive", "Regressed"], "Regressed"),
        (["Passed", "Improved", "Inconclusive"], "Inconclusive"),
        (["Passed", "Improved"], "Improved"),
        (["Passed", "Passed"], "Passed"),
        ([], "Inconclusive"),
    ],
)
def test_the_worst_decides(verdicts: list[Verdict], whole: Verdict) -> None:
    assert overall(verdicts) == whole


values = st.lists(st.floats(0.5, 2.0).map(lambda one: round(one, 9)), min_size=4, max_size=7)
"""As clocks tell them: of two that differ in the last bit, the logarithms may be equal in one unit, not in another."""


def verdict_of(baseline: list[float], candidate: list[float], better: Better = "lower", pair: bool = False) -> Verdict:
    found = effect_of(baseline, candidate, pair)
    return judge(found, better, found.p_value, RULE).verdict


@given(values, values)
@settings(max_examples=25)
def test_exchanging_the_arms_turns_the_verdict_around(baseline: list[float], candidate: list[float]) -> None:
    assume(baseline != candidate)  # which no order tells apart, and one draw of resamples is not its own mirror image
    there = effect_of(baseline, candidate)
    back = effect_of(candidate, baseline)
    assert (back.log_low, back.log_high, back.log_ratio) == (-there.log_high, -there.log_low, -there.log_ratio)
    assert verdict_of(candidate, baseline) == FLIPPED[verdict_of(baseline, candidate)]


@given(st.lists(st.tuples(st.floats(0.5, 2.0), st.floats(0.5, 2.0)), min_size=6, max_size=8))
@settings(max_examples=25)
def test_exchanging_the_arms_of_pairs_turns_the_verdict_around(pairs: list[tuple[float, float]]) -> None:
    baseline, candidate = (list(side) for side in zip(*pairs, strict=True))
    assert verdict_of(candidate, baseline, pair=True) == FLIPPED[verdict_of(baseline, candidate, pair=True)]


@given(values, values, st.sampled_from([2.0**-20, 0.25, 4.0, 2.0**20]))
@settings(max_examples=25)
def test_the_unit_is_irrelevant(baseline: list[float], candidate: list[float], scale: float) -> None:
    there = effect_of(baseline, candidate)
    here = effect_of([scale * one for one in baseline], [scale * one for one in candidate])
    assert here.p_value == there.p_value
    assert (here.log_ratio, here.log_low, here.log_high) == pytest.approx(
        (there.log_ratio, there.log_low, there.log_high), abs=1e-9
    )


@given(values, values, st.randoms(use_true_random=False))
@settings(max_examples=25)
def test_the_order_of_trials_is_irrelevant(baseline: list[float], candidate: list[float], random) -> None:  # type: ignore[no-untyped-def]
    there = effect_of(baseline, candidate)
    random.shuffle(baseline)
    random.shuffle(candidate)
    assert effect_of(baseline, candidate) == there


@given(
    st.lists(st.floats(0.98, 1.02), min_size=5, max_size=8),
    st.lists(st.floats(1.15, 1.2), min_size=5, max_size=8),
    st.sampled_from([0.0, 0.01, 1.0, 100.0, math.inf]),
)
@settings(max_examples=40)
def test_one_outlier_more_never_hides_a_slowdown(baseline: list[float], candidate: list[float], outlier: float) -> None:
    assert verdict_of(baseline, candidate) == "Regressed"
    assert verdict_of(baseline, [*candidate, outlier]) in ("Regressed", "Inconclusive")
    assert verdict_of([*baseline, outlier], candidate) in ("Regressed", "Inconclusive")


@given(values)
@settings(max_examples=20)
def test_the_same_numbers_never_differ(both: list[float]) -> None:
    assert verdict_of(both, both) in ("Passed", "Inconclusive")


def test_what_was_never_answered_is_worse_than_any_answer() -> None:
    answered, never = [0.1, 0.11, 0.12, 0.13, 0.1], [math.inf] * 5
    lost = effect_of(answered, never)
    assert (lost.percent, lost.low_percent, lost.high_percent) == (math.inf, math.inf, math.inf)
    assert verdict_of(answered, never) == "Regressed"
    assert verdict_of(never, answered) == "Improved"
    assert as_percent(effect_of(never, answered).log_ratio) == -100.0
    # One of five that is never answered is an outlier like any other; all of both is no difference.
    assert verdict_of(answered, [0.1, 0.11, 0.12, 0.13, math.inf]) == "Inconclusive"
    assert verdict_of(never, never) == "Passed"


def test_from_none_to_some_is_infinitely_more() -> None:
    none, some = [0.0] * 5, [0.01, 0.02, 0.01, 0.03, 0.02]
    assert effect_of(none, some).percent == math.inf
    assert (verdict_of(none, some), verdict_of(some, none), verdict_of(none, none)) == (
        "Regressed",
        "Improved",
        "Passed",
    )


@pytest.mark.parametrize("value", [-1.0, -math.inf, math.nan])
def test_what_has_no_ratio_is_refused(value: float) -> None:
    with pytest.raises(
        ValueError, match=r"a value is negative, and a ratio of it says nothing|a value is not a number"
    ):
        effect_of([1.0, value], [1.0, 2.0])
