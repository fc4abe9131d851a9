"""The loop with a numpy engine, as processes: exact resume, and an exit code that tells why."""

import re
import subprocess
from pathlib import Path

import pytest

from capstan_runtime.checkpoint.candidates import Candidate, list_candidates
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.layout import QUARANTINED, SHARDS
from capstan_runtime.checkpoint.reader import open_checkpoint
from capstan_runtime.contract.exit_codes import ExitCode, FailureClass
from capstan_runtime.contract.state import Phase, Progress
from tests.support.training_runs import Ended, Run, Undisturbed, losses, run_trainers


def train(run: Run, world: int, fence: int = 1, floor_step: int = 0, **faults: str) -> list[Ended]:
    """All ranks to their end. A save is committed before the next step but one: what a fault leaves is known."""
    return run_trainers(run, world, fence, floor_step, AWAIT_SAVES="1", **faults)


def candidates(run: Run) -> tuple[Candidate, ...]:
    return list_candidates(FolderStore(run.store), "3f1c-uid").candidates


def committed(run: Run) -> list[int]:
    return [each.name.step for each in candidates(run) if each.problem is None]


def final_tensors(run: Run) -> dict[str, bytes]:
    tensors = open_checkpoint(FolderStore(run.store), candidates(run)[0].name).tensors()
    return {name: tensors.read(name).tobytes() for name in tensors.names()}


def newest_figures(run: Run) -> dict[str, float]:
    return open_checkpoint(FolderStore(run.store), candidates(run)[0].name).manifest.figures


def last_metrics(ended: Ended) -> dict[str, float]:
    return [each.metrics for each in ended.progress if each.metrics][-1]


def failure(ended: Ended) -> Progress:
    failures = [each for each in ended.progress if each.failure is not None]
    assert len(failures) == 1, ended.output
    return failures[0]


def test_a_run_of_two_ranks_reports_logs_and_commits(tmp_path: Path) -> None:
    run = Run(tmp_path)
    first, second = train(run, world=2)
    assert (first.code, second.code) == (0, 0), first.output
    assert committed(run) == [30, 20, 10]
    phases = [each.phase for each in first.progress if each.phase]
    assert phases[:4] == [Phase.STARTING, Phase.RESTORING, Phase.COMPILING, Phase.TRAINING]
    assert phases[-1] is Phase.SUCCEEDED
    reported = [each.checkpoint for each in first.progress if each.checkpoint]
    assert [each.step for each in reported if each.verified_at is None] == [10, 20, 30]
    assert reported[-1].step == 30
    assert reported[-1].verified_at is not None, "read back before the run is called a success"
    assert [each.checkpoint for each in second.progress if each.checkpoint] == []
    metrics = last_metrics(first)
    assert metrics.keys() == {
        "loss", "gradient_norm", "learning_rate", "step_seconds", "samples_per_second", "busy_seconds",
        "model_flops_per_second",
        "validation_loss", "accuracy", "save_blocked_seconds", "save_seconds", "save_bytes",
    }  # fmt: skip
    assert 0 < metrics["loss"] < 1.2
    assert last_metrics(second)["validation_loss"] == metrics["validation_loss"]
    lines = [line for line in first.output.splitlines() if line.startswith("step ")]
    assert re.fullmatch(r"step  5/30  loss \d\.\d{4}  [\d,]+ samples/s  lr \d\.\de-\d\d", lines[0]), lines[0]
    assert any(re.fullmatch(r"step 30/30  validation loss \d\.\d{4}  accuracy \d\.\d{3}", line) for line in lines)
    assert second.output == ""


def test_a_goodbye_that_nobody_hears_makes_no_failure_of_a_run_that_is_saved(tmp_path: Path) -> None:
    first, second = train(Run(tmp_path, steps=4), world=2, FAULT_KIND="no goodbye", FAULT_RANK="1")
    assert (first.code, second.code) == (0, 0), second.output
    assert "the others have gone without a word; all is saved" in second.output


def test_no_rank_leaves_before_the_last_checkpoint_was_read_back(tmp_path: Path) -> None:
    run, has_been_read = Run(tmp_path, steps=2), tmp_path / "read"
    ended = train(run, world=2, SLOW_READ=str(has_been_read))
    assert [each.code for each in ended] == [0, 0], ended[0].output
    said_success = (tmp_path / "report-1-1.jsonl").stat().st_mtime_ns
    assert has_been_read.stat().st_mtime_ns <= said_success, "rank 1 leaves first, and rank 0 takes it for dead"


