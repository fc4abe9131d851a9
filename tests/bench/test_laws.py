"""Scaling laws: that the right one is found, how sure it is, and when it is not to be believed."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad

from capstan_runtime.bench.laws.chinchilla import Chinchilla
from capstan_runtime.bench.laws.fit import FORMS, LawPoint, fit_law
from capstan_runtime.bench.laws.form import Form
from capstan_runtime.bench.laws.kaplan import Kaplan
from capstan_runtime.bench.laws.newton import refine
from capstan_runtime.bench.laws.objective import DELTA, evaluate
from capstan_runtime.bench.laws.runs import Runs
from capstan_runtime.bench.laws.search import search_by_projection, search_from_grid
from capstan_runtime.bench.laws.trust import warn_of_rivals, warn_of_runs, warn_of_terms
from capstan_runtime.bench.result import LawFit

PUBLISHED = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
"""Besiroglu et al. 2024 (arXiv 2404.10102), table 1: the refit of Hoffmann et al.'s runs."""
PUBLISHED_KAPLAN = {"Nc": 6.4e13, "Dc": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103}
"""Kaplan et al. 2020 (arXiv 2001.08361), table 2."""

SHORT_RUNS: list[LawPoint] = [
    (12336, 20480, 4.708),
    (12336, 51200, 3.665),
    (12336, 102400, 2.888),
    (12336, 204800, 2.317),
    (52368, 20480, 3.545),
    (52368, 51200, 2.915),
    (52368, 102400, 2.386),
    (52368, 204800, 1.9),
    (270816, 20480, 2.989),
    (270816, 51200, 2.644),
    (270816, 102400, 2.418),
    (270816, 204800, 1.968),
]
"""Decoders of one or two layers, trained for 20 to 200 steps by a Benchmark like examples/bench-scaling-law."""


def chinchilla_loss(size: float, tokens: float, law: dict[str, float] = PUBLISHED) -> float:
    return law["E"] + law["A"] / size ** law["alpha"] + law["B"] / tokens ** law["beta"]


def kaplan_loss(size: float, tokens: float, law: dict[str, float] = PUBLISHED_KAPLAN) -> float:
    of_size = (law["Nc"] / size) ** (law["alpha_N"] / law["alpha_D"])
    return (of_size + law["Dc"] / tokens) ** law["alpha_D"]


def grid_of(sizes: int = 8, budgets: int = 8) -> list[tuple[float, float]]:
    """Models of 60M to 10B parameters, trained on 0.3B to 300B tokens."""
    return [
        (float(size), float(tokens))
        for size in np.geomspace(6e7, 1e10, sizes)
        for tokens in np.geomspace(3e8, 3e11, budgets)
    ]


def noisy(noise: float, seed: int, sizes: int = 8, budgets: int = 8) -> list[LawPoint]:
    """Runs of the published law, their loss off by `noise` in the logarithm."""
    rng = np.random.default_rng(seed)
    return [
        (size, tokens, chinchilla_loss(size, tokens) * float(np.exp(noise * rng.standard_normal())))
        for size, tokens in grid_of(sizes, budgets)
    ]


def values(fit: LawFit) -> dict[str, float]:
    return {each.name: each.value for each in fit.parameters}


@pytest.mark.parametrize(
    ("points", "form", "truth"),
    [
        ([(*at, chinchilla_loss(*at)) for at in grid_of()], "chinchilla", PUBLISHED),
        ([(*at, kaplan_loss(*at)) for at in grid_of()], "kaplan", PUBLISHED_KAPLAN),
    ],
    ids=["chinchilla", "kaplan"],
)
def test_without_noise_the_law_is_found_to_five_digits(
    points: list[LawPoint], form: str, truth: dict[str, float]
) -> None:
    law = fit_law(points, 0.95, seed=0, resamples=20)
    (fit,) = (fit for fit in law.fits if fit.form == form)
    assert values(fit) == pytest.approx(truth, rel=1e-5)
    assert fit.is_trusted, fit.warnings
    assert np.abs(fit.residuals).max() < 1e-7
    (error,) = (each for each in fit.derived if each.name == "error on the largest run, %")
    assert abs(error.value) < 1e-4


