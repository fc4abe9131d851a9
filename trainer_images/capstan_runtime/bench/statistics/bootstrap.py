"""How far a statistic may be from the truth, by resampling what was measured (Efron, 1979)."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Floats], npt.ArrayLike]
"""(resamples, n) numbers -> (resamples,) numbers: one for each row."""
RESAMPLES = 10_000
_MOST_NUMBERS = 4_000_000
"""That are held at once: 32 MB."""


def median(rows: Floats) -> Floats:
    """(…,) medians of (…, n) numbers. Of an even number of them the mean of the middle two; +inf counts as larger than
    any number."""
    middle: Floats = np.median(rows, axis=-1)
    return middle


def interval(
    values: Sequence[float] | Floats,
    statistic: Statistic,
    confidence: float,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """(low, high): the percentile bootstrap interval of `statistic` over `values`, one for each trial.

    Ends are statistics that occurred, never between two, and the order of `values` does not matter. Of one value both
    ends are that statistic itself: the interval says nothing there, and n, which stands beside it, says so. With few
    trials percentile intervals are narrow: of the median of 5 it is smallest to largest, which holds the true one in
    94 % of cases. Raises ValueError for no values, or for a confidence outside (0, 1).
    """
    numbers = np.sort(np.asarray(values, dtype=np.float64))
    if numbers.ndim != 1 or numbers.size == 0:
        raise ValueError(f"values: shape {numbers.shape} is no list of numbers; give one for each trial")
    if numbers.size == 1:
        only = float(np.asarray(statistic(numbers[None, :]))[0])
        return only, only
    found = []
    for count in chunks(resamples, numbers.size):
        found.append(np.asarray(statistic(numbers[rng.integers(0, numbers.size, (count, numbers.size))]), np.float64))
    return ends(np.concatenate(found), confidence)


def ends(resampled: Floats, confidence: float) -> tuple[float, float]:
    """(low, high) that leave the same share of `resampled` out on both sides, together 1 - confidence less two standard
    errors of resampling: chance may make an interval wider than it must be, not narrower."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: {confidence} is not between 0 and 1")
    tail = (1 - confidence) / 2
    tail = max(0.0, tail - 2 * (tail * (1 - tail) / resampled.size) ** 0.5)
    return (
        float(np.quantile(resampled, tail, method="lower")),
        float(np.quantile(resampled, 1 - tail, method="higher")),
    )


def chunks(resamples: int, numbers_each: int) -> list[int]:
    """`resamples` in parts that need little memory when each takes so many numbers."""
    most = max(1, _MOST_NUMBERS // numbers_each)
    full, rest = divmod(resamples, most)
    return [most] * full + ([rest] if rest else [])
