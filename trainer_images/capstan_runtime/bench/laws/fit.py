"""One law fitted to runs: its parameters with intervals, what follows from them, and whether to believe it."""

from collections.abc import Sequence

import numpy as np

from capstan_runtime.bench.laws.chinchilla import Chinchilla
from capstan_runtime.bench.laws.form import Form
from capstan_runtime.bench.laws.kaplan import Kaplan
from capstan_runtime.bench.laws.newton import refine
from capstan_runtime.bench.laws.objective import DELTA, evaluate, huber_losses
from capstan_runtime.bench.laws.runs import FEWEST_RUNS, Floats, Runs
from capstan_runtime.bench.laws.search import search_by_projection, search_from_grid
from capstan_runtime.bench.laws.trust import (
    warn_of_exponents,
    warn_of_rivals,
    warn_of_runs,
    warn_of_search,
    warn_of_terms,
)
from capstan_runtime.bench.result import Law, LawFit, LawParameter

FORMS: tuple[Form, ...] = (Chinchilla(), Kaplan())
RESAMPLES = 1000
"""Of the runs. The ends of an interval then wander by a few percent of its width from seed to seed."""
_RESAMPLE_TOLERANCE = 1e-3
_STEPS_FROM_GRID = 40
"""Enough for most to arrive; those that have not by then are in a valley without an end."""
_STEEPEST = 1e-6
"""Gradient that a minimum may have left, beside the largest there can be."""
_ALIKE = 1e-3
"""Relative: runs this close in compute are repetitions of one."""

LawPoint = tuple[float, float, float]
"""(parameters, tokens, loss)."""


def fit_law(points: Sequence[LawPoint], confidence: float, seed: int, resamples: int = RESAMPLES) -> Law:
    """Both laws, and what each says of the largest run when that is left out. Raises ValueError for fewer than five
    runs, or a number that is not positive."""
    rng = np.random.default_rng(seed)
    kept, largest = _hold_out_largest(points)
    fits = [_fit(form, points, kept, largest, confidence, rng, resamples) for form in FORMS]
    predicted = fits[0][1]
    held_out = tuple((*point, value) for point, value in zip(largest, predicted, strict=True)) if len(predicted) else ()
    return Law(points=tuple(points), fits=_warn_of_rivals([fit for fit, _ in fits], confidence, rng), held_out=held_out)


def _warn_of_rivals(fits: Sequence[LawFit], confidence: float, rng: np.random.Generator) -> tuple[LawFit, ...]:
    losses_FN = huber_losses(np.asarray([fit.residuals for fit in fits]))
    warnings = warn_of_rivals(losses_FN, [fit.form for fit in fits], confidence, rng)
    return tuple(
        fit.model_copy(update={"is_trusted": False, "warnings": (*fit.warnings, warning)}) if warning else fit
        for fit, warning in zip(fits, warnings, strict=True)
    )


def _fit(
    form: Form,
    points: Sequence[LawPoint],
    kept: Sequence[LawPoint],
    largest: Sequence[LawPoint],
    confidence: float,
    rng: np.random.Generator,
    resamples: int,
) -> tuple[LawFit, list[float]]:
    """The fit, and the losses that a second one, without the largest runs, predicts for them."""
    runs = Runs.of(points)
    theta_1K = search_from_grid(form, runs)[None]
    projected_1K = search_by_projection(form, runs)[None]
    theta_RK = _resample(form, theta_1K, runs, rng, resamples)
    best = evaluate(form, theta_1K, runs, np.ones((1, len(runs))))
    gradient_norm = float(np.linalg.norm(best.gradient_RK[0]))

    values_P, resampled_RP = form.print_values(theta_1K, runs)[0], form.print_values(theta_RK, runs)
    parameters = [
        _parameter(name, value, drawn, confidence)
        for name, value, drawn in zip(form.printed, values_P, resampled_RP.T, strict=True)
    ]
    predicted, errors = _extrapolate(form, kept, largest, confidence, rng, resamples)

    warnings = warn_of_runs(points, theta_1K.shape[1]) + warn_of_exponents(parameters, form.exponents)
    warnings += warn_of_terms(form.shares(theta_1K, runs))
    widths = np.asarray([each.high - each.low for each in parameters])
    projected_P = form.print_values(projected_1K, runs)[0]
    warnings += warn_of_search(values_P, projected_P, widths, form.printed, form.exponents)
    if not gradient_norm <= _STEEPEST * DELTA * len(runs):
        warnings.append(f"gradient: its norm is still {gradient_norm:.2g}, so this is no minimum; add runs")
    return LawFit(
        form=form.name,
        formula=form.formula,
        parameters=tuple(parameters),
        derived=(*_derive(form, theta_1K, theta_RK, runs, points, confidence), *errors),
        objective=float(best.objective_R[0]),
        gradient_norm=gradient_norm,
        resamples=resamples,
        is_trusted=not warnings,
        warnings=tuple(warnings),
        residuals=tuple(float(each) for each in best.residual_RN[0]),
    ), predicted