def test_with_noise_the_truth_lies_within_the_intervals_and_the_extrapolation_is_told() -> None:
    points = noisy(0.005, seed=4)
    law = fit_law(points, 0.95, seed=1, resamples=400)
    fit = law.fits[0]
    assert {each.name: each.low <= PUBLISHED[each.name] <= each.high for each in fit.parameters} == dict.fromkeys(
        PUBLISHED, True
    )
    derived = {each.name: each for each in fit.derived}
    truth = PUBLISHED["beta"] / (PUBLISHED["alpha"] + PUBLISHED["beta"])
    share = derived["exponent of the best N in compute"]
    assert share.low <= truth <= share.high
    largest = max(points, key=lambda point: point[0] * point[1])
    ((size, tokens, loss, predicted),) = law.held_out
    assert (size, tokens, loss) == largest
    error = derived["error on the largest run, %"]
    assert error.low <= error.value <= error.high
    assert error.value == pytest.approx(100 * (predicted / loss - 1))
    assert fit.resamples == 400


def test_the_best_model_for_a_compute_has_the_least_loss_of_all_that_use_it() -> None:
    law = fit_law([(*at, chinchilla_loss(*at)) for at in grid_of()], 0.95, seed=0, resamples=20)
    compute = 6 * 1e10 * 3e11
    derived = {each.name: each.value for each in law.fits[0].derived}
    best = derived[f"best N for 6ND = {compute:.3g}"]
    assert derived[f"best D for 6ND = {compute:.3g}"] == pytest.approx(compute / 6 / best)
    sizes = best * np.geomspace(0.2, 5, 2001)
    assert sizes[np.argmin([chinchilla_loss(size, compute / 6 / size) for size in sizes])] == pytest.approx(
        best, rel=2e-3
    )


def count_held(data_sets: int, noise: float = 0.01, resamples: int = 300) -> int:
    """How many of the 95 % intervals of E, alpha and beta, of as many sets of 64 runs, hold the truth."""
    form, held = Chinchilla(), 0
    for seed in range(data_sets):
        runs = Runs.of(noisy(noise, seed))
        theta_1K = refine(form, truth_about(runs), runs, np.ones((1, len(runs))), 1e-8)
        weights = np.random.default_rng(seed).multinomial(64, np.full(64, 1 / 64), size=resamples).astype(float)
        drawn = refine(form, np.repeat(theta_1K, resamples, axis=0), runs, weights, 1e-4)
        low, high = np.quantile(form.print_values(drawn, runs), (0.025, 0.975), axis=0)
        held += sum(low[at] <= PUBLISHED[form.printed[at]] <= high[at] for at in (0, 3, 4))
    return held


def truth_about(runs: Runs) -> np.ndarray:
    """The published law as a theta (1, 5) of these runs."""
    alpha, beta = PUBLISHED["alpha"], PUBLISHED["beta"]
    a, b, e = (np.log(PUBLISHED[name]) - runs.mean_loss for name in ("A", "B", "E"))
    return np.asarray([[a - alpha * runs.mean_x, b - beta * runs.mean_y, e, alpha, beta]])


def test_intervals_hold_the_truth_nearly_as_often_as_they_say() -> None:
    # Of 400 sets they hold it in 97.0 %.
    assert 96 <= count_held(40) <= 120


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@given(seed=st.integers(0, 2**20))
@settings(max_examples=25)
def test_the_gradient_is_that_of_finite_differences(form: Form, seed: int) -> None:
    runs = Runs.of(noisy(0.05, seed, sizes=4, budgets=4))
    rng = np.random.default_rng(seed)
    starts = form.starts()
    theta = starts[rng.integers(len(starts))] + 0.05 * rng.standard_normal(starts.shape[1])
    weight = rng.integers(0, 4, (1, len(runs))).astype(float)
    error = check_grad(
        lambda theta: float(evaluate(form, theta[None], runs, weight).objective_R[0]) / DELTA,
        lambda theta: evaluate(form, theta[None], runs, weight).gradient_RK[0] / DELTA,
        theta,
        epsilon=1e-7,
    )
    assert error < 1e-3 * max(1.0, weight.sum())


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_both_searches_find_one_minimum(form: Form) -> None:
    runs = Runs.of(noisy(0.01, seed=2))
    found, projected = search_from_grid(form, runs), search_by_projection(form, runs)
    once = np.ones((1, len(runs)))
    best = evaluate(form, found[None], runs, once)
    assert np.linalg.norm(best.gradient_RK[0]) < 1e-8 * DELTA * len(runs)
    assert best.objective_R[0] <= evaluate(form, projected[None], runs, once).objective_R[0] * (1 + 1e-9)
    assert form.print_values(projected[None], runs)[0, -2:] == pytest.approx(
        form.print_values(found[None], runs)[0, -2:], rel=5e-3
    )


