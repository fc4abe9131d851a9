"""How much one arm differs from the other: Hodges and Lehmann's estimate (1963) of the shift of logarithms, which is a
ratio, with an interval and a chance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from capstan_runtime.bench.statistics.bootstrap import RESAMPLES, Floats, chunks, ends
from capstan_runtime.bench.statistics.ranks import (
    centre_interval,
    mann_whitney_p,
    shift_interval,
    signed_rank_p,
    smallest_mann_whitney_p,
    smallest_signed_rank_p,
    walsh_averages,
)

_FAR = 1000.0
"""From the logarithms of finite positive numbers to those of 0 and infinity. Larger than any two of them are apart that
mean anything, so an effect beyond a quarter of it is infinite."""


@dataclass(frozen=True, slots=True)
class Effect:
    """Candidate over baseline."""

    log_ratio: float
    """Natural logarithm; ±inf where one side is 0 or infinite and the other is not."""
    log_low: float
    log_high: float
    p_value: float
    """Two-sided, not yet adjusted."""
    smallest_p: float
    """That this design can reach at all, however large the difference."""
    is_paired: bool

    @property
    def percent(self) -> float:
        return as_percent(self.log_ratio)

    @property
    def low_percent(self) -> float:
        return as_percent(self.log_low)

    @property
    def high_percent(self) -> float:
        return as_percent(self.log_high)

    @property
    def excludes_none(self) -> bool:
        """The interval does not hold 0, no difference."""
        return self.log_low > 0 or self.log_high < 0


def as_percent(log_ratio: float) -> float:
    """
    >>> as_percent(math.log(1.1)), as_percent(-math.inf), as_percent(math.inf)
    (10.000000000000009, -100.0, inf)
    """
    return 100 * math.expm1(log_ratio) if log_ratio < _FAR / 4 else math.inf


def measure_effect(
    baseline: Sequence[float],
    candidate: Sequence[float],
    confidence: float,
    rng: np.random.Generator,
    pair: bool = False,
    resamples: int = RESAMPLES,
) -> Effect:
    """The ratio of candidate to baseline, one number for each trial.

    `pair`: the two lists are equally long, and numbers at the same place were measured beside each other, so what
    slowed both is not counted as noise: Wilcoxon's signed-rank test on the logarithms of their ratios. Else Mann and
    Whitney's. The interval is that of the bootstrap, widened to that of the test where this is wider, because with few
    trials the bootstrap's alone is known to be too narrow.

    0 and +inf take part: as smaller and larger than any number; two of them are equal. Raises ValueError for negative
    numbers and nan, and for an empty side.
    """
    if not baseline or not candidate:
        raise ValueError("there is no number on one side; give one for each trial")
    first, second = _logs(np.asarray(baseline, np.float64), np.asarray(candidate, np.float64))
    if pair:
        return _paired(second - first, confidence, rng, resamples)
    # Which arm is resampled first must not matter: exchanging them must give the same interval, turned around.
    flip = tuple(np.sort(first)) > tuple(np.sort(second))
    if not flip:
        return _unpaired(np.sort(first), np.sort(second), confidence, rng, resamples)
    effect = _unpaired(np.sort(second), np.sort(first), confidence, rng, resamples)
    return Effect(
        log_ratio=-effect.log_ratio,
        log_low=-effect.log_high,
        log_high=-effect.log_low,
        p_value=effect.p_value,
        smallest_p=effect.smallest_p,
        is_paired=False,
    )


def can_pair(pairs: int, allowed_p: float) -> bool:
    """So many pairs can show a difference with a chance of at most `allowed_p`: 6 or more for 0.05. It follows from the
    design alone, so looking at the numbers first gains nothing."""
    return smallest_signed_rank_p(pairs) <= allowed_p


def _unpaired(first: Floats, second: Floats, confidence: float, rng: np.random.Generator, resamples: int) -> Effect:
    found = []
    for count in chunks(resamples, first.size * second.size):
        some_first = first[rng.integers(0, first.size, (count, first.size))]
        some_second = second[rng.integers(0, second.size, (count, second.size))]
        found.append(_shift(some_first, some_second))
    estimate = float(_shift(first[None, :], second[None, :])[0])
    bounds = (ends(np.concatenate(found), confidence), shift_interval(first, second, confidence))
    smallest = smallest_mann_whitney_p(first.size, second.size)
    return _effect(estimate, bounds, mann_whitney_p(first, second), smallest, is_paired=False)


def _paired(ratios: Floats, confidence: float, rng: np.random.Generator, resamples: int) -> Effect:
    # By size, and turned around when most are negative: neither order nor which arm is which may matter.
    sign = -1.0 if tuple(np.sort(ratios)) < tuple(np.sort(-ratios)) else 1.0
    ordered = np.sort(sign * ratios)
    found = []
    for count in chunks(resamples, ordered.size * (ordered.size + 1)):
        rows = ordered[rng.integers(0, ordered.size, (count, ordered.size))]
        found.append(np.median(walsh_averages(rows), axis=-1))
    estimate = float(np.median(walsh_averages(ordered[None, :])))
    bounds = (ends(np.concatenate(found), confidence), centre_interval(ordered, confidence))
    turned = tuple(sorted((sign * low, sign * high)) for low, high in bounds)
    smallest = smallest_signed_rank_p(ordered.size)
    return _effect(sign * estimate, turned, signed_rank_p(ratios), smallest, is_paired=True)


def _effect(
    estimate: float, bounds: Sequence[Sequence[float]], p_value: float, smallest_p: float, is_paired: bool
) -> Effect:
    return Effect(
        log_ratio=_unbounded(estimate),
        log_low=_unbounded(min(low for low, _ in bounds)),
        log_high=_unbounded(max(high for _, high in bounds)),
        p_value=p_value,
        smallest_p=smallest_p,
        is_paired=is_paired,
    )


def _shift(first: Floats, second: Floats) -> Floats:
    """(…,) medians of all differences between (…, m) and (…, n)."""
    differences = second[..., :, None] - first[..., None, :]
    shift: Floats = np.median(differences.reshape(*differences.shape[:-2], -1), axis=-1)
    return shift


def _logs(first: Floats, second: Floats) -> tuple[Floats, Floats]:
    every = np.concatenate([first, second])
    if np.isnan(every).any():
        raise ValueError("a value is not a number")
    if (every < 0).any():
        raise ValueError("a value is negative, and a ratio of it says nothing")
    finite = np.log(every[(every > 0) & np.isfinite(every)])
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    logs = np.full(every.shape, most + _FAR)
    logs[every == 0] = least - _FAR
    regular = (every > 0) & np.isfinite(every)
    logs[regular] = finite
    return logs[: first.size], logs[first.size :]


def _unbounded(log_ratio: float) -> float:
    return math.copysign(math.inf, log_ratio) if abs(log_ratio) > _FAR / 4 else log_ratio
