"""Which trials lie far from the others. They are shown, and stay in."""

from collections.abc import Sequence

import numpy as np

FAR = 3.5
"""Scaled median absolute deviations (Iglewicz and Hoaglin, 1993)."""
_NORMAL_MEDIAN = 1.4826
"""Times the median absolute deviation: the standard deviation, where numbers are normally distributed."""
_NORMAL_MEAN = 1.2533
"""The same for the mean absolute deviation."""


def find_outliers(values: Sequence[float]) -> list[int]:
    """Places of the values further than FAR from the median. Where more than half are equal, so that the median
    deviation is 0, the mean deviation takes its place (as Iglewicz and Hoaglin do); +inf among finite ones is far."""
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.size < 3:
        return []
    middle = np.median(numbers)
    with np.errstate(invalid="ignore"):
        deviations = np.where(numbers == middle, 0.0, np.abs(numbers - middle))
    finite = deviations[np.isfinite(deviations)]
    scale = _NORMAL_MEDIAN * float(np.median(deviations))
    if scale == 0:
        scale = _NORMAL_MEAN * float(finite.mean())
    if not np.isfinite(scale):
        return []
    return [int(place) for place in np.flatnonzero(deviations > FAR * scale)]
