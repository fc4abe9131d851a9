"""Early stopping: when it is due, and that a run ends at the same step wherever it was interrupted."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from capstan_runtime.agreement import CARRY_ON
from capstan_runtime.callbacks.early_stopping import EarlyStopping
from capstan_runtime.checkpoint.candidates import list_candidates
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.manifest import TrainerState, Value, canonical_bytes
from capstan_runtime.checkpoint.reader import open_checkpoint
from capstan_runtime.contract import callbacks as contract
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.contract.state import EarlyStop
from capstan_runtime.hooks import Outcome, Step
from capstan_runtime.report import Reporter
from capstan_runtime.voice import Voice
from tests.support.checkpoints import trainer_state
from tests.support.numpy_engine import Done
from tests.support.training_runs import Ended, Run, run_trainers

EVERY = 4


def early_stopping(saved: Mapping[str, Value] | None = None, **plan: Any) -> EarlyStopping:
    return EarlyStopping(contract.EarlyStopping(**plan), saved or {}, Voice(Reporter(None), rank=1, steps=100))


def ends_at(values: list[float], **plan: Any) -> int | None:
    """Index of the value after which the run is over; state is written and read between any two."""
    saved: Mapping[str, Value] = {}
    for index, value in enumerate(values):
        each = early_stopping(saved, **plan)
        each.after_evaluation(index, {"validation_loss": value, "accuracy": value})
        if each.is_over:
            return index
        saved = each.state()
    return None


@pytest.mark.parametrize(
    ("values", "plan", "end"),
    [
        ([3, 2, 1, 1, 1], {"patience": 2}, 4),
        ([3, 2, 2, 1.9, 2, 2], {"patience": 2}, 5),
        ([3, 2.5, 2.1, 1.9], {"patience": 2, "min_delta": 0.5}, None),
        ([3, 2.6, 2.5, 2.4], {"patience": 2, "min_delta": 0.6}, 2),
        ([0.5, 0.6, 0.6], {"patience": 1, "metric": "accuracy"}, 2),
        ([0.5, 0.6, 0.6], {"patience": 2, "metric": "accuracy", "mode": "min"}, 2),
        ([math.nan, math.inf], {"patience": 2}, 1),
        ([math.nan, 1, math.nan, 0.5], {"patience": 2}, None),
    ],
)
def test_patience_is_over_after_so_many_evaluations_without_a_better_value(
    values: list[float], plan: dict[str, Any], end: int | None
) -> None:
    assert ends_at(values, **plan) == end


def test_what_was_best_of_another_metric_says_nothing() -> None:
    before = early_stopping(patience=1)
    before.after_evaluation(4, {"validation_loss": 0.01})
    after = early_stopping(before.state(), patience=1, metric="accuracy")
    after.after_evaluation(8, {"accuracy": 0.001})
    assert after.state() == {"metric": "accuracy", "mode": "max", "since": 0, "best": 0.001, "bestStep": 8}


def test_what_was_best_when_less_was_better_says_nothing_once_more_is() -> None:
    before = early_stopping(patience=2, metric="accuracy", mode="min")
    before.after_evaluation(4, {"accuracy": 0.01})
    before.after_evaluation(8, {"accuracy": 0.9})
    after = early_stopping(before.state(), patience=2, metric="accuracy")
    assert after.state() == {"metric": "accuracy", "mode": "max", "since": 0}
    state_without_mode = {name: value for name, value in before.state().items() if name != "mode"}
    assert early_stopping(state_without_mode, patience=2, metric="accuracy").state() == {
        **{"metric": "accuracy", "mode": "max", "since": 1, "best": 0.01, "bestStep": 4}
    }, "saved before states said their mode"


def test_evaluations_of_a_model_that_is_still_to_be_pruned_count_for_nothing() -> None:
    plan = contract.EarlyStopping(patience=1)
    each = EarlyStopping(plan, {}, Voice(Reporter(None), rank=1, steps=100), judged_from=8)
    for done, value in ((2, 0.1), (4, 0.2), (6, 0.3)):
        each.after_evaluation(done, {"validation_loss": value})
        assert (each.is_over, each.state()) == (False, {"metric": "validation_loss", "mode": "min", "since": 0})
    each.after_evaluation(8, {"validation_loss": 0.9})
    assert each.state() == {
        "metric": "validation_loss",
        "mode": "min",
        "since": 0,
        "best": 0.9,
        "bestStep": 8,
    }
    each.after_evaluation(10, {"validation_loss": 0.9})
    assert each.is_over


def test_a_run_that_is_pruned_is_stopped_early_only_after_its_last_cut_and_refused_without_one(tmp_path: Path) -> None:
    prune = {"magnitude": {"sparsity": 0.5, "endStep": 40, "everySteps": 10}}
    pruned = stopping_run(tmp_path / "pruned", compression={"prune": prune})
    (ended,) = train(pruned)
    assert ended.code == ExitCode.OK, ended.output
    assert [stop.step for stop in early_stops(ended)] == [40 + 2 * EVERY]
    (refused,) = train(stopping_run(tmp_path / "too late", compression={"prune": prune}, training={"steps": 39}))
    assert refused.code == ExitCode.CONFIG, refused.output
    assert "makes its last cut at step 40, after the last of spec.training.steps 39; lower it" in refused.output


def test_a_checkpoint_of_a_pruned_model_has_no_figures_of_what_it_was_before(tmp_path: Path) -> None:
    prune = {"magnitude": {"sparsity": 0.5, "endStep": 40, "everySteps": 10}}
    run = stopping_run(
        tmp_path,
        compression={"prune": prune},
        training={"evaluation": {"everySteps": 12}},
        checkpoint={"interval": {"steps": EVERY}, "retention": {"last": 20}},
    )
    (ended,) = train(run)
    assert ended.code == ExitCode.OK, ended.output
    manifests = [each.manifest for each in list_candidates(FolderStore(run.store), "3f1c-uid").candidates]
    measured = sorted(each.step for each in manifests if each is not None and "validation_loss" in each.metrics)
    assert measured == [12, 16, 20, 24, 28, 32, 36, 48, 52, 56, 60]
    assert len(manifests) == 60 // EVERY


def test_the_step_after_which_patience_is_over_is_the_last() -> None:
    each = early_stopping(patience=1)
    step = Step(8, False, 0.1, Outcome(Done({})), CARRY_ON)
    each.after_evaluation(4, {"validation_loss": 1.0})
    assert not each.is_due(step)
    each.after_evaluation(8, {"validation_loss": 1.0})
    assert each.is_due(step)
    each.run(step)
    assert step.is_last
    assert not each.is_due(step)


def test_a_state_without_callbacks_is_spelled_as_before_there_were_any() -> None:
    plain = trainer_state(3)
    assert b"callbacks" not in canonical_bytes(plain)
    assert TrainerState.model_validate_json(canonical_bytes(plain)) == plain
    told = plain.model_copy(update={"callbacks": {"earlyStopping": {"since": 2, "best": 0.25, "metric": "accuracy"}}})
    assert TrainerState.model_validate_json(canonical_bytes(told)) == told


def stopping_run(folder: Path, training: dict[str, Any] | None = None, **more: Any) -> Run:
    """Its validation loss falls by less than minDelta from some evaluation on, long before step 60."""
    stopping = {"earlyStopping": {"patience": 2, "minDelta": 0.02}}
    told = {"evaluation": {"everySteps": EVERY}, **(training or {})}
    return Run(folder, steps=60, save_every=EVERY, overrides={"callbacks": stopping, "training": told, **more})


def train(run: Run, fence: int = 1, floor_step: int = 0, world: int = 1, **faults: str) -> list[Ended]:
    return run_trainers(run, world, fence, floor_step, AWAIT_SAVES="1", **faults)


def early_stops(ended: Ended) -> list[EarlyStop]:
    return [each.early_stop for each in ended.progress if each.early_stop]


def final_state(run: Run) -> tuple[int, str]:
    """The step of the newest checkpoint, and the digest of its tensors."""
    newest = list_candidates(FolderStore(run.store), "3f1c-uid").candidates[0]
    manifest = open_checkpoint(FolderStore(run.store), newest.name).manifest
    return manifest.step, manifest.logical


def test_a_run_that_stops_early_is_the_same_wherever_it_was_interrupted(tmp_path: Path) -> None:
    undisturbed = stopping_run(tmp_path / "undisturbed")
    (ended,) = train(undisturbed)
    assert ended.code == ExitCode.OK, ended.output
    (stop,) = early_stops(ended)
    assert stop.step < 60
    assert stop.best_step == stop.step - 2 * EVERY
    assert f"stopped early after step {stop.step}: 2 evaluations in a row found validation_loss" in ended.output
    last = [each for each in ended.progress if each.step is not None][-1]
    assert (last.phase, last.step) == ("Succeeded", stop.step)
    state = final_state(undisturbed)
    assert state[0] == stop.step
    for name, fault in {
        "before the decisive evaluation": ("kill", stop.step),
        "between two evaluations": ("kill", stop.step - EVERY + 1),
        "asked to stop when an evaluation is due": ("terminate", stop.step - EVERY - 1),
        "asked to stop at the decisive one": ("terminate", stop.step - 1),
    }.items():
        run = stopping_run(tmp_path / name)
        (first,) = train(run, FAULT_KIND=fault[0], FAULT_STEP=str(fault[1]))
        assert first.code != ExitCode.OK, name
        (second,) = train(run, fence=2, floor_step=EVERY)
        assert second.code == ExitCode.OK, second.output
        assert early_stops(second) == [stop], name
        assert final_state(run) == state, name


def test_a_run_whose_end_nobody_heard_of_ends_again_without_a_step(tmp_path: Path) -> None:
    run = stopping_run(tmp_path)
    (ended,) = train(run)
    (again,) = train(run, fence=2, floor_step=EVERY, STEP_LOG=str(tmp_path / "steps.log"))
    assert again.code == ExitCode.OK, again.output
    assert early_stops(again) == early_stops(ended)
    assert not (tmp_path / "steps.log").exists(), "it had nothing left to do"


def test_two_ranks_stop_at_the_same_step(tmp_path: Path) -> None:
    ended = train(stopping_run(tmp_path), world=2)
    assert [each.code for each in ended] == [ExitCode.OK, ExitCode.OK], ended[0].output
    first, second = (early_stops(each) for each in ended)
    assert first == second
    assert len(first) == 1
