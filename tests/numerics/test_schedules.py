"""The learning rate over a run: laws that hold for every schedule, and torch's schedulers as a second opinion."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capstan_runtime.contract.schedules import Schedule
from capstan_runtime.plateau import PlateauFollower
from capstan_runtime.schedules import learning_rate_at

Document = dict[str, Any]
FRACTIONS = st.floats(0.0, 1.0)
WARMUP: st.SearchStrategy[int] = st.integers(0, 40)
SHAPES: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "constant": {},
    "cosine": {"finalFraction": FRACTIONS},
    "polynomial": {"finalFraction": FRACTIONS, "power": st.floats(0.1, 5.0)},
    "restarts": {
        "finalFraction": FRACTIONS,
        "firstCycleSteps": st.integers(1, 30),
        "cycleMultiplier": st.integers(1, 4),
    },
    "plateau": {},
}


@st.composite
def schedules(draw: st.DrawFn) -> tuple[str, int, float, Schedule]:
    """A schedule, with its kind, warm-up and final fraction."""
    kind = draw(st.sampled_from(sorted(SHAPES)))
    fields = {name: draw(values) for name, values in SHAPES[kind].items()}
    warmup = draw(WARMUP)
    return kind, warmup, fields.get("finalFraction", 1.0), Schedule.parse({kind: {"warmupSteps": warmup, **fields}})


@given(schedules(), st.integers(1, 200), st.floats(1e-6, 10.0))
def test_every_schedule_warms_up_in_a_line_to_the_peak_and_stays_between_its_bounds(
    drawn: tuple[str, int, float, Schedule], steps: int, peak: float
) -> None:
    _, warmup, final, schedule = drawn
    rates = [learning_rate_at(step, steps, peak, schedule) for step in range(steps + 1)]
    line = [peak * (step + 1) / (warmup + 1) for step in range(min(warmup, steps + 1))]
    assert rates[: len(line)] == line
    if warmup <= steps and warmup < steps:
        assert rates[warmup] == pytest.approx(peak, rel=1e-12), "no jump where the warm-up ends"
    assert all(min(peak * final, peak) * (1 - 1e-12) <= rate <= peak * (1 + 1e-12) for rate in rates[warmup:])
    assert all(rate > 0 for rate in rates[: min(warmup, steps)])


@given(schedules(), st.integers(1, 200), st.randoms(use_true_random=False))
def test_a_rate_depends_on_its_step_alone(drawn: tuple[str, int, float, Schedule], steps: int, chance: Any) -> None:
    schedule = drawn[3]
    in_order = [learning_rate_at(step, steps, 0.1, schedule) for step in range(steps)]
    shuffled = list(range(steps))
    chance.shuffle(shuffled)
    assert {step: learning_rate_at(step, steps, 0.1, schedule) for step in shuffled} == dict(enumerate(in_order))


@given(schedules(), st.integers(2, 200))
def test_only_restarts_ever_rise_after_the_warm_up(drawn: tuple[str, int, float, Schedule], steps: int) -> None:
    kind, warmup, final, schedule = drawn
    rates = [learning_rate_at(step, steps, 1.0, schedule) for step in range(warmup, steps)]
    rises = [step for step, (now, then) in enumerate(itertools.pairwise(rates), 1) if then > now]
    if kind != "restarts" or final == 1.0:
        assert rises == []
    else:
        restarts = schedule.restarts
        assert restarts is not None
        starts = itertools.accumulate(
            restarts.first_cycle_steps * restarts.cycle_multiplier**cycle for cycle in range(200)
        )
        possible = set(itertools.takewhile(lambda start: start < steps, starts))
        assert set(rises) <= possible


def by_torch(make: Callable[[torch.optim.Optimizer], Any], steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


TORCH: dict[str, tuple[Document, Callable[[torch.optim.Optimizer], Any]]] = {
    "cosine": (
        {"cosine": {"finalFraction": 0.1}},
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100, eta_min=0.03),
    ),
    "polynomial": (
        {"polynomial": {"power": 2.5}},
        lambda optimizer: torch.optim.lr_scheduler.PolynomialLR(optimizer, 100, power=2.5),
    ),
    "restarts": (
        {"restarts": {"firstCycleSteps": 10, "finalFraction": 0.1}},
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 10, 2, eta_min=0.03),
    ),
    "restarts of one length": (
        {"restarts": {"firstCycleSteps": 7, "cycleMultiplier": 1}},
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 7, 1),
    ),
}


@pytest.mark.parametrize("case", TORCH)
def test_curves_are_torch_s(case: str) -> None:
    document, make = TORCH[case]
    schedule = Schedule.parse(document)
    rates = [learning_rate_at(step, 100, 0.3, schedule) for step in range(100)]
    np.testing.assert_allclose(rates, by_torch(make, 100), rtol=1e-9, atol=1e-12)


FIGURES = st.lists(
    st.one_of(st.floats(0.01, 1.0), st.sampled_from([0.5, 0.501, 0.499, math.nan, math.inf])), max_size=60
)


@given(
    figures=FIGURES,
    metric=st.sampled_from(["validation_loss", "accuracy"]),
    factor=st.sampled_from([0.1, 0.5]),
    patience=st.integers(0, 4),
    threshold=st.sampled_from([0.0, 1e-4, 0.1]),
    cooldown=st.integers(0, 3),
    minimum=st.sampled_from([0.0, 0.2]),
    stop=st.integers(0, 60),
)
def test_a_plateau_falls_when_torch_s_does_and_goes_on_from_its_state(
    figures: list[float],
    metric: str,
    factor: float,
    patience: int,
    threshold: float,
    cooldown: int,
    minimum: float,
    stop: int,
) -> None:
    if metric == "accuracy":
        figures = [figure for figure in figures if not math.isinf(figure)]
    document = {
        "metric": metric,
        "factor": factor,
        "patience": patience,
        "threshold": threshold,
        "cooldown": cooldown,
        "minimumFraction": minimum,
    }
    plateau = Schedule.parse({"plateau": document}).plateau
    assert plateau is not None
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        "max" if metric == "accuracy" else "min",
        factor,
        patience,
        threshold,
        cooldown=cooldown,
        min_lr=minimum,
        eps=0.0,
    )
    said: list[str] = []
    ours = PlateauFollower(plateau, {}, said.append)
    falls = 0
    for done, figure in enumerate(figures, 1):
        before = ours.fraction
        if done == stop:
            ours = PlateauFollower(plateau, ours.state(), said.append)
        ours.after_evaluation(done, {metric: figure})
        theirs.step(figure)
        assert ours.fraction == optimizer.param_groups[0]["lr"]
        falls += ours.fraction < before
    assert len(said) == falls


@pytest.mark.parametrize(("warmup_steps", "judged_from"), [(20, 0), (0, 21), (5, 30)])
def test_evaluations_in_the_warm_up_or_before_the_last_cut_of_pruning_are_not_held_against_a_run(
    warmup_steps: int, judged_from: int
) -> None:
    plateau = Schedule.parse({"plateau": {"patience": 0, "warmupSteps": warmup_steps, "factor": 0.5}}).plateau
    assert plateau is not None
    said: list[str] = []
    follower = PlateauFollower(plateau, {}, said.append, judged_from)
    for done in (10, 20, 30, 40):
        follower.after_evaluation(done, {"validation_loss": 2.0})
    assert follower.fraction == 0.5
    assert said == [
        "step 40: evaluations without a better validation_loss: 1; the learning rate falls to 0.5 of its peak"
    ]
