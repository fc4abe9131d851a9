"""When a law is not to be believed: each rule says in a sentence what is wrong with the runs, and what would help."""

from collections.abc import Iterable, Sequence

import numpy as np

from capstan_runtime.bench.laws.runs import Floats
from capstan_runtime.bench.result import LawParameter

_LEAST_SPAN = 10.0
_FEWEST_SIZES = 3
_FEWEST_BUDGETS = 4
_RUNS_PER_PARAMETER = 2
_RESAMPLES = 1000
_LEAST_SHARE = 1e-3
_ALIKE = 0.05
"""In the logarithm: sizes this close are one size, read twice from a plot or with a few weights more."""


def warn_of_runs(points: Sequence[tuple[float, float, float]], fitted_parameters: int) -> list[str]:
    """What is wrong with the choice of runs, whatever their losses; empty if nothing is."""
    sizes, budgets, _ = np.asarray(points, np.float64).T
    warnings = []
    for field, values, fewest, what, more in (
        ("parameters", sizes, _FEWEST_SIZES, "sizes", "smaller or larger models"),
        ("tokens", budgets, _FEWEST_BUDGETS, "lengths of training", "shorter or longer runs"),
    ):
        span = float(values.max() / values.min())
        if span < _LEAST_SPAN:
            warnings.append(f"{field}: the runs span {span:.3g}x, and a law needs {_LEAST_SPAN:.0f}x; add {more}")
        different = _count_different(values)
        if different < fewest:
            warnings.append(f"{field}: {different} different {what} do not bend a curve; add {more}, to {fewest}")
    needed = _RUNS_PER_PARAMETER * fitted_parameters
    if len(points) < needed:
        warnings.append(
            f"runs: {len(points)} for {fitted_parameters} fitted parameters leave little to check them with; add runs, "
            f"to {needed}"
        )
    return warnings


def warn_of_exponents(parameters: Iterable[LawParameter], exponents: Sequence[str]) -> list[str]:
    """Exponents that may be 0, where the loss may not depend on model size, or data, at all; and those that may be
    nearly anything."""
    warnings = []
    for each in parameters:
        if each.name not in exponents:
            continue
        its_interval = f"{each.name}: its interval {each.low:.3g} to {each.high:.3g}"
        if each.low <= 0 <= each.high:
            warnings.append(f"{its_interval} holds 0; add runs, or span more")
        elif each.high - each.low > abs(each.value):
            warnings.append(f"{its_interval} is wider than its value {each.value:.3g}; add runs, or span more")
    return warnings


def warn_of_terms(share_NJ: Floats) -> list[str]:
    """Terms that are in no run a part of the loss worth the name: their coefficient and exponent are anything.
    `share_NJ` holds those of model size and of data, of every run."""
    return [
        f"{field}: its term is less than {100 * _LEAST_SHARE:g} % of the loss of every run, so the runs say nothing of "
        f"it; add {more}"
        for field, more, most in zip(
            ("parameters", "tokens"), ("smaller models", "shorter runs"), share_NJ.max(axis=0), strict=True
        )
        if most < _LEAST_SHARE
    ]


def warn_of_search(
    found: Floats, projected: Floats, widths: Floats, names: Sequence[str], exponents: Sequence[str]
) -> list[str]:
    """Whether the two searches disagree: by more than a tenth of an exponent's interval, where half a percent is
    rounding."""
    return [
        f"{name}: is {one:.6g} by L-BFGS and {other:.6g} by variable projection; the runs do not determine it"
        for name, one, other, width in zip(names, found, projected, widths, strict=True)
        if name in exponents and not abs(one - other) <= max(0.1 * width, 5e-3 * abs(one))
    ]


def warn_of_rivals(losses_FN: Floats, names: Sequence[str], confidence: float, rng: np.random.Generator) -> list[str]:
    """For each of F forms a warning that another one describes the runs better, or "": one whose sum of Huber losses
    is less, by a difference whose interval over runs does not hold 0. Of two forms that fit equally well neither is
    warned of."""
    best = int(np.argmin(losses_FN.sum(axis=1)))
    drawn_RN = rng.integers(0, losses_FN.shape[1], (_RESAMPLES, losses_FN.shape[1]))
    excess_FN = losses_FN - losses_FN[best]
    tail = (1 - confidence) / 2
    return [
        f"form: {names[best]} describes these runs better, with a sum of Huber losses of {losses_FN[best].sum():.3g} "
        f"against {losses_FN[number].sum():.3g}; use that one"
        if number != best and np.quantile(excess_N[drawn_RN].sum(axis=1), tail) > 0
        else ""
        for number, excess_N in enumerate(excess_FN)
    ]


def _count_different(values: Floats) -> int:
    return 1 + int((np.diff(np.log(np.sort(values))) > _ALIKE).sum())
