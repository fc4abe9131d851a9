"""Tests and intervals that ask only which of two numbers is larger, so no distribution need be assumed. All are exact:
chances are counted over all arrangements, ties included, never approximated."""

import math

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from capstan_runtime.bench.statistics.bootstrap import Floats

_SLACK = 1e-9
"""Of comparisons between chances, which are sums of many."""


def mann_whitney_p(first: Floats, second: Floats) -> float:
    """Two-sided p of Mann and Whitney's test (1947) that neither sample tends to be larger. Ties get their mean rank,
    and the chance is counted over all ways in which the same numbers could have been dealt out."""
    ranks = _doubled_ranks(np.concatenate([first, second]))
    return _two_sided(_sums_of_some(ranks, first.size), int(ranks[: first.size].sum()))


def signed_rank_p(differences: Floats) -> float:
    """Two-sided p of Wilcoxon's test (1945) that differences lie evenly around 0. Those that are 0 take part in the
    ranking and belong to no side (Pratt, 1959)."""
    ranks = _doubled_ranks(np.abs(differences))
    counts = _sums_of_any(ranks[differences != 0])
    return _two_sided(counts, int(ranks[differences > 0].sum()))


def smallest_mann_whitney_p(first: int, second: int) -> float:
    """That so many against so many trials can reach: 0.0079 for 5 against 5, 0.1 for 3 against 3."""
    return min(1.0, 2 / math.comb(first + second, first))


def smallest_signed_rank_p(pairs: int) -> float:
    """That so many pairs can reach: 0.031 for 6, 0.0020 for 10."""
    return min(1.0, 2.0 * 0.5**pairs)


def shift_interval(first: Floats, second: Floats, confidence: float) -> tuple[float, float]:
    """(low, high): the shifts of `second` against `first` that Mann and Whitney's test does not reject; of too few
    trials to reject any, all that occurred."""
    shifts = np.sort((second[:, None] - first[None, :]).ravel())
    untied = _doubled_ranks(np.arange(first.size + second.size, dtype=np.float64))
    # U counts pairs; the doubled rank sum is twice U plus what the smallest one is.
    counts = _sums_of_some(untied, first.size)
    smallest = int(untied[: first.size].sum())
    return _inverted(shifts, counts[smallest::2], confidence)


def centre_interval(differences: Floats, confidence: float) -> tuple[float, float]:
    """(low, high): the centres of `differences` that Wilcoxon's test does not reject; of too few, all that occurred."""
    untied = np.arange(1, differences.size + 1) * 2
    return _inverted(np.sort(walsh_averages(differences[None, :])[0]), _sums_of_any(untied)[::2], confidence)


def walsh_averages(rows: Floats) -> Floats:
    """(…, n(n+1)/2) means of every two of (…, n) numbers, each with itself included."""
    first, second = np.triu_indices(rows.shape[-1])
    averages: Floats = (rows[..., first] + rows[..., second]) / 2
    return averages


def _inverted(ordered: Floats, counts: Floats, confidence: float) -> tuple[float, float]:
    """Leaves as many out at both ends of `ordered` as the test may, by the `counts` of its statistic 0, 1, …"""
    chances = np.cumsum(counts) / counts.sum()
    left_out = int(np.searchsorted(chances, (1 - confidence) / 2 + _SLACK, side="right"))
    left_out = min(max(left_out - 1, 0), (ordered.size - 1) // 2)
    return float(ordered[left_out]), float(ordered[ordered.size - 1 - left_out])


def _doubled_ranks(values: Floats) -> npt.NDArray[np.int64]:
    """Twice the rank of each, so that the mean rank of ties is whole."""
    doubled: npt.NDArray[np.int64] = np.rint(2 * rankdata(values)).astype(np.int64)
    return doubled


def _sums_of_some(ranks: npt.NDArray[np.int64], chosen: int) -> Floats:
    """In how many ways `chosen` of `ranks` have the sum 0, 1, 2, …"""
    counts = np.zeros((chosen + 1, int(ranks.sum()) + 1))
    counts[0, 0] = 1.0
    for done, rank in enumerate(ranks, start=1):
        for taken in range(min(chosen, done), 0, -1):
            counts[taken, rank:] += counts[taken - 1, : counts.shape[1] - rank]
    some: Floats = counts[chosen]
    return some


def _sums_of_any(ranks: npt.NDArray[np.int64]) -> Floats:
    """In how many ways any of `ranks` have the sum 0, 1, 2, …"""
    counts = np.zeros(int(ranks.sum()) + 1)
    counts[0] = 1.0
    for rank in ranks:
        shifted = counts.copy()
        shifted[rank:] += counts[: counts.size - rank]
        counts = shifted
    return counts


def _two_sided(counts: Floats, found: int) -> float:
    every = counts.sum()
    below, above = counts[: found + 1].sum() / every, counts[found:].sum() / every
    return float(min(1.0, 2 * min(below, above)))
