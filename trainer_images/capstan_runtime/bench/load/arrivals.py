"""When requests are due, and of which kind each is: settled by a seed before the first one is sent."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Arrivals:
    """The requests of one rung."""

    due: Floats
    """[n] seconds after the rung's begin, rising, below its length."""
    kinds: npt.NDArray[np.int64]
    """[n] which of the scenario's requests."""


def plan_arrivals(
    arrivals: Literal["Poisson", "Constant"],
    rate: float,
    seconds: float,
    weights: Sequence[int],
    rng: np.random.Generator,
) -> Arrivals:
    """All requests of `seconds` at `rate` per second; the same generator state gives the same plan.

    Poisson: independent exponential gaps, as of many users who know nothing of each other, so the number of requests
    varies by its square root. Constant: a request every 1/rate seconds. A plan costs 16 bytes a request.
    """
    due = _poisson(rate, seconds, rng) if arrivals == "Poisson" else np.arange(round(rate * seconds)) / rate
    shares = np.asarray(weights, np.float64)
    return Arrivals(due, rng.choice(len(weights), size=len(due), p=shares / shares.sum()))


def _poisson(rate: float, seconds: float, rng: np.random.Generator) -> Floats:
    expected = rate * seconds
    pieces: list[Floats] = [np.zeros(0)]
    reached = 0.0
    while reached < seconds:
        gaps = rng.exponential(1 / rate, size=int(expected + 6 * expected**0.5) + 16)
        pieces.append(reached + np.cumsum(gaps))
        reached = float(pieces[-1][-1])
    due = np.concatenate(pieces)
    return due[due < seconds]
