"""When requests are due: by the seed alone, and by the laws of their process."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from capstan_runtime.bench.load.arrivals import Arrivals, plan_arrivals

PROCESSES = st.sampled_from(["Poisson", "Constant"])
RATES = st.floats(0.5, 2000)
SECONDS = st.floats(0, 5)
SEEDS = st.integers(0, 2**31)


def plan(arrivals: str, rate: float, seconds: float, seed: int, weights: tuple[int, ...] = (1,)) -> Arrivals:
    return plan_arrivals(arrivals, rate, seconds, weights, np.random.default_rng(seed))  # type: ignore[arg-type]


@given(arrivals=PROCESSES, rate=RATES, seconds=SECONDS, seed=SEEDS)
@settings(max_examples=100)
def test_requests_are_due_in_order_and_inside_the_rung(arrivals: str, rate: float, seconds: float, seed: int) -> None:
    found = plan(arrivals, rate, seconds, seed, (3, 1))
    assert found.due.shape == found.kinds.shape
    assert (np.diff(found.due) >= 0).all()
    assert ((found.due >= 0) & (found.due < seconds + 1 / rate)).all()
    assert set(found.kinds.tolist()) <= {0, 1}


@given(arrivals=PROCESSES, rate=RATES, seconds=SECONDS, seed=SEEDS)
@settings(max_examples=50)
def test_the_same_seed_gives_the_same_plan_and_another_one_another(
    arrivals: str, rate: float, seconds: float, seed: int
) -> None:
    one, again = (plan(arrivals, rate, seconds, seed, (2, 3, 5)) for _ in range(2))
    assert (one.due.tolist(), one.kinds.tolist()) == (again.due.tolist(), again.kinds.tolist())


@given(rate=RATES, seconds=SECONDS)
@settings(max_examples=100)
def test_constant_arrivals_are_as_many_as_the_rate_says_and_evenly_spaced(rate: float, seconds: float) -> None:
    due = plan("Constant", rate, seconds, 0).due
    assert len(due) == round(rate * seconds)
    assert due == pytest.approx([index / rate for index in range(len(due))])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rate", [50.0, 800.0])
def test_gaps_of_poisson_arrivals_are_exponential_with_the_mean_of_the_rate(seed: int, rate: float) -> None:
    due = plan("Poisson", rate, 4000 / rate, seed).due
    gaps = np.diff(due, prepend=0.0)
    assert stats.kstest(gaps, "expon", args=(0, 1 / rate)).pvalue > 0.001
    assert abs(len(due) - 4000) < 4 * 4000**0.5
    assert stats.kstest(due * rate / 4000, "uniform").pvalue > 0.001, "the rate is the same from begin to end"


def test_counts_of_poisson_arrivals_vary_as_much_as_their_mean() -> None:
    counts = [len(plan("Poisson", 100.0, 1.0, seed).due) for seed in range(400)]
    # Variance over mean of Poisson counts, times (n - 1), is chi-square with n - 1 degrees of freedom.
    low, high = stats.chi2.ppf([0.001, 0.999], len(counts) - 1)
    assert low < (len(counts) - 1) * np.var(counts, ddof=1) / np.mean(counts) < high


def test_kinds_are_chosen_by_weight_and_independently() -> None:
    kinds = plan("Poisson", 1000.0, 10.0, 3, (1, 3, 6)).kinds
    counts = np.bincount(kinds, minlength=3)
    assert stats.chisquare(counts, len(kinds) * np.array([0.1, 0.3, 0.6])).pvalue > 0.001
    pairs = np.zeros((3, 3))
    np.add.at(pairs, (kinds[:-1], kinds[1:]), 1)
    assert stats.chi2_contingency(pairs).pvalue > 0.001
