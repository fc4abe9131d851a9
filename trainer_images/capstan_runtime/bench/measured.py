"""What a workload hands back, and the ways in which repeated calls are timed."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from capstan_runtime.contract.benchmark import Better, Environment, Point

MOST_SAMPLES = 10_000
"""Kept of one point; of more, every k-th."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of one trial."""

    points: Sequence[Point]
    notes: Sequence[str] = field(default=())
    """What a reader of the figures must know."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Kept beside the result as `trials/<trial>.<attempt>.<name>`, for other tools: nothing here reads them."""
    peers: Sequence[Environment] = field(default=())
    """What the other ranks ran on."""


def time_calls(call: Callable[[], object], seconds: float, warmup_seconds: float = 0.0, fewest: int = 3) -> list[float]:
    """Seconds of each of the calls that fit into `seconds`, at least `fewest`; those of the first `warmup_seconds`, at
    least one, are left out. `call` must wait until its work is done, that of a device included.

    Two reads of the clock are all that a call pays for being measured: 0.1 us.
    """
    clock = time.perf_counter
    until = clock() + warmup_seconds
    while True:
        call()
        if clock() >= until:
            break
    taken: list[float] = []
    until = clock() + seconds
    while len(taken) < fewest or clock() < until:
        started = clock()
        call()
        taken.append(clock() - started)
    return taken


def point(
    metric: str,
    unit: str,
    better: Better,
    value: float,
    *,
    labels: dict[str, str] | None = None,
    samples: Sequence[float] = (),
    samples_unit: str | None = None,
    is_headline: bool = False,
    is_withdrawn: bool = False,
) -> Point:
    """A Point; `samples` are thinned out to at most MOST_SAMPLES."""
    every = -(-len(samples) // MOST_SAMPLES) if samples else 1
    return Point(
        metric=metric,
        labels=labels or {},
        unit=unit,
        better=better,
        value=value,
        samples=tuple(samples[::every]),
        samples_unit=samples_unit,
        is_headline=is_headline,
        is_withdrawn=is_withdrawn,
    )


def median_point(
    metric: str, samples: Sequence[float], *, labels: dict[str, str] | None = None, is_headline: bool = False
) -> Point:
    """The Point of durations in seconds, where less is better: their median stands for the trial."""
    return point(
        metric, "s", "lower", statistics.median(samples), labels=labels, samples=samples, is_headline=is_headline
    )


def can_tell(share: float, count: int) -> bool:
    """Whether `count` samples have one beyond that percentile: p99 takes 100 of them, p99.9 1,000; of fewer it is the
    longest, by another name. A median takes one.

    >>> can_tell(0.99, 99), can_tell(0.99, 100), can_tell(0.999, 1000)
    (False, True, True)
    """
    return count > 0 and (share <= 0.5 or count * (1 - share) >= 1 - 1e-9)


def percentile(rising: npt.NDArray[np.float64], share: float) -> float:
    """Of `rising` [n >= 1]: the smallest that at least `share` of all are not above (nearest rank). So it was seen, and
    infinities need no arithmetic."""
    return float(rising[max(0, math.ceil(share * len(rising) - 1e-9) - 1)])