@given(
    size=st.floats(1e-9, 1e9),
    tokens=st.floats(1e-9, 1e9),
    form=st.sampled_from(FORMS),
)
@settings(max_examples=4)
def test_units_of_parameters_and_tokens_change_nothing_but_their_coefficients(
    size: float, tokens: float, form: Form
) -> None:
    points = noisy(0.01, seed=3, sizes=4, budgets=5)
    runs, scaled = Runs.of(points), Runs.of([(size * n, tokens * d, loss) for n, d, loss in points])
    one, other = (
        dict(zip(form.printed, form.print_values(search_from_grid(form, each)[None], each)[0], strict=True))
        for each in (runs, scaled)
    )
    if isinstance(form, Kaplan):
        expected = one | {"Nc": one["Nc"] * size, "Dc": one["Dc"] * tokens}
    else:
        expected = one | {"A": one["A"] * size ** one["alpha"], "B": one["B"] * tokens ** one["beta"]}
    assert other == pytest.approx(expected, rel=1e-3)


def test_one_seed_gives_one_law() -> None:
    points = noisy(0.01, seed=5, sizes=4, budgets=4)
    assert fit_law(points, 0.9, seed=7, resamples=50) == fit_law(points, 0.9, seed=7, resamples=50)


def test_repetitions_of_the_largest_run_are_held_out_with_it() -> None:
    points = noisy(0.01, seed=5, sizes=4, budgets=4) + noisy(0.01, seed=6, sizes=4, budgets=4)
    law = fit_law(points, 0.9, seed=7, resamples=20)
    assert [(size, tokens) for size, tokens, *_ in law.held_out] == [grid_of(4, 4)[-1]] * 2
    assert law.points == tuple(points)


def test_a_loss_that_data_does_not_move_gives_a_law_that_is_not_trusted() -> None:
    rng = np.random.default_rng(0)
    points = [
        (size, tokens, (2 + 400 / size**0.35) * float(np.exp(0.01 * rng.standard_normal())))
        for size, tokens in grid_of(5, 5)
    ]
    fit = fit_law(points, 0.95, seed=0, resamples=200).fits[0]
    assert not fit.is_trusted
    assert any(warning.startswith("beta: ") for warning in fit.warnings), fit.warnings


def test_a_form_that_describes_the_runs_worse_is_not_trusted() -> None:
    chinchilla, kaplan = fit_law(noisy(0.005, seed=4), 0.95, seed=1, resamples=50).fits
    assert chinchilla.is_trusted, chinchilla.warnings
    assert kaplan.warnings == (
        f"form: chinchilla describes these runs better, with a sum of Huber losses of {chinchilla.objective:.3g} "
        f"against {kaplan.objective:.3g}; use that one",
    )
    assert not kaplan.is_trusted


def test_where_the_loss_has_no_floor_in_sight_its_interval_says_so() -> None:
    fit = fit_law(SHORT_RUNS, 0.95, seed=0, resamples=300).fits[0]
    floor = fit.parameters[0]
    assert (floor.name, floor.value, floor.low) == ("E", 0.0, 0.0)
    assert 0.5 < floor.high < min(loss for *_, loss in SHORT_RUNS)
    assert [warning.split(":")[0] for warning in fit.warnings] == ["alpha", "beta"]
    assert all(" is wider than its value " in warning for warning in fit.warnings)


