"""What a run that records its steps leaves in its store, and that nobody else minds it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_runtime.checkpoint.candidates import list_candidates
from capstan_runtime.checkpoint.commands.survey import survey
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.contract.benchmark import TrainingRecord
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.recording import WindowMeter
from tests.support.training_runs import Run, run_trainers


def recorded(folder: Path, **more: object) -> Run:
    return Run(folder, overrides={"record": True, **more})


def records(run: Run) -> dict[str, TrainingRecord]:
    return {
        path.name: TrainingRecord.model_validate_json(path.read_bytes()) for path in run.store.glob("record.*.json")
    }


def test_every_rank_records_the_windows_of_its_attempt(tmp_path: Path) -> None:
    run = recorded(tmp_path)
    ended = run_trainers(run, world=2, OMP_NUM_THREADS="1", CAPSTAN_NODE_NAME="node-7")
    assert [each.code for each in ended] == [0, 0], ended[0].output
    found = records(run)
    assert found.keys() == {"record.1.r0.json", "record.1.r1.json"}
    last = [[each.metrics for each in one.progress if each.metrics][-1] for one in ended]
    for rank in (0, 1):
        record = found[f"record.1.r{rank}.json"]
        assert record == TrainingRecord(
            job="default/small",
            fence=1,
            rank=rank,
            world=2,
            first_step=0,
            steps=(1, 5, 10, 15, 20, 25, 30),
            step_seconds=record.step_seconds,
            samples_per_step=12,
            parameters=6 * 3 + 3,
            metrics=last[rank],
            environment=record.environment,
            control_seconds=record.control_seconds,
            is_complete=True,
            started_at=record.started_at,
            finished_at=record.finished_at,
        )
        assert record.started_at is not None
        assert record.finished_at is not None
        assert record.finished_at - record.started_at > sum(record.control_seconds)
        assert len(record.step_seconds) == 7
        assert min(record.step_seconds) > 0
        assert len(record.control_seconds) == 10
        assert min(record.control_seconds) > 0
        assert (record.environment.node, record.environment.threads) == ("node-7", 1)
        assert {"loss", "validation_loss", "accuracy"} <= record.metrics.keys()


def test_a_record_is_no_part_of_the_checkpoints(tmp_path: Path) -> None:
    run = recorded(tmp_path, checkpoint={"retention": {"last": 2}})
    (ended,) = run_trainers(run, world=1, AWAIT_SAVES="1")
    assert ended.code == 0, ended.output
    store = FolderStore(run.store)
    assert records(run).keys() == {"record.1.r0.json"}
    assert survey(store).foreign == ()
    assert [row.name.step for row in survey(store).rows] == [20, 30]
    assert [each.name.step for each in list_candidates(store, "3f1c-uid").candidates] == [30, 20]
    (again,) = run_trainers(run, world=1, fence=2, floor_step=30)
    assert again.code == 0, again.output
    finished = records(run)["record.2.r0.json"]
    assert (finished.first_step, finished.steps, finished.is_complete) == (30, (), True)


def test_an_attempt_that_is_stopped_and_the_one_that_goes_on_have_a_record_each(tmp_path: Path) -> None:
    run = recorded(tmp_path)
    (left,) = run_trainers(run, world=1, more=lambda rank: {"leave_at_checkpoint": True})
    (ended,) = run_trainers(run, world=1, fence=2, floor_step=10)
    assert (left.code, ended.code) == (ExitCode.STOPPED, 0), ended.output
    first, second = (records(run)[f"record.{fence}.r0.json"] for fence in (1, 2))
    assert (first.first_step, first.steps, first.is_complete) == (0, (1, 5, 10), False)
    assert (second.first_step, second.steps, second.is_complete) == (10, (11, 15, 20, 25, 30), True)


def test_a_record_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    run = recorded(tmp_path)
    (run.store / "record.1.r0.json" / "in the way").mkdir(parents=True)
    (ended,) = run_trainers(run, world=1)
    assert ended.code == 0, ended.output
    assert "warning: how long the steps took is not recorded: " in ended.output


def test_a_run_that_is_not_asked_to_leaves_no_record(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=2)
    (ended,) = run_trainers(run, world=1)
    assert ended.code == 0, ended.output
    assert records(run) == {}


@given(
    st.integers(0, 100),
    st.lists(st.tuples(st.integers(1, 9), st.floats(0.001, 10.0), st.floats(0.0, 10.0)), max_size=20),
)
def test_windows_tile_the_attempt_and_hold_no_pause(first: int, told: list[tuple[int, float, float]]) -> None:
    now = 0.0
    meter = WindowMeter(lambda: now, first)
    done = first
    for steps, step_seconds, paused_seconds in told:
        done += steps
        now += steps * step_seconds
        with meter.paused():
            now += paused_seconds
        meter.read(done)
        assert meter.read(done) is None, "nothing has come since"
    ends = [first]
    for (end, found), (steps, step_seconds, _) in zip(meter.windows, told, strict=True):
        assert end == ends[-1] + steps
        assert found == pytest.approx(step_seconds, rel=1e-6)
        ends.append(end)