def test_a_killed_run_resumes_and_ends_bit_for_bit_as_if_nothing_had_happened(
    tmp_path: Path, undisturbed: Undisturbed
) -> None:
    disturbed, log = Run(tmp_path), tmp_path / "disturbed.log"
    for fence, (rank, step) in enumerate([(1, 7), (0, 13), (1, 29)], start=1):
        faults = {"FAULT_KIND": "kill", "FAULT_RANK": str(rank), "FAULT_STEP": str(step), "FAULT_FENCE": str(fence)}
        ended = train(disturbed, world=2, fence=fence, STEP_LOG=str(log), **faults)
        assert ended[rank].code == -9
        assert ended[1 - rank].code == ExitCode.RETRYABLE
        assert failure(ended[1 - rank]).failure is FailureClass.RETRYABLE
    ended = train(disturbed, world=2, fence=4, floor_step=20, STEP_LOG=str(log))
    assert [each.code for each in ended] == [0, 0], ended[0].output
    resumed = [each.resumed_from for each in ended[1].progress if each.resumed_from]
    assert [each.step for each in resumed] == [20]
    assert sorted(set(losses(log))) == undisturbed.losses, "a step done twice has the same loss to the last bit"
    assert losses(log)[-10:] == undisturbed.losses[-10:]
    assert final_tensors(disturbed) == final_tensors(undisturbed.run)


def test_another_number_of_ranks_continues_with_the_same_samples(tmp_path: Path, undisturbed: Undisturbed) -> None:
    run = Run(tmp_path)
    train(run, world=2, FAULT_KIND="kill", FAULT_STEP="12")
    log = tmp_path / "steps.log"
    (ended,) = train(run, world=1, fence=2, floor_step=10, STEP_LOG=str(log))
    assert ended.code == 0, ended.output
    assert [each.resumed_from.step for each in ended.progress if each.resumed_from] == [10]
    found, wanted = ([float(loss) for _, loss in each] for each in (losses(log), undisturbed.losses[10:]))
    assert found == pytest.approx(wanted, rel=1e-5)


def test_the_newest_checkpoint_is_bad_so_the_one_before_is_taken(tmp_path: Path) -> None:
    run = Run(tmp_path)
    train(run, world=1, FAULT_KIND="kill", FAULT_STEP="25")
    newest = candidates(run)[0]
    folder = run.store / str(newest.name)
    shard = folder / SHARDS / "r0-0.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x99")
    (ended,) = train(run, world=1, fence=2, floor_step=20)
    assert ended.code == 0, ended.output
    assert [(each.quarantined.step, each.quarantined.root) for each in ended.progress if each.quarantined] == [
        (20, newest.root)
    ]
    assert [each.resumed_from.step for each in ended.progress if each.resumed_from] == [10]
    assert (folder / QUARANTINED).exists()


def test_when_no_checkpoint_verifies_the_run_halts_and_never_starts_from_step_0(tmp_path: Path) -> None:
    run = Run(tmp_path)
    train(run, world=1, FAULT_KIND="kill", FAULT_STEP="25")
    for candidate in candidates(run):
        (run.store / str(candidate.name) / "MANIFEST.json").write_bytes(b"{}")
    for fence in (2, 3):
        (ended,) = train(run, world=1, fence=fence, floor_step=20)
        assert ended.code == ExitCode.CORRUPT_CHECKPOINT
        assert failure(ended).failure is FailureClass.CORRUPT_CHECKPOINT
        assert (failure(ended).message or "").startswith(
            "none of 2 committed checkpoints verifies, newest 000000000020"
        )
    assert max(each.step or 0 for each in ended.progress) == 0


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(tmp_path: Path) -> None:
    run = Run(tmp_path)
    ended = train(run, world=1, FAULT_KIND="nan", FAULT_STEP="20")[0]
    assert ended.code == ExitCode.NUMERICAL
    assert (failure(ended).message or "").startswith("step 20: the loss is nan; lower the learning rate")
    assert committed(run) == [10]


@pytest.mark.parametrize("asked", ["by a signal", "by the membership"])
def test_a_run_leaves_right_after_a_committed_checkpoint_and_loses_no_step(
    tmp_path: Path, undisturbed: Undisturbed, asked: str
) -> None:
    run, log = Run(tmp_path), tmp_path / "steps.log"
    if asked == "by a signal":
        faults = {"FAULT_KIND": "leave at checkpoint", "FAULT_STEP": "12", "FAULT_RANK": "1"}
        ended, left = train(run, world=2, STEP_LOG=str(log), **faults), 20
    else:
        ended, left = run_trainers(run, 2, more=lambda rank: {"leave_at_checkpoint": rank == 1}, STEP_LOG=str(log)), 10
    assert [each.code for each in ended] == [ExitCode.STOPPED] * 2, ended[0].output
    assert committed(run)[0] == left
    (ended,) = train(run, world=1, fence=2, floor_step=left, STEP_LOG=str(log))
    assert ended.code == 0, ended.output
    assert [step for step, _ in losses(log)] == list(range(1, 31)), "no step was done twice"
    found, wanted = ([float(loss) for _, loss in each] for each in (losses(log), undisturbed.losses))
    assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("stopped_at", [20, 30], ids=["amid the run", "after the last step"])