def test_a_term_that_no_run_shows_is_told() -> None:
    assert warn_of_terms(np.asarray([[0.5, 5e-4], [0.1, 1e-5]])) == [
        "tokens: its term is less than 0.1 % of the loss of every run, so the runs say nothing of it; add shorter runs"
    ]
    assert warn_of_terms(np.asarray([[0.5, 0.2], [1e-9, 1e-9]])) == []


def test_of_forms_that_describe_the_runs_alike_none_is_warned_of() -> None:
    losses = np.abs(np.random.default_rng(0).standard_normal((2, 30)))
    assert warn_of_rivals(losses, ["one", "other"], 0.95, np.random.default_rng(1)) == ["", ""]


@pytest.mark.parametrize(
    ("sizes", "tokens", "expected"),
    [
        ((1e6, 1e7, 1e8), (1e8, 1e9, 1e10, 1e11), []),
        (
            (1e6, 2e6, 4e6),
            (1e8, 1e9, 1e10, 1e11),
            ["parameters: the runs span 4x, and a law needs 10x; add smaller or larger models"],
        ),
        (
            (1e6, 1.02e7, 1e7),
            (1e8, 1e9, 1e10, 1e11),
            ["parameters: 2 different sizes do not bend a curve; add smaller or larger models, to 3"],
        ),
        (
            (1e6, 1e7, 1e8, 1e9),
            (1e8, 1e9, 5e8),
            ["tokens: 3 different lengths of training do not bend a curve; add shorter or longer runs, to 4"],
        ),
        (
            (1e6, 1e7),
            (1e8, 2e8),
            [
                "parameters: 2 different sizes do not bend a curve; add smaller or larger models, to 3",
                "tokens: the runs span 2x, and a law needs 10x; add shorter or longer runs",
                "tokens: 2 different lengths of training do not bend a curve; add shorter or longer runs, to 4",
                "runs: 4 for 5 fitted parameters leave little to check them with; add runs, to 10",
            ],
        ),
    ],
    ids=["enough", "narrow", "two sizes alike", "three lengths", "all of it"],
)
def test_runs_that_span_too_little_are_told(
    sizes: tuple[float, ...], tokens: tuple[float, ...], expected: list[str]
) -> None:
    assert warn_of_runs([(size, budget, 3.0) for size in sizes for budget in tokens], 5) == expected


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([(1e6, 1e8, 3.0)] * 4, "points: 4 runs do not determine a law; add runs, 5 at least"),
        (
            [(1e6, 1e8, 3.0)] * 5 + [(1e6, 1e8, -1.0)],
            "points: loss -1.0 of run 6 is no positive number; correct it",
        ),
        (
            [(1e6, float("nan"), 3.0)] * 5,
            "points: tokens nan of run 1 is no positive number; correct it",
        ),
    ],
    ids=["too few", "negative", "not a number"],
)
def test_what_is_no_run_is_refused(points: list[LawPoint], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        fit_law(points, 0.95, seed=0)


def test_runs_that_determine_nothing_end_in_warnings_and_finite_numbers() -> None:
    points = [(1e6, 1e8, 3.0), (1e6, 1e8, 3.1), (1e6, 1e8, 2.9), (1e6, 1e8, 3.0), (2e6, 1e8, 2.95)]
    for fit in fit_law(points, 0.95, seed=0, resamples=50).fits:
        assert not fit.is_trusted
        assert LawFit.model_validate_json(fit.model_dump_json(by_alias=True)) == fit
        numbers = [number for each in fit.parameters for number in (each.value, each.low, each.high)]
        assert np.isfinite(numbers).all(), fit.parameters


def test_held_out_runs_are_centred_as_those_that_were_fitted() -> None:
    points = noisy(0.01, seed=1, sizes=3, budgets=3)
    runs = Runs.of(points)
    again = runs.others(points)
    for field in dataclasses.fields(Runs):
        assert np.array_equal(getattr(again, field.name), getattr(runs, field.name)), field.name
