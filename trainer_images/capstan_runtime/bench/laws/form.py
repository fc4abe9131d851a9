"""What a scaling law is to the fit.

Both forms are a power of a sum of powers, log L = p log(sum_j exp(c_j - k_j . (x, y))), and are computed that way:
a sum of exponentials never overflows when its largest is taken out first.

Shapes: R resamples, N runs, K parameters of the fit, J terms of the sum, P parameters as they are printed.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from capstan_runtime.bench.laws.runs import Floats, Runs

LARGEST_LOG = 690.0
"""e to it is still a finite float: an interval that has no end is printed with a number, and JSON has no infinity."""


@dataclass(frozen=True, slots=True)
class Tradeoff:
    """What a law leaves to choose, A/N^alpha + B/D^beta, of R resamples: both forms fall when it does."""

    log_a_R: Floats
    log_b_R: Floats
    alpha_R: Floats
    beta_R: Floats

    def model_exponent(self) -> Floats:
        """How the best model size grows with compute; the rest of 1 is for the data."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.beta_R / (self.alpha_R + self.beta_R)

    def best_size(self, compute: float) -> Floats:
        """Parameters of the model with the least loss for 6 N D = compute (Hoffmann et al. 2022, eq. 4). NaN where
        there is no least: an exponent is not positive."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio_R = np.log(self.alpha_R) + self.log_a_R - np.log(self.beta_R) - self.log_b_R
            log_size_R = (ratio_R + self.beta_R * np.log(compute / 6)) / (self.alpha_R + self.beta_R)
        return exp_within_floats(log_size_R)


class Form(Protocol):
    """A family of laws."""

    @property
    def name(self) -> str: ...

    @property
    def formula(self) -> str: ...

    @property
    def printed(self) -> tuple[str, ...]:
        """Names of the P parameters as people know them."""
        ...

    @property
    def exponents(self) -> tuple[str, ...]:
        """Those of `printed` whose intervals must not hold 0."""
        ...

    def starts(self) -> Floats:
        """Theta to search from, (S, K); for centred runs, so in no unit."""
        ...

    def predict(self, theta_RK: Floats, runs: Runs) -> tuple[Floats, Floats]:
        """Log of the loss (R, N), less its mean, and its Jacobian (R, N, K)."""
        ...

    def shares(self, theta_1K: Floats, runs: Runs) -> Floats:
        """Of the terms of model size and data in the sum, for each run, (N, 2)."""
        ...

    def print_values(self, theta_RK: Floats, runs: Runs) -> Floats:
        """Values of `printed`, (R, P), in the runs' own units."""
        ...

    def tradeoff(self, theta_RK: Floats, runs: Runs) -> Tradeoff: ...

    def shapes(self) -> Floats:
        """Pairs of exponents to search from, (S, 2)."""
        ...

    def terms(self, shape: Floats, runs: Runs) -> tuple[Floats, float]:
        """Given the exponents the loss is (terms (N, J) @ coefficients (J,)) ** power."""
        ...

    def theta(self, shape: Floats, coefficients_J: Floats) -> Floats:
        """The theta (K,) of both."""
        ...


def soft_maximum(logs_RNJ: Floats) -> tuple[Floats, Floats]:
    """log(sum_j exp), (R, N), and each term's share of the sum, (R, N, J)."""
    most_RN1 = logs_RNJ.max(axis=-1, keepdims=True)
    shares_RNJ = np.exp(logs_RNJ - most_RN1)
    sum_RN1 = shares_RNJ.sum(axis=-1, keepdims=True)
    shares_RNJ /= sum_RN1
    return (most_RN1 + np.log(sum_RN1))[..., 0], shares_RNJ


def exp_within_floats(logs: Floats) -> Floats:
    """exp, never 0 or infinite."""
    return np.exp(np.clip(logs, -LARGEST_LOG, LARGEST_LOG))
