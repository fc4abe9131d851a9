"""The best fit, found in two ways that share nothing but the objective. Shapes as in form.py."""

import numpy as np
from scipy.optimize import minimize, nnls
from threadpoolctl import threadpool_limits

from capstan_runtime.bench.laws.form import Form
from capstan_runtime.bench.laws.newton import refine
from capstan_runtime.bench.laws.objective import DELTA, evaluate, huber_losses, huber_weights
from capstan_runtime.bench.laws.runs import Floats, Runs

_SEARCHED_STARTS = 6
"""Of the grid, those with the least objective."""
_MOST_INNER_STEPS = 60
TOLERANCE = 1e-8
"""The gradient of a minimum, beside the largest it can be: DELTA per run."""


def search_from_grid(form: Form, runs: Runs) -> Floats:
    """Theta (K,) with the least objective that is reached from a grid of starts: from the best of them by L-BFGS, whose
    ends and all other starts then go on by Newton steps, until the gradient is rounding. L-BFGS alone would need
    thousands of steps more along the valley."""
    starts_SK = form.starts()
    once_SN = np.ones((len(starts_SK) + _SEARCHED_STARTS, len(runs)))
    order = np.argsort(evaluate(form, starts_SK, runs, once_SN[: len(starts_SK)]).objective_R)

    def objective(theta_K: Floats) -> tuple[float, Floats]:
        here = evaluate(form, theta_K[None], runs, once_SN[:1])
        return float(here.objective_R[0]) / DELTA**2, here.gradient_RK[0] / DELTA**2

    # ftol 0 and an objective in units of DELTA^2: it ends by its gradient, or because no step makes it better.
    options = {"maxiter": 200, "ftol": 0.0, "gtol": 1e-6, "maxcor": 20}
    # It hands BLAS matrices of a few numbers, whose threads then wait for each other: 14 s of 22 on two busy cores.
    with threadpool_limits(1, "blas"):
        ends = [
            minimize(objective, starts_SK[start], jac=True, method="L-BFGS-B", options=options).x
            for start in order[:_SEARCHED_STARTS]
        ]
    found_SK = refine(form, np.concatenate((ends, starts_SK)), runs, once_SN, TOLERANCE)
    return found_SK[np.argmin(evaluate(form, found_SK, runs, once_SN).objective_R)]


def search_by_projection(form: Form, runs: Runs) -> Floats:
    """Theta (K,) by variable projection (Golub and Pereyra 1973): only the two exponents are searched, from a grid;
    what is linear given them, E, A and B, follows by non-negative least squares. Better conditioned than the search
    over all parameters, which crosses a long, flat valley."""

    def objective(shape: Floats) -> float:
        return _project(form, shape, runs)[0]

    shapes_S2 = form.shapes()
    heights = [objective(shape) for shape in shapes_S2]
    found = [
        minimize(
            objective, shapes_S2[start], method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-12, "maxfev": 200}
        )
        for start in np.argsort(heights)[:2]
    ]
    shape = np.asarray(min(found, key=lambda each: float(each.fun)).x)
    return form.theta(shape, _project(form, shape, runs)[1])


def _project(form: Form, shape: Floats, runs: Runs) -> tuple[float, Floats]:
    """The least objective given the exponents, and its coefficients (J,). Huber's loss by reweighted least squares:
    each is solved for the whole coefficients, so none becomes negative."""
    terms_NJ, power = form.terms(shape, runs)
    if not abs(power) > 1e-6:
        return float("inf"), np.ones(terms_NJ.shape[1])
    observed_N = np.exp(runs.loss_N / power)
    coefficients_J = nnls(terms_NJ / observed_N[:, None], np.ones(len(runs)))[0]
    best, best_coefficients_J = float("inf"), coefficients_J
    for _ in range(_MOST_INNER_STEPS):
        sum_N = np.maximum(terms_NJ @ coefficients_J, 1e-300)
        residual_N = runs.loss_N - power * np.log(sum_N)
        height = float(huber_losses(residual_N).sum())
        if height < best:
            gain, best, best_coefficients_J = best - height, height, coefficients_J
            if gain < 1e-9 * height:
                break
        root_N = np.sqrt(huber_weights(residual_N))
        slope_NJ = power * terms_NJ / sum_N[:, None]
        coefficients_J = nnls(slope_NJ * root_N[:, None], (residual_N + power) * root_N)[0]
    return best, best_coefficients_J
