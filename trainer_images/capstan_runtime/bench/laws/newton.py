"""Many fits at once, each from a start: Newton's method, damped, on all of them in one array. Shapes as in form.py."""

import numpy as np

from capstan_runtime.bench.laws.form import Form
from capstan_runtime.bench.laws.objective import DELTA, Evaluation, evaluate, huber_weights
from capstan_runtime.bench.laws.runs import Floats, Runs

MOST_STEPS = 300
_SMALLEST_DAMPING, _LARGEST_DAMPING = 1e-9, 1e9
_BLOCK_NUMBERS = 60_000
"""Runs times resamples in one block: its arrays stay in a core's cache."""


def refine(
    form: Form, theta_RK: Floats, runs: Runs, weight_RN: Floats, tolerance: float, most_steps: int = MOST_STEPS
) -> Floats:
    """The theta (R, K) at the minimum next to each start. A resample is done when its gradient's norm is below
    `tolerance` times DELTA times its runs, when no step makes it better, or after `most_steps`."""
    size = max(1, _BLOCK_NUMBERS // len(runs))
    blocks = [
        _refine_block(
            form, theta_RK[first : first + size], runs, weight_RN[first : first + size], tolerance, most_steps
        )
        for first in range(0, len(theta_RK), size)
    ]
    return np.concatenate(blocks)


def _refine_block(
    form: Form, theta_RK: Floats, runs: Runs, weight_RN: Floats, tolerance: float, most_steps: int
) -> Floats:
    found_RK = theta_RK.copy()
    open_R = np.arange(len(theta_RK))
    theta_RK, damping_R = theta_RK.copy(), np.full(len(theta_RK), 1.0)
    here = evaluate(form, theta_RK, runs, weight_RN)
    for _ in range(most_steps):
        enough_R = tolerance * DELTA * weight_RN.sum(axis=-1)
        going_R = (np.linalg.norm(here.gradient_RK, axis=-1) > enough_R) & (damping_R < _LARGEST_DAMPING)
        if not going_R.all():
            found_RK[open_R] = theta_RK
            open_R, theta_RK, weight_RN, damping_R = (
                each[going_R] for each in (open_R, theta_RK, weight_RN, damping_R)
            )
            here = _select(here, going_R)
        if not len(open_R):
            break
        next_RK = theta_RK + _steps(here, weight_RN, damping_R)
        there = evaluate(form, next_RK, runs, weight_RN)
        better_R = there.objective_R < here.objective_R
        damping_R = np.maximum(np.where(better_R, damping_R / 5, damping_R * 4), _SMALLEST_DAMPING)
        theta_RK = np.where(better_R[:, None], next_RK, theta_RK)
        here = _merge(better_R, there, here)
    found_RK[open_R] = theta_RK
    return found_RK


def _steps(here: Evaluation, weight_RN: Floats, damping_R: Floats) -> Floats:
    """Newton's steps (R, K). The curvature is that of the runs within DELTA, where Huber's loss is a square. Damping
    adds that of the squares which lie above the loss everywhere: with much of it a step cannot overshoot."""
    within_RN = np.abs(here.residual_RN) <= DELTA
    curvature_RN = weight_RN * (within_RN + damping_R[:, None] * huber_weights(here.residual_RN))
    transposed_RKN = here.jacobian_RNK.transpose(0, 2, 1)
    hessian_RKK = (transposed_RKN * curvature_RN[:, None, :]) @ here.jacobian_RNK
    diagonal_RK = np.einsum("rkk->rk", hessian_RKK)
    # Runs of one size, or a term that adds nothing, leave a direction without curvature.
    diagonal_RK += 1e-12 * diagonal_RK.max(axis=-1, keepdims=True) + 1e-300
    return np.asarray(np.linalg.solve(hessian_RKK, -here.gradient_RK[..., None])[..., 0], np.float64)


def _select(here: Evaluation, which_R: np.ndarray) -> Evaluation:
    return Evaluation(
        here.objective_R[which_R], here.gradient_RK[which_R], here.residual_RN[which_R], here.jacobian_RNK[which_R]
    )


def _merge(better_R: np.ndarray, there: Evaluation, here: Evaluation) -> Evaluation:
    return Evaluation(
        np.where(better_R, there.objective_R, here.objective_R),
        np.where(better_R[:, None], there.gradient_RK, here.gradient_RK),
        np.where(better_R[:, None], there.residual_RN, here.residual_RN),
        np.where(better_R[:, None, None], there.jacobian_RNK, here.jacobian_RNK),
    )
