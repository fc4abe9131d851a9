"""Rank tests are exact: the same as scipy's where there are no ties, and as counting by hand where there are."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, rankdata, wilcoxon

from capstan_runtime.bench.statistics import holm
from capstan_runtime.bench.statistics.outliers import find_outliers
from capstan_runtime.bench.statistics.ranks import (
    centre_interval,
    mann_whitney_p,
    shift_interval,
    signed_rank_p,
    smallest_mann_whitney_p,
    smallest_signed_rank_p,
)


@pytest.mark.parametrize(("first", "second"), [(3, 3), (5, 5), (4, 7), (10, 10), (30, 20)])
def test_without_ties_mann_whitney_is_scipys(first: int, second: int) -> None:
    rng = np.random.default_rng(first * second)
    ours, theirs = rng.normal(size=first), rng.normal(0.7, size=second)
    expected = mannwhitneyu(ours, theirs, method="exact").pvalue
    assert mann_whitney_p(ours, theirs) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("pairs", [5, 6, 10, 25])
def test_without_ties_signed_ranks_are_scipys(pairs: int) -> None:
    differences = np.random.default_rng(pairs).normal(0.3, size=pairs)
    assert signed_rank_p(differences) == pytest.approx(wilcoxon(differences, method="exact").pvalue, rel=1e-9)


few = st.lists(st.integers(0, 3), min_size=1, max_size=5)


@given(few, few)
@settings(max_examples=60)
def test_with_ties_mann_whitney_counts_every_way_to_deal_the_numbers_out(first: list[int], second: list[int]) -> None:
    ranks = rankdata(first + second)
    found = ranks[: len(first)].sum()
    sums = np.array([ranks[list(some)].sum() for some in combinations(range(ranks.size), len(first))])
    expected = min(1.0, 2 * min((sums <= found).mean(), (sums >= found).mean()))
    assert mann_whitney_p(np.array(first, float), np.array(second, float)) == pytest.approx(expected)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=7))
@settings(max_examples=60)
def test_with_ties_signed_ranks_count_every_way_to_turn_the_signs(differences: list[int]) -> None:
    values = np.array(differences, float)
    ranks = rankdata(np.abs(values))[values != 0]
    found = rankdata(np.abs(values))[values > 0].sum()
    sums = np.array(
        [sum(r for r, up in zip(ranks, ups, strict=True) if up) for ups in product((0, 1), repeat=len(ranks))]
    )
    expected = min(1.0, 2 * min((sums <= found).mean(), (sums >= found).mean()))
    assert signed_rank_p(values) == pytest.approx(expected)


def test_what_a_design_can_reach_at_all() -> None:
    assert [round(smallest_mann_whitney_p(n, n), 4) for n in (3, 4, 5)] == [0.1, 0.0286, 0.0079]
    assert [smallest_signed_rank_p(n) for n in (1, 5, 6)] == [1.0, 0.0625, 0.03125]


def test_intervals_leave_out_what_tables_of_critical_values_say() -> None:
    # 5 against 5 at 95 %: U is critical at 2, so two shifts are left out at both ends; of 25 the 3rd and 23rd remain.
    first, second = np.zeros(5), np.zeros(5)
    first[:] = [0, 5, 10, 15, 20]
    second[:] = [100, 101, 102, 103, 104]
    shifts = np.sort((second[:, None] - first).ravel())
    assert shift_interval(first, second, 0.95) == (shifts[2], shifts[22])
    # 10 pairs: W is critical at 8, so the 9th and 47th of 55 means remain. 5 pairs can rule out nothing.
    ten = 2.0 ** np.arange(10)
    means = np.sort([(a + b) / 2 for i, a in enumerate(ten) for b in ten[i:]])
    assert centre_interval(ten, 0.95) == (means[8], means[46])
    assert centre_interval(ten[:5], 0.95) == (1.0, 16.0)


def test_shift_intervals_hold_the_true_shift_at_least_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(1000):
        low, high = shift_interval(rng.exponential(size=5), 0.5 + rng.exponential(size=5), 0.95)
        held += low <= 0.5 <= high
    assert held / 1000 >= 0.95  # 96.8 % by theory, 0.6 % standard error


def test_holm_by_hand() -> None:
    assert holm.adjust([0.01, 0.04, 0.03, 0.005]) == [0.03, 0.06, 0.06, 0.02]
    assert holm.adjust([0.9, 0.5]) == [1.0, 1.0]
    assert holm.adjust([]) == []


@pytest.mark.parametrize(
    ("values", "far"),
    [
        ([10.0, 10.1, 9.9, 10.2, 20.0], [4]),
        ([10.0, 10.1, 9.9, 10.2, 10.4], []),
        ([1.0, 1.0, 1.0, 1.0, 2.0], [4]),
        ([1.0, 1.0, 1.0, 1.0, 1.0], []),
        ([1.0, 1.1, 0.9, 1.0, float("inf")], [4]),
        ([float("inf")] * 3 + [1.0], [3]),
        ([1.0, 100.0], []),
    ],
)
def test_outliers_by_scaled_median_deviation(values: list[float], far: list[int]) -> None:
    assert find_outliers(values) == far
