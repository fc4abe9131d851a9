"""Kaplan et al. (2020), eq. 1.5: L = ((Nc/N)^(alpha_N/alpha_D) + Dc/D)^alpha_D. Shapes as in form.py."""

import numpy as np

from capstan_runtime.bench.laws.form import Tradeoff, exp_within_floats, soft_maximum
from capstan_runtime.bench.laws.runs import Floats, Runs

_RATIOS = (0.3, 0.8, 1.5, 3.0)
_POWERS = (0.05, 0.1, 0.3, 0.8)
_OF_SIZE = (0.2, 0.5, 0.8)
_ALMOST_NONE = 1e-12


class Kaplan:
    """theta is (n, d, ratio, power): ratio is alpha_N/alpha_D and power alpha_D, so that nothing is divided by a
    parameter; n = ratio log Nc and d = log Dc, of centred runs. It has no loss that no training gets below."""

    name = "kaplan"
    formula = "L(N, D) = ((Nc/N)^(alpha_N/alpha_D) + Dc/D)^alpha_D"
    printed = ("Nc", "Dc", "alpha_N", "alpha_D")
    exponents = ("alpha_N", "alpha_D")

    def starts(self) -> Floats:
        return np.asarray(
            [
                (np.log(of_size), np.log(1 - of_size), ratio, power)
                for ratio in _RATIOS
                for power in _POWERS
                for of_size in _OF_SIZE
            ]
        )

    def predict(self, theta_RK: Floats, runs: Runs) -> tuple[Floats, Floats]:
        power = theta_RK[:, 3, None]
        log_sum_RN, shares_RNJ = soft_maximum(_logs(theta_RK, runs))
        powered_RNJ = power[..., None] * shares_RNJ
        jacobian_RNK = np.concatenate(
            (powered_RNJ, -runs.x_N[:, None] * powered_RNJ[..., :1], log_sum_RN[..., None]), axis=-1
        )
        return power * log_sum_RN, jacobian_RNK

    def shares(self, theta_1K: Floats, runs: Runs) -> Floats:
        return soft_maximum(_logs(theta_1K, runs))[1][0]

    def print_values(self, theta_RK: Floats, runs: Runs) -> Floats:
        trade = self.tradeoff(theta_RK, runs)
        ratio, power = theta_RK.T[2:]
        with np.errstate(divide="ignore", invalid="ignore"):
            log_nc_R = trade.log_a_R / ratio
        logs = (log_nc_R, trade.log_b_R)
        return np.stack((*(exp_within_floats(each) for each in logs), ratio * power, power), axis=-1)

    def tradeoff(self, theta_RK: Floats, runs: Runs) -> Tradeoff:
        n, d, ratio, power = theta_RK.T
        with np.errstate(divide="ignore", invalid="ignore"):
            raised_R = runs.mean_loss / power
        return Tradeoff(n + raised_R + ratio * runs.mean_x, d + raised_R + runs.mean_y, ratio, np.ones_like(ratio))

    def shapes(self) -> Floats:
        return np.asarray([(ratio, power) for ratio in np.geomspace(0.2, 5, 7) for power in np.geomspace(0.03, 1.5, 7)])

    def terms(self, shape: Floats, runs: Runs) -> tuple[Floats, float]:
        ratio, power = shape
        return exp_within_floats(np.stack((-ratio * runs.x_N, -runs.y_N), axis=-1)), float(power)

    def theta(self, shape: Floats, coefficients_J: Floats) -> Floats:
        return np.concatenate((np.log(np.maximum(coefficients_J, _ALMOST_NONE)), shape))


def _logs(theta_RK: Floats, runs: Runs) -> Floats:
    """Of the terms of size and data, (R, N, 2)."""
    n, d, ratio, _ = theta_RK.T[..., None]
    return np.stack(np.broadcast_arrays(n - ratio * runs.x_N, d - runs.y_N), axis=-1)