def test_a_stop_ends_an_evaluation_too_and_what_was_to_be_measured_is_measured_later(
    tmp_path: Path, stopped_at: int
) -> None:
    options = {
        "training": {"globalBatchSize": 2, "logEverySteps": 5, "evaluation": {"everySteps": 20}},
        "callbacks": {"earlyStopping": {"patience": 5}},
    }
    run, log = Run(tmp_path, save_every=1000, overrides=options), tmp_path / "steps.log"
    faults = {"FAULT_KIND": "terminate evaluation", "FAULT_STEP": str(stopped_at), "STEP_LOG": str(log)}

    def measured(ended: Ended) -> list[int]:
        return [int(step) for step in re.findall(r"^step +(\d+)/30  validation loss", ended.output, re.MULTILINE)]

    for fence in (1, 2):  # the second time before the first step
        ended = train(run, world=2, fence=fence, FAULT_FENCE=str(fence), FAULT_RANK="1", **faults)
        assert [each.code for each in ended] == [ExitCode.STOPPED] * 2, ended[0].output
        assert f"stopped at step {stopped_at}, as asked" in ended[0].output
        assert committed(run) == [stopped_at]
        assert stopped_at not in measured(ended[0])
        assert "validation_loss" not in newest_figures(run), "of an earlier model"
    ended = train(run, world=2, fence=3, floor_step=stopped_at, STEP_LOG=str(log))
    assert [each.code for each in ended] == [0, 0], ended[0].output
    assert measured(ended[0]) == sorted({stopped_at, 30})
    assert newest_figures(run)["validation_loss"] == last_metrics(ended[0])["validation_loss"]
    assert [step for step, _ in losses(log)] == list(range(1, 31)), "no step was done twice"


def test_an_exception_is_reported_in_one_line_and_shown_with_its_traceback(tmp_path: Path) -> None:
    ended = train(Run(tmp_path), world=1, FAULT_KIND="raise", FAULT_STEP="3")[0]
    assert ended.code == ExitCode.APPLICATION
    assert failure(ended) == Progress(failure=FailureClass.APPLICATION, message="RuntimeError: the step went wrong")
    assert "Traceback (most recent call last):" in ended.output


MOUNT = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=24k none "$0" && exec "$@"')


@pytest.mark.skipif(subprocess.run(["unshare", "--mount", "true"]).returncode != 0, reason="needs mount namespaces")
def test_a_volume_that_is_full_ends_the_run_with_the_reason_after_three_saves(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=1000, save_every=2)
    run.store.mkdir()
    (ended,) = run_trainers(run, world=1, prefix=(*MOUNT, str(run.store)), STEP_SECONDS="0.02")
    assert ended.code == ExitCode.RETRYABLE, ended.output
    assert [each.checkpoint.step for each in ended.progress if each.checkpoint and not each.checkpoint.verified_at] == [
        2
    ]
    assert failure(ended).failure is FailureClass.RETRYABLE
    notes = [each.note for each in ended.progress if each.note]
    assert len(notes) == 3
    assert all(note.startswith("checkpoint not saved: ") and "No space left" in note for note in notes)
    full = r"checkpoint not saved, 3 times in a row: step \d+, rank 0: \[Errno 28\] No space left on device"
    assert re.fullmatch(full, failure(ended).message or "")


def test_a_library_that_exits_is_a_failure_and_no_wish_to_stop(tmp_path: Path) -> None:
    ended = train(Run(tmp_path), world=1, FAULT_KIND="leave", FAULT_STEP="3")[0]
    assert ended.code == ExitCode.APPLICATION
    assert failure(ended) == Progress(failure=FailureClass.APPLICATION, message="SystemExit: a library gave up")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"data": {"arrays": {"path": "/nowhere/data.npz"}}},
            "spec.data.arrays.path: /nowhere/data.npz does not exist in the pod; mount it, or correct the path",
        ),
        (
            {"training": {"steps": 5, "globalBatchSize": 600, "virtualRanks": 2}},
            "spec.training.globalBatchSize: 600 is more than the 108 training samples there are; "
            "choose at most 108 or add data",
        ),
    ],
)
def test_a_config_that_cannot_work_names_field_value_rule_and_fix(
    tmp_path: Path, overrides: dict[str, object], message: str
) -> None:
    (ended,) = train(Run(tmp_path, overrides=overrides), world=1)
    assert ended.code == ExitCode.CONFIG
    assert failure(ended) == Progress(failure=FailureClass.CONFIG, message=message)


def test_another_batch_size_does_not_continue_an_old_run(tmp_path: Path) -> None:
    train(Run(tmp_path), world=1, FAULT_KIND="kill", FAULT_STEP="15")
    other = Run(tmp_path, overrides={"training": {"globalBatchSize": 24}})
    (ended,) = train(other, world=1, fence=2, floor_step=10)
    assert ended.code == ExitCode.CONFIG
    assert failure(ended).message == (
        "spec.training.globalBatchSize: 24 differs from 12 in the checkpoint of step 10; "
        "set it back, or start a new job"
    )


def test_a_finished_run_started_again_measures_and_succeeds(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (first,) = train(run, world=1)
    (again,) = train(run, world=1, fence=2, floor_step=30)
    assert again.code == 0, again.output
    assert last_metrics(again) == {name: last_metrics(first)[name] for name in ("accuracy", "validation_loss")}
    assert [each.phase for each in again.progress if each.phase][-1] is Phase.SUCCEEDED
