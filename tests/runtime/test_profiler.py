"""Traces of steps: the ones that were asked for, of rank 0, and none of a window that is past."""

import time
from pathlib import Path

from capstan_runtime.contract.state import Phase, Profile
from tests.support.training_runs import PATIENCE_SECONDS, Run, StartPod, alone, run_trainers


def profiled(folder: Path, plan: dict[str, dict[str, int]], steps: int = 30) -> Run:
    return Run(folder, steps=steps, overrides={"callbacks": {"profiler": plan}})


def window(first: int, count: int) -> dict[str, dict[str, int]]:
    return {"steps": {"first": first, "count": count}}


def traces(run: Run) -> dict[str, str]:
    """What the numpy engine traces: the steps that were made meanwhile, by the window's name."""
    return {path.parent.name: path.read_text() for path in sorted((run.store / "profile").glob("*/steps"))}


def test_the_steps_of_the_window_are_traced_on_rank_0_alone(tmp_path: Path) -> None:
    run = profiled(tmp_path, window(7, 3))
    first, second = run_trainers(run, world=2)
    assert (first.code, second.code) == (0, 0), first.output
    assert traces(run) == {"000000000007.1": "7-9"}
    place = str(run.store / "profile" / "000000000007.1")
    assert [each.profile for each in first.progress if each.profile] == [
        Profile(first_step=7, last_step=9, place=place)
    ]
    assert [each.profile for each in second.progress if each.profile] == []
    assert f"steps 7 to 9 are traced in {place}" in first.output


def test_a_window_may_begin_with_the_first_step_and_ends_with_the_last(tmp_path: Path) -> None:
    run = profiled(tmp_path, window(1, 1000))
    (ended,) = run_trainers(run, world=1)
    assert ended.code == 0, ended.output
    assert traces(run) == {"000000000001.1": "1-30"}


def test_an_attempt_that_begins_after_the_window_does_not_trace_it_again(tmp_path: Path) -> None:
    run = profiled(tmp_path, window(3, 2))
    run_trainers(run, world=1, AWAIT_SAVES="1", FAULT_KIND="kill", FAULT_STEP="15")
    (ended,) = run_trainers(run, world=1, fence=2, floor_step=10)
    assert ended.code == 0, ended.output
    assert traces(run) == {"000000000003.1": "3-4"}


def test_a_trace_that_cannot_be_written_is_a_note_and_no_failure(tmp_path: Path) -> None:
    run = profiled(tmp_path, window(3, 2))
    run.store.mkdir()
    (run.store / "profile").write_text("this is no folder")
    (ended,) = run_trainers(run, world=1)
    assert ended.code == 0, ended.output
    (note,) = [each.note for each in ended.progress if each.note]
    assert note.startswith("steps 3 and following are not traced: NotADirectoryError: ")


def test_each_new_request_is_answered_once_while_the_trainer_runs(tmp_path: Path, start_pod: StartPod) -> None:
    run = profiled(tmp_path, {"annotation": {"count": 4}}, steps=100_000)
    pod = start_pod(run, STEP_SECONDS="0.01")
    member = alone(1, pod)
    assert pod.put(member)[0] == 200
    pod.wait_for(Phase.TRAINING, step=1)
    made: list[Profile] = []
    for request in ("monday", "tuesday"):
        assert pod.put(member.model_copy(update={"profile_request": request}))[0] == 200
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while (profile := pod.state().profile) is None or profile.request != request:
            assert time.monotonic() < give_up_at, pod.log.read_text()
            time.sleep(0.05)
        made.append(profile)
    assert pod.state().profile_request == "tuesday"
    assert [each.last_step - each.first_step for each in made] == [3, 3]
    assert made[1].first_step > made[0].last_step
    assert list(traces(run).values()) == [f"{each.first_step}-{each.last_step}" for each in made]
