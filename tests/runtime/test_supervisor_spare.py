"""The warm spare: when it is there, how it becomes a trainer, and that nothing is lost when it is of no use."""

import contextlib
import os
import queue
import re
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from capstan_runtime.contract import env
from capstan_runtime.contract.exit_codes import ExitCode, FailureClass
from capstan_runtime.contract.state import Phase, State
from tests.support.training_runs import (
    FIRST_STEP,
    PATIENCE_SECONDS,
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


@contextlib.contextmanager
def hints_to_an_operator() -> Iterator[tuple[str, "queue.Queue[str]"]]:
    """Where it listens, and the paths it was asked for."""
    hints: queue.Queue[str] = queue.Queue()

    class Operator(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            hints.put(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with HTTPServer(("127.0.0.1", 0), Operator) as operator:
        threading.Thread(target=operator.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{operator.server_port}", hints
        operator.shutdown()


def niceness_of_imports(pid: int) -> str | None:
    """What the process was told; None: nothing."""
    environ = dict(each.split("=", 1) for each in Path(f"/proc/{pid}/environ").read_text().split("\0") if each)
    return environ.get(env.SPARE_NICENESS)


def blocked_signals(pid: int) -> int:
    """Whose bit 9 is SIGUSR1's."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"SigBlk:\s*(\w+)", status)[0], 16)


def wait_for_warmth(pod: Pod, is_warm: bool | None) -> State:
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while (state := pod.state()).is_warm is not is_warm:
        assert time.monotonic() < give_up_at, f"{state}\n{pod.log.read_text()}"
        time.sleep(0.02)
    return state


def wait_for_log(pod: Pod, text: str, times: int = 1) -> str:
    give_up_at = time.monotonic() + 10
    while pod.log.read_text().count(text) < times:
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
    assert "the warm spare is the trainer of fence 2, ready" in pods[1].log.read_text()


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
    assert niceness_of_imports(spare) == "10"
    assert 10 not in priorities(spare), "no thread is left that was started nicely"
    assert Path(f"/proc/{spare}/oom_score_adj").read_text() == score
    assert "capstan_trainer_restarts_total 1" in pod.request("GET", "/metrics")[1]["text"]


@pytest.mark.parametrize("wants_spare", [True, False])
def test_a_pod_that_waits_for_its_place_has_its_first_trainer_ready(
    tmp_path: Path, start_pod: StartPod, wants_spare: bool
) -> None:
    with hints_to_an_operator() as (url, hints):
        run = Run(tmp_path, steps=5, overrides={"warmSpare": wants_spare})
        pod = start_pod(run, CAPSTAN_OPERATOR_URL=url)
        assert wait_for_warmth(pod, True) == State(pod="small-0", uid="3f1c-uid", is_warm=True, keep_roots=())
        assert hints.get(timeout=PATIENCE_SECONDS) == "/hint", "the operator may wait for that"
        (first,) = pod.children()
        assert niceness_of_imports(first) is None, "there is no trainer to give way to"
        pod.put(alone(1, pod))
        assert pod.children()[0] == first
        assert pod.state().is_warm in ({True, False, None} if wants_spare else {None})
        code, words = pod.wait_for_end()
    assert (code, words.phase, words.is_warm) == (0, Phase.SUCCEEDED, None)
    assert "the warm spare is the trainer of fence 1, ready" in pod.log.read_text()


def test_a_first_trainer_that_still_imports_is_taken_as_it_is(tmp_path: Path, start_pod: StartPod) -> None:
    spare = ({"wait for": 10},)
    pod = start_pod(Run(tmp_path), **scripted(*FIRST_STEP, {"sleep": 60}, spare=spare))
    (first,) = pod.children()
    assert pod.state().is_warm is False
    pod.put(alone(1, pod))
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not blocked_signals(first) & 1 << 9:
        assert time.monotonic() < give_up_at, pod.log.read_text()
        time.sleep(0.02)
    os.kill(first, 10)
    state = pod.wait_for(Phase.TRAINING)
    assert (pod.children(), state.is_warm) == ([first], None)
    assert "the warm spare is the trainer of fence 1, still importing" in pod.log.read_text()


def test_a_first_trainer_that_ends_before_it_has_a_place_is_not_waited_for(tmp_path: Path, start_pod: StartPod) -> None:
    spare = ({"print": "no such data"}, {"exit": 1})
    pod = start_pod(Run(tmp_path), **scripted(*FIRST_STEP, {"sleep": 60}, spare=spare))
    assert wait_for_warmth(pod, None).phase is Phase.IDLE
    assert pod.children() == []
    pod.put(alone(1, pod))
    assert pod.wait_for(Phase.TRAINING).exit is None


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
    assert "is the trainer of fence 2" not in pod.log.read_text()
    assert pod.wait_until_warm() != spare, "there is a new one"


def test_a_spare_that_is_of_no_use_costs_no_attempt(tmp_path: Path, start_pod: StartPod) -> None:
    spare = ({"print": "cannot import"}, {"sleep": 0.3}, {"exit": 1})
    pod = start_pod(Run(tmp_path, overrides=SPARE), **scripted(*FIRST_STEP, {"sleep": 60}, spare=spare))
    pod.put(alone(1, pod))
    pod.wait_for(Phase.TRAINING)
    wait_for_log(pod, "cannot import", times=2)
    pod.put(alone(2, pod))
    state = pod.wait_for(Phase.TRAINING)
    assert (state.fence, state.exit) == (2, None)
    log = wait_for_log(pod, "of no use", times=2)
    assert re.search("of fence 2, still importing.*of no use; the trainer starts cold", log, re.DOTALL)


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
