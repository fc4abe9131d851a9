"""What is minimised: the sum, over runs, of Huber's loss on log(observed) - log(predicted).

The sum and not the mean: with the mean, an optimiser's default tolerances stop it early, and its parameters are off by
more than their intervals (Besiroglu et al. 2024, arXiv 2404.10102). Shapes as in form.py.
"""

from dataclasses import dataclass

import numpy as np

from capstan_runtime.bench.laws.form import Form
from capstan_runtime.bench.laws.runs import Floats, Runs

DELTA = 1e-3
"""Residuals above count by their size, not their square (Hoffmann et al. 2022, section 3.3)."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The objective of R resamples, and what its minimisers need."""

    objective_R: Floats
    gradient_RK: Floats
    residual_RN: Floats
    jacobian_RNK: Floats


def evaluate(form: Form, theta_RK: Floats, runs: Runs, weight_RN: Floats) -> Evaluation:
    """`weight_RN` says how often each run counts: ones for the runs themselves, the draws of a resample."""
    log_loss_RN, jacobian_RNK = form.predict(theta_RK, runs)
    residual_RN = runs.loss_N - log_loss_RN
    clipped_RN = np.clip(residual_RN, -DELTA, DELTA)
    objective_R = (weight_RN * huber_losses(residual_RN)).sum(axis=-1)
    gradient_RK = -((weight_RN * clipped_RN)[:, None, :] @ jacobian_RNK)[:, 0]
    return Evaluation(objective_R, gradient_RK, residual_RN, jacobian_RNK)


def huber_losses(residual: Floats) -> Floats:
    """Half the square up to DELTA, and a line of that slope beyond."""
    clipped = np.clip(residual, -DELTA, DELTA)
    return clipped * (residual - clipped / 2)


def huber_weights(residual: Floats) -> Floats:
    """Least squares with these weights has the gradient of Huber's loss."""
    return DELTA / np.maximum(np.abs(residual), DELTA)
