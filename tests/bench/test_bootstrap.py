"""Intervals by resampling: exact where that can be worked out by hand, and as often right as they say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_runtime.bench.statistics.bootstrap import interval, median


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_the_interval_of_five_values_median_is_from_smallest_to_largest() -> None:
    # P(median of a resample is the smallest) = P(3 or more of 5 draws are it) = 5.8 %, above the tail of 2.5 %.
    assert interval([3.0, 1.0, 2.0, 5.0, 4.0], median, 0.95, rng()) == (1.0, 5.0)
    # That is less than a tail of 10 %: there the second smallest begins.
    assert interval([3.0, 1.0, 2.0, 5.0, 4.0], median, 0.8, rng()) == (2.0, 4.0)


def test_one_value_is_its_own_interval() -> None:
    assert interval([3.5], median, 0.95, rng()) == (3.5, 3.5)


def test_infinite_values_do_not_become_nan() -> None:
    assert interval([1.0, 2.0, 3.0, float("inf")], median, 0.95, rng()) == (1.0, float("inf"))


@pytest.mark.parametrize(("values", "confidence"), [([], 0.95), ([[1.0], [2.0]], 0.95), ([1.0, 2.0], 1.0)])
def test_what_is_no_list_or_no_confidence_is_refused(values: list[float], confidence: float) -> None:
    with pytest.raises(ValueError, match=r"values: shape|confidence: 1\.0 is not between 0 and 1"):
        interval(values, median, confidence, rng())


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_the_order_of_values_is_irrelevant_and_the_interval_holds_the_median(values: list[float], random) -> None:  # type: ignore[no-untyped-def]
    low, high = interval(values, median, 0.95, rng(), resamples=500)
    assert low <= float(np.median(values)) <= high
    random.shuffle(values)
    assert interval(values, median, 0.95, rng(), resamples=500) == (low, high)


def test_intervals_of_medians_hold_the_true_one_about_as_often_as_they_say() -> None:
    # Of 15 values it is the 4th to the 12th, which hold the median in 96.5 % of cases; 300 experiments tell to 1 %.
    noise = np.random.default_rng(1)
    held = 0
    for _ in range(300):
        low, high = interval(noise.lognormal(0.0, 0.05, 15), median, 0.95, rng())
        held += low <= 1.0 <= high
    assert held / 300 >= 0.93
