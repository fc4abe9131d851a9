"""Training runs as the fit sees them: logarithms about their middle, so that units do not matter."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FEWEST_RUNS = 5
"""As many as the Chinchilla form has parameters."""


@dataclass(frozen=True, slots=True)
class Runs:
    """Logarithms of N runs, each less its mean over them."""

    x_N: Floats
    """Of model parameters."""
    y_N: Floats
    """Of tokens."""
    loss_N: Floats
    mean_x: float
    mean_y: float
    mean_loss: float

    @classmethod
    def of(cls, points: Sequence[tuple[float, float, float]]) -> "Runs":
        """From (parameters, tokens, loss). Raises ValueError for fewer than FEWEST_RUNS, or a number that is not
        positive and finite."""
        if len(points) < FEWEST_RUNS:
            raise ValueError(f"points: {len(points)} runs do not determine a law; add runs, {FEWEST_RUNS} at least")
        logs_N3 = _logarithms(points)
        means = logs_N3.mean(axis=0)
        x_N, y_N, loss_N = (logs_N3 - means).T
        return cls(x_N, y_N, loss_N, float(means[0]), float(means[1]), float(means[2]))

    def others(self, points: Sequence[tuple[float, float, float]]) -> "Runs":
        """`points` about the middle of these runs: what was fitted to these predicts those."""
        x_N, y_N, loss_N = (_logarithms(points) - (self.mean_x, self.mean_y, self.mean_loss)).T
        return replace(self, x_N=x_N, y_N=y_N, loss_N=loss_N)

    def __len__(self) -> int:
        return len(self.x_N)


def _logarithms(points: Sequence[tuple[float, float, float]]) -> Floats:
    for number, point in enumerate(points, 1):
        for field, value in zip(("parameters", "tokens", "loss"), point, strict=True):
            if not (np.isfinite(value) and value > 0):
                raise ValueError(f"points: {field} {value} of run {number} is no positive number; correct it")
    return np.log(np.asarray(points, np.float64))
