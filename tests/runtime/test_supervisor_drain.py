"""One pod of several is deleted: all ranks save and leave together, and what is broken holds nobody up for long."""

import contextlib
import http.client
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from capstan_runtime.contract.exit_codes import ExitCode, FailureClass
from capstan_runtime.contract.state import Exit, Phase, State
from tests.support.training_runs import PATIENCE_SECONDS, Pod, Run, StartPod, alone, push

QUICK_DEADLINES = {"deadlines": {"stop": 1, "save": 2, "hang": 60}}


def three_pods(run: Run, start_pod: StartPod, **faults: str) -> list[Pod]:
    pods = [start_pod(run, f"small-{rank}", STEP_SECONDS="0.02", **faults) for rank in range(3)]
    push(pods, fence=1)
    for pod in pods:
        pod.wait_for(Phase.TRAINING, step=5)
    return pods


def of_three_ranks(folder: Path, **overrides: object) -> Run:
    return Run(folder, steps=5000, save_every=4000, overrides={"training": {"virtualRanks": 3}, **overrides})


def states_until_it_is_gone(pod: Pod) -> list[State]:
    """What it answered from now to its end, without repetitions of a phase."""
    seen: list[State] = []
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while pod.process.poll() is None:
        assert time.monotonic() < give_up_at, seen[-1:]
        with contextlib.suppress(OSError, http.client.HTTPException):  # it ends, perhaps in the middle of an answer
            state = pod.state()
            seen = [*(seen[:-1] if seen and seen[-1].phase is state.phase else seen), state]
        time.sleep(0.02)
    return seen


def ending(end: Exit | None) -> tuple[int, FailureClass, str] | None:
    return (end.code, end.failure, end.message) if end is not None else None


