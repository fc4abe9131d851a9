"""Several tests at once."""

from collections.abc import Sequence


def adjust(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p of each, in the same order: the chance of any false alarm among all of them stays below
    the level that the adjusted ones are compared with.

    >>> adjust([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    so_far = 0.0
    for done, index in enumerate(order):
        so_far = max(so_far, min(1.0, (len(p_values) - done) * p_values[index]))
        adjusted[index] = so_far
    return adjusted