def _resample(form: Form, theta_1K: Floats, runs: Runs, rng: np.random.Generator, resamples: int) -> Floats:
    """Theta (R, K) of as many runs drawn with replacement, R times. Each starts at the best fit of all runs and
    somewhere on the grid, and the better end counts: where a term of the best fit has vanished its gradient has, too,
    and from there alone no resample would leave."""
    weight_RN = rng.multinomial(len(runs), np.full(len(runs), 1 / len(runs)), size=resamples).astype(np.float64)
    best_RK = np.repeat(theta_1K, resamples, axis=0)
    best_RK = refine(form, best_RK, runs, weight_RN, _RESAMPLE_TOLERANCE)
    grid_SK = form.starts()
    other_RK = grid_SK[rng.integers(0, len(grid_SK), resamples)]
    other_RK = refine(form, other_RK, runs, weight_RN, _RESAMPLE_TOLERANCE, _STEPS_FROM_GRID)
    best_R, other_R = (evaluate(form, theta_RK, runs, weight_RN).objective_R for theta_RK in (best_RK, other_RK))
    return np.where((best_R <= other_R)[:, None], best_RK, other_RK)


def _derive(
    form: Form, theta_1K: Floats, theta_RK: Floats, runs: Runs, points: Sequence[LawPoint], confidence: float
) -> list[LawParameter]:
    """What to do with compute, which is 6 N D: at the largest of the runs, and ten times that."""
    best, drawn = form.tradeoff(theta_1K, runs), form.tradeoff(theta_RK, runs)
    share, shares = best.model_exponent(), drawn.model_exponent()
    found = [
        _parameter("exponent of the best N in compute", share[0], shares, confidence),
        _parameter("exponent of the best D in compute", 1 - share[0], 1 - shares, confidence),
    ]
    largest = 6 * max(size * tokens for size, tokens, _ in points)
    for compute in (largest, 10 * largest):
        size, sizes = best.best_size(compute)[0], drawn.best_size(compute)
        found.append(_parameter(f"best N for 6ND = {compute:.3g}", size, sizes, confidence))
        found.append(_parameter(f"best D for 6ND = {compute:.3g}", compute / 6 / size, compute / 6 / sizes, confidence))
    return [each for each in found if np.isfinite((each.value, each.low, each.high)).all()]


def _extrapolate(
    form: Form,
    kept: Sequence[LawPoint],
    largest: Sequence[LawPoint],
    confidence: float,
    rng: np.random.Generator,
    resamples: int,
) -> tuple[list[float], list[LawParameter]]:
    """Losses that the other runs predict for the largest, and by how much they are off. Both are empty when too few
    others are left."""
    if len(kept) < FEWEST_RUNS:
        return [], []
    rest = Runs.of(kept)
    start_1K = search_from_grid(form, rest)[None]
    theta_RK = np.concatenate((start_1K, _resample(form, start_1K, rest, rng, resamples)))
    others = rest.others(largest)
    log_loss_RN, _ = form.predict(theta_RK, others)
    error_R = 100 * np.expm1(np.median(log_loss_RN - others.loss_N, axis=-1))
    predicted_N = np.exp(log_loss_RN[0] + rest.mean_loss)
    return predicted_N.tolist(), [_parameter("error on the largest run, %", error_R[0], error_R[1:], confidence)]


def _hold_out_largest(points: Sequence[LawPoint]) -> tuple[list[LawPoint], list[LawPoint]]:
    """The other runs, and the one with the most compute, with its repetitions."""
    most = max((size * tokens for size, tokens, _ in points), default=0.0)
    kept: list[LawPoint] = []
    largest: list[LawPoint] = []
    for point in points:
        (largest if point[0] * point[1] >= most * (1 - _ALIKE) else kept).append(point)
    return kept, largest


def _parameter(name: str, value: float, drawn_R: Floats, confidence: float) -> LawParameter:
    """With its percentile interval. Resamples that have no such value, such as a best size without a least, are left
    out."""
    drawn_R = drawn_R[np.isfinite(drawn_R)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn_R, (tail, 1 - tail)) if len(drawn_R) else (np.nan, np.nan)
    return LawParameter(name=name, value=float(value), low=float(low), high=float(high))
