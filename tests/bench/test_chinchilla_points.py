"""The golden test of the Chinchilla fit: Hoffmann et al.'s runs, as Besiroglu et al. read them off figure 4.

`data/chinchilla_runs.csv` holds the three numbers of each of the 245 runs, to nine digits. They are the measurements
that figure 4 of Hoffmann et al. (2022, arXiv 2203.15556) shows, in the reading that Besiroglu et al. (2024, arXiv
2404.10102) published at github.com/epoch-research/analyzing-chinchilla.
"""

import csv
from pathlib import Path

import numpy as np
import pytest

from capstan_runtime.bench.laws.chinchilla import Chinchilla
from capstan_runtime.bench.laws.fit import LawPoint, fit_law
from capstan_runtime.bench.laws.objective import evaluate
from capstan_runtime.bench.laws.runs import Runs

POINTS = Path(__file__).with_name("data") / "chinchilla_runs.csv"
PAPER = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
"""arXiv 2404.10102: fitted together with the scale of the residuals, which their notebook finds at exp(-12.27). There
Huber's loss is that of absolute values, nearly, and its minimum another one by a little."""
NOTEBOOK = {"E": 1.8172355, "A": 477.84171, "B": 2143.86379, "alpha": 0.34731266, "beta": 0.36718262}
"""Output of data_analysis.ipynb of that repository: L-BFGS from 4,500 starts on the same sum of Huber's loss."""
NOTEBOOK_OBJECTIVE = 0.0010182740346154362
_OUTLIERS = 5
"""Runs with the highest losses, which they leave out."""


@pytest.fixture(scope="module")
def points() -> list[LawPoint]:
    with POINTS.open(newline="") as file:
        rows = [(float(row["parameters"]), float(row["flop"]), float(row["loss"])) for row in csv.DictReader(file)]
    assert len(rows) == 245
    rows.sort(key=lambda row: row[2])
    return [(size, flop / (6 * size), loss) for size, flop, loss in rows[:-_OUTLIERS]]


def objective(points: list[LawPoint], law: dict[str, float]) -> float:
    """Of a law in its printed parameters."""
    runs = Runs.of(points)
    a, b, e = (np.log(law[name]) - runs.mean_loss for name in ("A", "B", "E"))
    theta = (a - law["alpha"] * runs.mean_x, b - law["beta"] * runs.mean_y, e, law["alpha"], law["beta"])
    return float(evaluate(Chinchilla(), np.asarray([theta]), runs, np.ones((1, len(runs)))).objective_R[0])


def test_the_corrected_chinchilla_law_is_found(points: list[LawPoint]) -> None:
    fit = fit_law(points, 0.95, seed=0).fits[0]
    found = {each.name: each.value for each in fit.parameters}
    assert found == pytest.approx(NOTEBOOK, rel=3e-4)
    assert found["E"] == pytest.approx(PAPER["E"], rel=1e-3)
    assert (found["alpha"], found["beta"]) == pytest.approx((PAPER["alpha"], PAPER["beta"]), rel=5e-3)
    assert (found["A"], found["B"]) == pytest.approx((PAPER["A"], PAPER["B"]), rel=0.03)
    # 0.4 % below what the paper's has: the difference is none of ours having stopped early.
    assert fit.objective <= min(NOTEBOOK_OBJECTIVE, objective(points, PAPER))
    assert all(each.low <= PAPER[each.name] <= each.high for each in fit.parameters)
    assert fit.is_trusted, fit.warnings


def test_the_best_model_grows_as_fast_as_its_data(points: list[LawPoint]) -> None:
    share = fit_law(points, 0.95, seed=0).fits[0].derived[0]
    assert share.value == pytest.approx(0.513, abs=2e-3)
    assert share.low < 0.5 < share.high
