"""How far one distribution is from another: the population stability index."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

LARGE = 0.2
"""From here on a shift is worth a look: the usual reading of the index (Siddiqi, Credit Risk Scorecards, 2006, has 0.1
to 0.25 for a moderate one)."""
_SMALLEST_SHARE = 1e-4
"""An empty bin has this share: its logarithm would be infinite."""
_BY_CHANCE = 0.01
"""How often samples of one distribution may be called drifted, of all that is compared together."""


def stability_index(expected: Sequence[float], actual: Sequence[float]) -> float:
    """Sum of (actual - expected) ln(actual / expected) over the bins, each a share of its whole: 0 for equal ones,
    never negative, the same both ways."""
    e = np.maximum(np.asarray(expected, np.float64), _SMALLEST_SHARE)
    a = np.maximum(np.asarray(actual, np.float64), _SMALLEST_SHARE)
    return float(np.sum((a - e) * np.log(a / e)))


def index_by_chance(bins: int, expected_samples: int, actual_samples: int, comparisons: int = 1) -> float:
    """What the index of two samples of one distribution stays below in all but 1 % of cases, of `comparisons` together.

    It is (1/n + 1/m) times a chi-squared variable of `bins` - 1 degrees of freedom (Yurdakul and Naranjo, Statistical
    properties of the population stability index, 2020); its quantile by Wilson and Hilferty's approximation (1931).
    """
    freedom = max(1, bins - 1)
    z = NormalDist().inv_cdf(1.0 - _BY_CHANCE / comparisons)
    spread = 2.0 / (9.0 * freedom)
    quantile = freedom * (1.0 - spread + z * math.sqrt(spread)) ** 3
    return quantile * (1.0 / expected_samples + 1.0 / actual_samples)


def shares_in_bins(values: np.ndarray, edges: Sequence[float]) -> list[float]:
    """Share of `values` in each of the len(edges) + 1 bins that ascending `edges` make; an edge is in the bin below."""
    counts = np.bincount(np.searchsorted(np.asarray(edges, np.float64), values), minlength=len(edges) + 1)
    return [float(share) for share in counts / max(1, len(values))]
