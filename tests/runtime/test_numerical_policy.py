"""When the arithmetic goes wrong: ignore, rewind or halt, and the same verdict on every rank."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_runtime.contract.chaos import Fault, Injection
from capstan_runtime.contract.exit_codes import ExitCode, FailureClass
from capstan_runtime.contract.numerical import Numerical
from capstan_runtime.contract.run_config import Skip
from capstan_runtime.contract.state import Progress
from capstan_runtime.data.plan import SamplePlan, batch_index, skips_before
from capstan_runtime.errors import NumericalFailure
from capstan_runtime.numerical import Guard
from tests.support.training_runs import Ended, Run, Undisturbed, losses, run_trainers


@dataclass
class Result:
    loss: float
    gradient_norm: float = 1.0
    loss_scale: float | None = None
    fetches: int = 0

    def fetch(self) -> Mapping[str, float]:
        self.fetches += 1
        scaled = {} if self.loss_scale is None else {"loss_scale": self.loss_scale}
        return {"loss": self.loss, "gradient_norm": self.gradient_norm, **scaled}


@dataclass
class Judged:
    """What became of a run with these results."""

    failure: str | None
    bad_batch: int | None
    notes: list[str]


def judged(results: list[Result], settle_every: int = 1, **policy: Any) -> Judged:
    """The verdict over steps 1, 2, …, looked at every `settle_every` of them. Two batches were left out before."""
    notes: list[str] = []
    guard = Guard(Numerical.parse(policy), lambda done: batch_index(done - 1, SKIPS), notes.append, loss=None)
    try:
        for done, result in enumerate(results, start=1):
            guard.note(done, result)
            if done % settle_every == 0 or done == len(results):
                guard.settle(done)
    except NumericalFailure as failure:
        return Judged(str(failure), failure.bad_batch, notes)
    return Judged(None, None, notes)


@pytest.mark.parametrize("policy", ["halt", "rewind", "ignore"])
def test_an_overflow_of_the_scaled_loss_is_no_fault(policy: str) -> None:
    assert judged([Result(2.0), Result(2.0, math.inf, 65536.0)] * 3, nonFinite=policy) == Judged(None, None, [])


@pytest.mark.parametrize("fault", [(math.nan, math.inf, 65536.0), (2.0, math.inf, 1.0)])
def test_a_loss_that_is_no_number_and_an_overflow_at_the_least_scale_are_faults(fault: tuple[float, ...]) -> None:
    assert judged([Result(2.0), Result(*fault)], nonFinite="halt").failure is not None


SKIPS = (Skip(first=1, count=2),)
NAN = Result(math.nan, math.nan)
RUINED = Result(0.5, math.inf)
STEADY = [Result(1.0 + 0.01 * (step % 7)) for step in range(60)]
ADVICE = "lower the learning rate, lengthen the warm-up or set gradientClip"

VERDICTS: dict[str, tuple[list[Result], dict[str, Any], Judged]] = {
    "a loss that is no number halts": ([*STEADY[:3], NAN], {}, Judged(f"step 4: the loss is nan; {ADVICE}", None, [])),
    "so does a gradient that is infinite": (
        [RUINED],
        {"nonFinite": "halt"},
        Judged(f"step 1: the gradient norm is inf; {ADVICE}", None, []),
    ),
    "rewind names the batch in the order of the data": (
        [*STEADY[:3], NAN],
        {"nonFinite": "rewind"},
        Judged("step 4: the loss is nan; batch 5 of the data order is to be left out", 5, []),
    ),
    "ignore says so and goes on": (
        [STEADY[0], RUINED, STEADY[1]],
        {"nonFinite": "ignore"},
        Judged(None, None, ["step 2: the gradient norm is inf; its update was dropped"]),
    ),
    "a spike is left alone when nobody asked": ([*STEADY, Result(90.0)], {}, Judged(None, None, [])),
    "a spike rewinds": (
        [*STEADY, Result(9.0)],
        {"lossSpike": {"factor": 3.0}},
        Judged(
            "step 61: the loss 9 is more than 3 x 1.03, the median of the last 50; "
            "batch 62 of the data order is to be left out",
            62,
            [],
        ),
    ),
    "a spike halts": (
        [*STEADY[:7], Result(4.0)],
        {"lossSpike": {"factor": 3.0, "window": 5, "action": "halt"}},
        Judged(f"step 8: the loss 4 is more than 3 x 1.04, the median of the last 5; {ADVICE}", None, []),
    ),
    "a spike is ignored, and is part of what is usual then": (
        [*STEADY[:5], *[Result(4.0)] * 5],
        {"lossSpike": {"factor": 3.0, "window": 5, "action": "ignore"}},
        Judged(
            None,
            None,
            [f"step {done}: the loss 4 is more than 3 x {usual}, the median of the last 5" for done, usual in
             ((6, "1.02"), (7, "1.03"), (8, "1.04"))],
        ),
    ),
    "the first five losses are no spike": (
        [Result(1.0), *[Result(50.0)] * 4],
        {"lossSpike": {"factor": 2.0, "action": "halt"}},
        Judged(None, None, []),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("results", "policy", "verdict"), VERDICTS.values(), ids=VERDICTS)
def test_the_policy_decides(results: list[Result], policy: dict[str, Any], verdict: Judged) -> None:
    assert judged(results, **policy) == verdict


@given(
    values=st.lists(st.sampled_from([0.9, 1.0, 1.1, 5.0, math.nan, math.inf]), max_size=60),
    settle_every=st.integers(1, 50),
    action=st.sampled_from(["ignore", "rewind", "halt"]),
)
def test_it_does_not_matter_how_often_results_are_looked_at(
    values: list[float], settle_every: int, action: str
) -> None:
    policy = {"nonFinite": action, "lossSpike": {"factor": 3.0, "window": 5, "action": action}}
    results = [Result(value, value) for value in values]
    often, seldom = judged(results, **policy), judged(results, settle_every, **policy)
    assert (often.failure, often.bad_batch) == (seldom.failure, seldom.bad_batch)
    assert bool(often.notes) == bool(seldom.notes) or often.failure is not None


def test_a_hundred_dropped_updates_in_a_row_are_too_many() -> None:
    assert judged([*[NAN] * 99, STEADY[0], *[NAN] * 99], nonFinite="ignore").failure is None
    assert judged([NAN] * 100, nonFinite="ignore").failure == (
        f"step 100: the loss is nan, as in 100 steps before it; {ADVICE}"
    )


def test_the_loss_to_save_is_the_newest_that_is_a_number() -> None:
    guard = Guard(Numerical.parse({"nonFinite": "ignore"}), lambda done: done - 1, lambda note: None, loss=None)
    with pytest.raises(NumericalFailure, match=r"^no step so far has had a loss that is a number"):
        guard.newest_loss()
    for done, result in enumerate([Result(2.0), Result(1.5), NAN], start=1):
        guard.note(done, result)
    guard.settle(3)
    assert guard.newest_loss() == 1.5


disjoint_skips = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), max_size=5).map(
    lambda gaps: tuple(
        Skip(first=sum(gap + count for gap, count in gaps[:number]) + gaps[number][0], count=gaps[number][1])
        for number in range(len(gaps))
    )
)


@given(skips=disjoint_skips)
def test_steps_take_the_batches_in_order_without_those_left_out(skips: tuple[Skip, ...]) -> None:
    left_out = {skip.first + offset for skip in skips for offset in range(skip.count)}
    kept = [index for index in range(80) if index not in left_out]
    assert [batch_index(step, skips) for step in range(30)] == kept[:30]
    plan = SamplePlan(5, 64, 8, 4)
    skipping = SamplePlan(5, 64, 8, 4, skips)
    assert [skipping.ids(step).tolist() for step in range(30)] == [plan.ids(index).tolist() for index in kept[:30]]
    for step in range(30):
        behind = skips_before(step, skips)
        assert behind == tuple(skip for skip in skips if step and skip.first < kept[step - 1])
        assert [batch_index(each, behind) for each in range(step)] == kept[:step]


def failure(ended: Ended) -> Progress:
    (found,) = [each for each in ended.progress if each.failure is not None]
    return found


def nan_after(step: int, rank: int) -> Callable[[int], dict[str, Any]]:
    poison = Injection(name="poison", fault=Fault.NAN, step=step)
    return lambda each: {"chaos": [poison]} if each == rank else {}


def test_a_run_goes_back_and_leaves_the_bad_batch_out(tmp_path: Path, undisturbed: Undisturbed) -> None:
    run, log = Run(tmp_path, overrides={"numerical": {"nonFinite": "rewind"}}), tmp_path / "steps.log"
    ended = run_trainers(run, world=2, more=nan_after(13, rank=1), AWAIT_SAVES="1")
    assert [each.code for each in ended] == [ExitCode.NUMERICAL] * 2, "the norm is global: both know at once"
    assert [failure(each).bad_batch for each in ended] == [13, 13]
    assert failure(ended[0]).message == "step 14: the loss is nan; batch 13 of the data order is to be left out"
    skips = [Skip(first=13, count=2)]
    ended = run_trainers(run, world=2, fence=2, floor_step=10, more=lambda rank: {"skips": skips}, STEP_LOG=str(log))
    assert [each.code for each in ended] == [0, 0], ended[0].output
    assert [each.resumed_from.step for each in ended[0].progress if each.resumed_from] == [10]
    rest = losses(log)
    assert [step for step, _ in rest] == list(range(11, 31)), "the run has as many steps as before"
    assert rest[:3] == undisturbed.losses[10:13]
    assert rest[3] != undisturbed.losses[13]


def test_a_checkpoint_with_a_batch_that_is_left_out_now_is_passed_over(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run_trainers(run, world=1, FAULT_KIND="kill", FAULT_STEP="25", AWAIT_SAVES="1")
    skips = [Skip(first=13, count=1)]
    (ended,) = run_trainers(run, world=1, fence=2, floor_step=10, more=lambda rank: {"skips": skips})
    assert ended.code == 0, ended.output
    assert [each.resumed_from.step for each in ended.progress if each.resumed_from] == [10]


def test_a_dropped_update_is_a_note_and_the_run_goes_on(tmp_path: Path, undisturbed: Undisturbed) -> None:
    run, log = Run(tmp_path, overrides={"numerical": {"nonFinite": "ignore"}}), tmp_path / "steps.log"
    ended = run_trainers(run, world=2, more=nan_after(13, rank=1), AWAIT_SAVES="1", STEP_LOG=str(log))
    assert [each.code for each in ended] == [0, 0], ended[0].output
    assert [each.note for each in ended[0].progress if each.note] == [
        "step 14: the loss is nan; its update was dropped"
    ]
    assert [each.note for each in ended[1].progress if each.note] == [], "one rank tells"
    found = dict(losses(log))
    assert {step: loss for step, loss in found.items() if step < 14} == dict(undisturbed.losses[:13])
    assert found[14] == "nan"
    assert all(math.isfinite(float(found[step])) for step in range(15, 31))


def test_without_a_policy_the_run_halts_and_says_where(tmp_path: Path) -> None:
    (ended,) = run_trainers(Run(tmp_path), world=1, more=nan_after(13, rank=0))
    assert ended.code == ExitCode.NUMERICAL
    assert failure(ended) == Progress(
        failure=FailureClass.NUMERICAL, message=f"step 14: the loss is nan; {ADVICE}", bad_batch=None
    )
