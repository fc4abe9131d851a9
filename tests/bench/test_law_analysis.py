"""Scaling laws of what trials kept: runs that were given, and TrainingJobs that were run."""

import re
from pathlib import Path

import pytest

from capstan_runtime.bench.analysis.collect import Trials, build_series, read_trials
from capstan_runtime.bench.analysis.law import derive
from capstan_runtime.bench.result import Series
from capstan_runtime.bench.trial import run_trial
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.contract.benchmark import Arm, BenchTask, Environment, TrainingRecord, TrialRef
from capstan_runtime.contract.judged import JUDGED
from capstan_runtime.errors import ConfigError

HERE = Environment(cpu="a CPU", cores=2, memory_bytes=2**34, kernel="6.1", python="3.11.2")
SIZES = {"s": 10_000, "m": 100_000, "l": 1_000_000}
STEPS = (100, 300, 1000, 3000)
SAMPLES = 32


def loss(parameters: int, tokens: int, repetition: int = 0) -> float:
    return (1.5 + 30 / parameters**0.4 + 80 / tokens**0.35) * (1 + 0.002 * repetition)


def grid(tokens_per_sample: int | None, metric: str = "validation_loss", arm: Arm = "candidate") -> Trials:
    """Two repetitions of three sizes and four lengths."""
    records = []
    for repetition in (1, 0):
        for name, parameters in SIZES.items():
            for steps in STEPS:
                ref = TrialRef(
                    trial=f"{name}{steps}r{repetition}",
                    attempt=1,
                    arm=arm,
                    repetition=repetition,
                    labels={"model": name, "steps": str(steps)},
                    job="j/u",
                )
                tokens = steps * SAMPLES * (tokens_per_sample or 1)
                record = TrainingRecord(
                    job="j",
                    fence=1,
                    rank=0,
                    world=1,
                    first_step=0,
                    steps=(steps // 2, steps),
                    step_seconds=(0.1, 0.1),
                    samples_per_step=SAMPLES,
                    tokens_per_sample=tokens_per_sample,
                    parameters=parameters,
                    metrics={metric: loss(parameters, tokens, repetition), "accuracy": 0.5},
                    environment=HERE,
                    is_complete=True,
                )
                records.append((ref, record))
    return Trials(records=tuple(records))


def test_runs_of_a_spec_are_fitted_in_their_order(tmp_path: Path) -> None:
    points = [(size, steps * SAMPLES, loss(size, steps * SAMPLES)) for size in SIZES.values() for steps in STEPS]
    work = {"points": [dict(zip(("parameters", "tokens", "loss"), point, strict=True)) for point in points]}
    task = {"trial": "t00", "seed": 0, "work": {"scalingLaw": work}, "deadlineSeconds": 60}
    whole = {"benchmark": "law", "namespace": "n", "uid": "u", "seed": 0, "trial": task}
    assert run_trial(BenchTask.parse(whole), {"CAPSTAN_STORE": str(tmp_path)}) == 0
    ref = TrialRef(trial="t00", attempt=1, arm="candidate", repetition=0)
    trials = read_trials(FolderStore(tmp_path), "law", "u", [ref])
    derived = derive(build_series(trials), trials, 0.95, seed=0)
    assert list(derived) == ["law", "headline"]
    assert derived["headline"] == "best N grows as compute^0.47 (0.47 – 0.47, chinchilla)"
    assert derived["law"].points == tuple(points)
    chinchilla = derived["law"].fits[0]
    assert {each.name: each.value for each in chinchilla.parameters} == pytest.approx(
        {"E": 1.5, "A": 30, "B": 80, "alpha": 0.4, "beta": 0.35}, rel=1e-4
    )
    assert chinchilla.is_trusted, chinchilla.warnings


def test_every_repetition_of_a_grid_is_a_run_and_its_losses_are_compared() -> None:
    trials = grid(tokens_per_sample=16)
    derived = derive((), trials, 0.95, seed=0)
    assert sorted(derived["law"].points) == sorted(
        (size, steps * SAMPLES * 16, loss(size, steps * SAMPLES * 16, repetition))
        for size in SIZES.values()
        for steps in STEPS
        for repetition in (0, 1)
    )
    assert derived["law"].fits[0].is_trusted, derived["law"].fits[0].warnings
    assert derived["series"] == tuple(
        Series(
            metric="validation_loss",
            labels={"model": name, "steps": str(steps)},
            unit="nats",
            better="lower",
            arm="candidate",
            values=tuple(loss(SIZES[name], steps * SAMPLES * 16, repetition) for repetition in (0, 1)),
            trials=(f"{name}{steps}r0", f"{name}{steps}r1"),
            is_headline=True,
        )
        for name in ("l", "m", "s")
        for steps in STEPS
    )


def test_where_samples_have_no_tokens_samples_are_counted_and_training_loss_is_not_trusted() -> None:
    derived = derive((), grid(tokens_per_sample=None, metric="loss"), 0.95, seed=0)
    law = derived["law"]
    assert {tokens for _, tokens, _ in law.points} == {steps * SAMPLES for steps in STEPS}
    warning = (
        "loss: is that of the last training steps, which the order of the data moves; hold out validation samples in "
        "spec.job to fit to validation_loss"
    )
    assert [(fit.is_trusted, fit.warnings[-1]) for fit in law.fits] == [(False, warning)] * 2
    assert derived["headline"] == "no law to rely on (see the report)"
    by_validation = derive((), grid(tokens_per_sample=16), 0.95, seed=0)["series"]
    metrics = {one.metric for one in (*derived["series"], *by_validation)}
    assert metrics == set(JUDGED["scalingLaw"]) - set(JUDGED["training"])


def test_of_the_baseline_only_losses_are_used() -> None:
    derived = derive((), grid(tokens_per_sample=16, arm="baseline"), 0.95, seed=0)
    assert list(derived) == ["series"]
    assert {each.arm for each in derived["series"]} == {"baseline"}


@pytest.mark.parametrize(
    ("trials", "message"),
    [
        (
            Trials(records=grid(None).records[:4]),
            "workload.scalingLaw: 4 runs determine no law; give 5 or more",
        ),
        (
            grid(None, metric="perplexity"),
            "workload.scalingLaw.grid: trial s100r1 told neither validation_loss nor loss; let spec.job validate",
        ),
    ],
    ids=["too few", "no loss"],
)
def test_runs_that_make_no_law_are_refused(trials: Trials, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        derive((), trials, 0.95, seed=0)