def test_a_deleted_pod_answers_until_all_that_was_done_is_committed_and_the_others_stay(
    tmp_path: Path, start_pod: StartPod
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        # Its hint is not taken: the pod is still there for a while after its trainer has gone.
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        pods = three_pods(of_three_ranks(tmp_path), start_pod, SLOW_COMMIT="1.5", CAPSTAN_OPERATOR_URL=url)
        pods[1].terminate()
        seen = states_until_it_is_gone(pods[1])
    assert [state.phase for state in seen[-2:]] == [Phase.STOPPING, Phase.EXITED]
    assert {state.phase for state in seen} <= {Phase.TRAINING, Phase.STOPPING, Phase.EXITED}
    assert seen[-1].exit is not None
    step = seen[-1].exit.step
    assert ending(seen[-1].exit) == (ExitCode.STOPPED, FailureClass.STOPPED, "stopped as asked")
    code, words = pods[1].wait_for_end()
    assert (code, words.exit) == (ExitCode.STOPPED, seen[-1].exit)
    survivors = [pods[rank].wait_for(Phase.EXITED) for rank in (0, 2)]
    message = f"stopped with the other ranks after step {step}"
    assert [ending(state.exit) for state in survivors] == [(ExitCode.STOPPED, FailureClass.STOPPED, message)] * 2
    assert survivors[0].checkpoint is not None
    assert survivors[0].checkpoint.step == step, "every step that was done"
    asked = [state.exit.asked for state in (words, *survivors) if state.exit is not None]
    assert asked == [True, False, False], "only one of the three got a SIGTERM"
    assert [pods[rank].process.poll() for rank in (0, 2)] == [None, None], "they wait for the next membership"
    pods[0].put(alone(2, pods[0], floor_step=survivors[0].checkpoint.step))
    resumed = pods[0].wait_for(Phase.TRAINING).resumed_from
    assert resumed is not None
    assert resumed.step == step


def test_the_pod_of_rank_0_leaves_word_of_its_commit(tmp_path: Path, start_pod: StartPod) -> None:
    pods = three_pods(of_three_ranks(tmp_path), start_pod)
    pods[0].terminate()
    code, words = pods[0].wait_for_end()
    assert words.exit is not None
    assert words.checkpoint is not None
    assert (code, words.checkpoint.step) == (ExitCode.STOPPED, words.exit.step)


def test_reading_the_last_checkpoint_back_does_not_keep_a_stopped_pod(tmp_path: Path, start_pod: StartPod) -> None:
    """Its deadline would end it, and that would be a failure of all the others."""
    run = of_three_ranks(tmp_path, deadlines={"stop": 4, "save": 10})
    slow = {"SLOW_COMMIT": "6", "SLOW_READ": str(tmp_path / "read"), "SLOW_READ_SECONDS": "40"}
    pods = three_pods(run, start_pod, **slow)
    pods[1].terminate()
    ends = [ending(pods[rank].wait_for(Phase.EXITED).exit) for rank in (0, 2)]
    assert [end[:2] for end in ends if end] == [(ExitCode.STOPPED, FailureClass.STOPPED)] * 2
    assert pods[1].wait_for_end()[0] == ExitCode.STOPPED
    assert not (tmp_path / "read").exists(), "nobody waited for it"


def test_a_rank_that_is_lost_when_all_is_committed_makes_no_failure_of_the_stop(
    tmp_path: Path, start_pod: StartPod
) -> None:
    run = of_three_ranks(tmp_path, deadlines={"stop": 40})
    pods = three_pods(run, start_pod, SLOW_READ=str(tmp_path / "read"), SLOW_READ_SECONDS="60")
    pods[1].terminate()
    while pods[0].state().checkpoint is None:
        time.sleep(0.02)
    os.kill(pods[2].children()[0], signal.SIGKILL)
    stopped = pods[0].wait_for(Phase.EXITED)
    assert stopped.exit is not None
    assert stopped.checkpoint is not None
    assert (stopped.exit.failure, stopped.checkpoint.step) == (FailureClass.STOPPED, stopped.exit.step)


def test_a_pod_that_is_deleted_does_not_evaluate_before_it_saves(tmp_path: Path, start_pod: StartPod) -> None:
    run = Run(tmp_path, steps=5000, save_every=4000, overrides={"training": {"evaluation": {"everySteps": 1}}})
    pod = start_pod(run, STEP_SECONDS="0.1")
    pod.put(alone(1, pod))
    pod.wait_for(Phase.TRAINING, Phase.EVALUATING, step=3)
    pod.terminate()
    code, words = pod.wait_for_end()
    assert words.checkpoint is not None
    evaluations = [line for line in pod.log.read_text().splitlines() if "validation loss" in line]
    assert (code, evaluations[-1].split("/")[0]) == (ExitCode.STOPPED, f"step {words.checkpoint.step - 1:>4}")


@pytest.mark.parametrize("wrong", [signal.SIGSTOP, signal.SIGKILL])
def test_a_peer_that_hangs_or_dies_keeps_a_deleted_pod_no_longer_than_its_deadlines(
    tmp_path: Path, start_pod: StartPod, wrong: signal.Signals
) -> None:
    pods = three_pods(of_three_ranks(tmp_path, **QUICK_DEADLINES), start_pod)
    os.kill(pods[2].children()[0], wrong)
    pods[1].terminate()
    code, words = pods[1].wait_for_end()
    assert (code, words.phase) == (ExitCode.STOPPED, Phase.EXITED)
    assert words.exit is not None
    assert words.timeline[Phase.EXITED] - words.timeline[Phase.STOPPING] < 1 + 2 + 10, "stop, save, and a busy machine"


def test_a_survivor_that_is_given_its_next_place_does_not_finish_its_save(tmp_path: Path, start_pod: StartPod) -> None:
    pods = three_pods(of_three_ranks(tmp_path), start_pod, SLOW_COMMIT="600")
    pods[1].terminate()
    pods[2].wait_for(Phase.STOPPING)
    pods[2].put(alone(2, pods[2]))
    assert pods[2].wait_for(Phase.TRAINING).fence == 2
