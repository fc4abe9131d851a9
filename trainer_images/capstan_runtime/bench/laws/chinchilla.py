"""Hoffmann et al. (2022): L = E + A/N^alpha + B/D^beta. Shapes as in form.py."""

import numpy as np

from capstan_runtime.bench.laws.form import Tradeoff, exp_within_floats, soft_maximum
from capstan_runtime.bench.laws.runs import Floats, Runs

_EXPONENTS = (0.1, 0.35, 0.7, 1.2)
_IRREDUCIBLE = (0.15, 0.5, 0.85)
"""Share of E in the loss in the middle of the runs, to start from."""
_OF_SIZE = (0.2, 0.5, 0.8)
"""Share of the model's size in the rest."""
_ALMOST_NONE = 1e-12

_VANISHED = -20.0
"""e of an E that is printed as 0: of a loss it is less than a float32 shows."""


class Chinchilla:
    """theta is (a, b, e, alpha, beta): a = log A and so on, of centred runs."""

    name = "chinchilla"
    formula = "L(N, D) = E + A/N^alpha + B/D^beta"
    printed = ("E", "A", "B", "alpha", "beta")
    exponents = ("alpha", "beta")

    def starts(self) -> Floats:
        return np.asarray(
            [
                (np.log((1 - floor) * of_size), np.log((1 - floor) * (1 - of_size)), np.log(floor), alpha, beta)
                for alpha in _EXPONENTS
                for beta in _EXPONENTS
                for floor in _IRREDUCIBLE
                for of_size in _OF_SIZE
            ]
        )

    def predict(self, theta_RK: Floats, runs: Runs) -> tuple[Floats, Floats]:
        log_loss_RN, shares_RNJ = soft_maximum(_logs(theta_RK, runs))
        jacobian_RNK = np.concatenate(
            (shares_RNJ, -runs.x_N[:, None] * shares_RNJ[..., :1], -runs.y_N[:, None] * shares_RNJ[..., 1:2]), axis=-1
        )
        return log_loss_RN, jacobian_RNK

    def shares(self, theta_1K: Floats, runs: Runs) -> Floats:
        return soft_maximum(_logs(theta_1K, runs))[1][0, :, :2]

    def print_values(self, theta_RK: Floats, runs: Runs) -> Floats:
        e_R, trade = theta_RK[:, 2], self.tradeoff(theta_RK, runs)
        floor_R = np.where(e_R < _VANISHED, 0.0, exp_within_floats(e_R + runs.mean_loss))
        a_R, b_R = exp_within_floats(trade.log_a_R), exp_within_floats(trade.log_b_R)
        return np.stack((floor_R, a_R, b_R, trade.alpha_R, trade.beta_R), axis=-1)

    def tradeoff(self, theta_RK: Floats, runs: Runs) -> Tradeoff:
        a, b, _, alpha, beta = theta_RK.T
        return Tradeoff(a + runs.mean_loss + alpha * runs.mean_x, b + runs.mean_loss + beta * runs.mean_y, alpha, beta)

    def shapes(self) -> Floats:
        grid = np.geomspace(0.05, 1.6, 7)
        return np.asarray([(alpha, beta) for alpha in grid for beta in grid])

    def terms(self, shape: Floats, runs: Runs) -> tuple[Floats, float]:
        alpha, beta = shape
        powers = (-alpha * runs.x_N, -beta * runs.y_N, np.zeros(len(runs)))
        return exp_within_floats(np.stack(powers, axis=-1)), 1.0

    def theta(self, shape: Floats, coefficients_J: Floats) -> Floats:
        return np.concatenate((np.log(np.maximum(coefficients_J, _ALMOST_NONE)), shape))


def _logs(theta_RK: Floats, runs: Runs) -> Floats:
    """Of the terms of size and data, and of E, (R, N, 3)."""
    a, b, e, alpha, beta = theta_RK.T[..., None]
    return np.stack(np.broadcast_arrays(a - alpha * runs.x_N, b - beta * runs.y_N, e), axis=-1)
