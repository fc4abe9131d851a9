"""The warm spare: when it is there, how it takes over, and that nothing is lost when it is of no use."""

import os
import re
import signal
import time
from pathlib import Path

from capstan_runtime.contract.exit_codes import ExitCode, FailureClass
from capstan_runtime.contract.state import Phase
from capstan_runtime.entry import NICE
from tests.support.training_runs import (
    FIRST_STEP,
    Pod,
    Run,
    StartPod,
    Undisturbed,
    alone,
    losses,
    push,
    scripted,
    wait_until_gone,
)

SPARE = {"warmSpare": True}


def priorities(pid: int) -> set[int]:
    """Of all threads of a process."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return {int((thread / "stat").read_text().rpartition(")")[2].split()[16]) for thread in threads}


def wait_for_log(pod: Pod, text: str) -> str:
    give_up_at = time.monotonic() + 10
    while text not in pod.log.read_text():
        assert time.monotonic() < give_up_at, pod.log.read_text()
        time.sleep(0.02)
    return pod.log.read_text()


def test_spares_take_over_from_killed_trainers_and_the_losses_are_those_of_an_undisturbed_run(
    tmp_path: Path, start_pod: StartPod, undisturbed: Undisturbed
) -> None:
    run, log = Run(tmp_path, overrides=SPARE), tmp_path / "steps.log"
    faults = {"FAULT_KIND": "hang", "FAULT_STEP": "14", "STEP_LOG": str(log), "AWAIT_SAVES": "yes"}
    pods = [start_pod(run, f"small-{rank}", **faults) for rank in range(2)]
    push(pods, fence=1)
    spares = [pod.wait_until_warm() for pod in pods]
    for pod in pods:
        pod.wait_for(Phase.TRAINING, step=10)
    os.kill(pods[0].children()[0], signal.SIGKILL)
    assert all(pod.wait_for(Phase.EXITED).exit is not None for pod in pods)
    assert [pod.children() for pod in pods] == [[spare] for spare in spares], "a spare is no trainer"
    assert {Path(f"/proc/{spare}/oom_score_adj").read_text() for spare in spares} == {"1000\n"}
    push(pods, fence=2, floor_step=10)
    pods[0].wait_for(Phase.TRAINING, Phase.SAVING, Phase.EVALUATING, step=11)
    assert [pod.children()[0] for pod in pods] == spares
    ends = [pod.wait_for_end() for pod in pods]
    assert [(code, state.phase, state.fence) for code, state in ends] == [(0, Phase.SUCCEEDED, 2)] * 2
    assert losses(log)[-20:] == undisturbed.losses[-20:]
    assert "the warm spare takes over, ready" in pods[1].log.read_text()


def test_a_spare_that_took_over_is_as_urgent_as_any_trainer(tmp_path: Path, start_pod: StartPod) -> None:
    """Without privileges: what a process without them gives up, it does not get back."""
    run = Run(tmp_path, steps=5000, overrides=SPARE)
    unprivileged = () if os.geteuid() else ("setpriv", "--inh-caps=-all", "--bounding-set=-all")
    pod = start_pod(run, prefix=unprivileged, STEP_SECONDS="0.01")
    pod.put(alone(1, pod))
    spare = pod.wait_until_warm()
    score = Path(f"/proc/{pod.process.pid}/oom_score_adj").read_text()
    pod.put(alone(2, pod))
    assert pod.wait_for(Phase.TRAINING).fence == 2
    assert pod.children()[0] == spare
    assert os.getpriority(os.PRIO_PROCESS, spare) == os.getpriority(os.PRIO_PROCESS, 0)
    assert NICE not in priorities(spare), "no thread is left that was started nicely"
    assert Path(f"/proc/{spare}/oom_score_adj").read_text() == score
    assert "capstan_trainer_restarts_total 1" in pod.request("GET", "/metrics")[1]["text"]


def test_without_a_spare_that_lives_the_trainer_starts_cold(tmp_path: Path, start_pod: StartPod) -> None:
    pod = start_pod(Run(tmp_path, overrides=SPARE), **scripted(*FIRST_STEP, {"sleep": 60}))
    pod.put(alone(1, pod))
    spare = pod.wait_until_warm()
    os.kill(spare, signal.SIGKILL)
    wait_for_log(pod, "the warm spare has ended; the next trainer starts cold")
    assert "capstan_trainer_warm_spare 0" in pod.request("GET", "/metrics")[1]["text"].splitlines()
    pod.put(alone(2, pod))
    state = pod.wait_for(Phase.TRAINING)
    assert (state.fence, state.exit) == (2, None)
    assert "takes over" not in pod.log.read_text()
    assert pod.wait_until_warm() != spare, "there is a new one"


def test_a_spare_that_is_of_no_use_costs_no_attempt(tmp_path: Path, start_pod: StartPod) -> None:
    spare = ({"print": "cannot import"}, {"sleep": 0.3}, {"exit": 1})
    pod = start_pod(Run(tmp_path, overrides=SPARE), **scripted(*FIRST_STEP, {"sleep": 60}, spare=spare))
    pod.put(alone(1, pod))
    pod.wait_for(Phase.TRAINING)
    wait_for_log(pod, "cannot import")
    pod.put(alone(2, pod))
    state = pod.wait_for(Phase.TRAINING)
    assert (state.fence, state.exit) == (2, None)
    log = wait_for_log(pod, "of no use")
    assert re.search("takes over, still importing.*of no use; the trainer starts cold", log, re.DOTALL)


def test_what_a_spare_printed_is_not_the_trainer_s_last_word(tmp_path: Path, start_pod: StartPod) -> None:
    die = ({"print": "now"}, {"signal": 9, "fence": 2}, {"sleep": 60})
    spare = ({"print": "a warning of an import"},)
    pod = start_pod(Run(tmp_path, overrides=SPARE), **scripted(*FIRST_STEP, *die, spare=spare))
    pod.put(alone(1, pod))
    pod.wait_until_warm()
    pod.put(alone(2, pod))
    end = pod.wait_for(Phase.EXITED).exit
    assert end is not None
    assert (end.fence, end.signal, end.failure, end.message, end.last_lines) == (
        2, "SIGKILL", FailureClass.CRASH, "the trainer was killed by SIGKILL", ["now"],
    )  # fmt: skip
    assert "a warning of an import" in pod.log.read_text()


def test_a_run_that_wants_no_spare_has_none(tmp_path: Path, start_pod: StartPod) -> None:
    pod = start_pod(Run(tmp_path), **scripted(*FIRST_STEP, {"sleep": 60}))
    pod.put(alone(1, pod))
    pod.wait_for(Phase.TRAINING)
    time.sleep(0.2)
    assert len(pod.children()) == 1


def test_the_spare_goes_with_the_pod_and_with_the_supervisor(tmp_path: Path, start_pod: StartPod) -> None:
    stopped = (*FIRST_STEP, {"wait for": int(signal.SIGTERM)}, {"exit": 80})
    for number, ending in enumerate((signal.SIGTERM, signal.SIGKILL)):
        pod = start_pod(Run(tmp_path / str(number), overrides=SPARE), **scripted(*stopped))
        pod.put(alone(1, pod))
        spare = pod.wait_until_warm()
        pod.process.send_signal(ending)
        wait_until_gone(spare)
        assert pod.process.wait(10) == (ExitCode.STOPPED if ending is signal.SIGTERM else -9)


def test_a_run_that_succeeds_leaves_no_spare(tmp_path: Path, start_pod: StartPod) -> None:
    done = {"report": {"phase": "Succeeded"}}
    pod = start_pod(Run(tmp_path, overrides=SPARE), **scripted(*FIRST_STEP, {"wait for": 10}, done, {"exit": 0}))
    pod.put(alone(1, pod))
    spare = pod.wait_until_warm()
    os.kill(pod.children()[0], 10)
    code, words = pod.wait_for_end()
    assert (code, words.phase) == (0, Phase.SUCCEEDED)
    wait_until_gone(spare)
