"""The supervisor as a process, with the numpy trainer as its child: what the operator sees and what it can ask."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from capstan_runtime.contract.exit_codes import ExitCode, FailureClass
from capstan_runtime.contract.state import Phase, State
from tests.support.training_runs import (
    TOKEN,
    Pod,
    Run,
    StartPod,
    Undisturbed,
    alone,
    children_of,
    is_alive,
    losses,
    push,
)


def test_two_pods_train_to_success_and_leave_last_words(tmp_path: Path, start_pod: StartPod) -> None:
    run = Run(tmp_path)
    pods = [start_pod(run, f"small-{rank}") for rank in range(2)]
    assert pods[0].state().model_copy(update={"is_warm": None}) == State(pod="small-0", uid="3f1c-uid", keep_roots=())
    push(pods, fence=1)
    ends = [pod.wait_for_end() for pod in pods]
    assert [code for code, _ in ends] == [0, 0]
    first, second = (state for _, state in ends)
    assert (first.phase, first.fence, first.rank, first.world, first.step, first.steps, first.exit) == (
        Phase.SUCCEEDED, 1, 0, 2, 30, 30, None,
    )  # fmt: skip
    assert first.checkpoint is not None
    assert first.checkpoint.step == 30
    assert second.checkpoint is None
    assert first.metrics["accuracy"] == second.metrics["accuracy"]
    assert "step 30/30" in pods[0].log.read_text()


def test_whoever_lacks_the_token_learns_and_changes_nothing(tmp_path: Path, start_pod: StartPod) -> None:
    pod = start_pod(Run(tmp_path))
    refused = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": "the job's bearer token is missing or wrong",
        "reason": "Unauthorized",
        "code": 401,
    }
    body = alone(1, pod).model_dump_json(by_alias=True)
    for token in (None, "", TOKEN[:-1], TOKEN + "x"):
        assert pod.request("GET", "/state", token=token) == (401, refused)
        assert pod.request("PUT", "/membership", body, token=token) == (401, refused)
    assert pod.state().phase is Phase.IDLE
    assert pod.request("GET", "/healthz", token=None)[0] == 200
    status, metrics = pod.request("GET", "/metrics", token=None)
    assert status == 200
    assert 'capstan_trainer_phase{phase="Idle"} 1' in metrics["text"]


def test_an_older_fence_is_refused_and_the_same_membership_may_be_repeated(tmp_path: Path, start_pod: StartPod) -> None:
    pod = start_pod(Run(tmp_path, steps=2000), STEP_SECONDS="0.01")
    member = alone(5, pod)
    assert pod.put(member)[0] == 200
    pod.wait_for(Phase.TRAINING)
    trainer = pod.children()
    assert pod.put(member)[0] == 200
    for other in (alone(4, pod), member.model_copy(update={"rank": 1, "world": 2})):
        status, answer = pod.put(other)
        assert (status, answer["kind"], answer["reason"], answer["code"]) == (409, "Status", "Conflict", 409)
        assert "is not newer than 5, which this pod follows" in answer["message"]
    assert (pod.children(), pod.state().fence) == (trainer, 5)


def test_a_membership_that_makes_no_sense_is_refused_with_the_reason(tmp_path: Path, start_pod: StartPod) -> None:
    pod = start_pod(Run(tmp_path))
    for body, status, message in (
        ("{", 422, "membership: Invalid JSON"),
        ('{"fence": 0, "rank": 0, "world": 1, "coordinator": "a:1"}', 422, "fence: Input should be greater"),
        ('{"fence": 1, "rank": 3, "world": 2, "coordinator": "a:1"}', 422, "rank 3 is outside world 2"),
        ("x" * 100_000, 413, "Maximum request body size 65536 exceeded"),
    ):
        found, answer = pod.request("PUT", "/membership", body)
        assert (found, answer["code"]) == (status, status)
        assert message in answer["message"]
        assert pod.state().refused == answer["message"], "the operator shows it"
    assert pod.state().phase is Phase.IDLE


def test_a_membership_of_a_newer_operator_is_taken_without_what_is_not_known(
    tmp_path: Path, start_pod: StartPod
) -> None:
    pod = start_pod(Run(tmp_path))
    document = alone(1, pod).document() | {"topology": {"rack": "r7"}}
    assert pod.request("PUT", "/membership", json.dumps(document))[0] == 200
    assert pod.wait_for_end()[0] == 0


def test_a_pod_shows_why_it_did_not_take_the_newest_membership_until_it_takes_one(
    tmp_path: Path, start_pod: StartPod
) -> None:
    pod = start_pod(Run(tmp_path, steps=2000), STEP_SECONDS="0.01")
    member = alone(5, pod)
    assert pod.put(member)[0] == 200
    assert pod.put(alone(4, pod))[0] == 409
    assert pod.state().refused is None, "of an operator that is late, the newest was taken"
    assert pod.request("PUT", "/membership", '{"fence": 6, "rank": "one"}')[0] == 422
    assert pod.state().refused == "rank: Input should be a valid integer, unable to parse string as an integer"
    status, answer = pod.put(member.model_copy(update={"rank": 1, "world": 2}))
    assert (status, pod.state().refused) == (409, answer["message"])
    assert pod.put(member)[0] == 200
    assert pod.state().refused is None


def test_a_killed_trainer_is_reported_and_the_next_membership_resumes(
    tmp_path: Path, start_pod: StartPod, undisturbed: Undisturbed
) -> None:
    run, log = Run(tmp_path), tmp_path / "steps.log"
    faults = {"FAULT_KIND": "kill", "FAULT_STEP": "14", "FAULT_RANK": "1", "STEP_LOG": str(log), "AWAIT_SAVES": "yes"}
    pods = [start_pod(run, f"small-{rank}", **faults) for rank in range(2)]
    push(pods, fence=1)
    lost, killed = (pod.wait_for(Phase.EXITED) for pod in pods)
    assert killed.exit is not None
    assert lost.exit is not None
    assert (killed.exit.code, killed.exit.signal, killed.exit.failure, killed.exit.message) == (
        137, "SIGKILL", FailureClass.CRASH, "the trainer was killed by SIGKILL",
    )  # fmt: skip
    assert (lost.exit.code, lost.exit.signal, lost.exit.failure) == (75, None, FailureClass.RETRYABLE)
    assert lost.exit.message.startswith("rank 0 lost a peer")
    push(pods, fence=2, floor_step=10)
    ends = [pod.wait_for_end() for pod in pods]
    assert [(code, state.phase, state.fence) for code, state in ends] == [(0, Phase.SUCCEEDED, 2)] * 2
    assert [state.resumed_from.step for _, state in ends if state.resumed_from] == [10, 10]
    assert losses(log)[-20:] == undisturbed.losses[-20:]


def test_trainers_killed_at_random_steps_end_with_the_losses_of_an_undisturbed_run(
    tmp_path: Path, start_pod: StartPod, undisturbed: Undisturbed
) -> None:
    run, log = Run(tmp_path), tmp_path / "steps.log"
    pods = [start_pod(run, f"small-{rank}", STEP_SECONDS="0.03", STEP_LOG=str(log)) for rank in range(2)]
    chance, floor_step = random.Random(11), 0
    for fence in (1, 2, 3):
        push(pods, fence, floor_step)
        victim = chance.choice(pods)
        victim.wait_for(Phase.TRAINING, step=min(floor_step + chance.randint(1, 12), 22))
        os.kill(victim.children()[0], signal.SIGKILL)
        for pod in pods:
            pod.wait_for(Phase.EXITED)
        newest = pods[0].state().checkpoint
        floor_step = newest.step if newest else 0
    push(pods, 4, floor_step)
    assert [code for code, _ in (pod.wait_for_end() for pod in pods)] == [0, 0]
    assert sorted(set(losses(log))) == undisturbed.losses, "a step done again has the same loss to the last digit"
    assert len(losses(log)) > 30, "some steps were done again"


def test_a_newer_membership_kills_the_trainer_of_the_old_one(tmp_path: Path, start_pod: StartPod) -> None:
    pod = start_pod(Run(tmp_path, steps=2000), STEP_SECONDS="0.01")
    pod.put(alone(1, pod))
    pod.wait_for(Phase.TRAINING, step=3)
    (old,) = pod.children()
    pod.put(alone(2, pod))
    assert pod.wait_for(Phase.TRAINING).fence == 2
    assert not is_alive(old)
    assert pod.state().exit is None
    assert "capstan_trainer_restarts_total 1" in pod.request("GET", "/metrics")[1]["text"]


def test_an_exception_reaches_the_state_with_message_and_last_lines(tmp_path: Path, start_pod: StartPod) -> None:
    pod = start_pod(Run(tmp_path), FAULT_KIND="raise", FAULT_STEP="3")
    pod.put(alone(1, pod))
    end = pod.wait_for(Phase.EXITED).exit
    assert end is not None
    assert (end.code, end.signal, end.failure, end.message) == (
        1, None, FailureClass.APPLICATION, "RuntimeError: the step went wrong",
    )  # fmt: skip
    assert end.last_lines[-2:] == ["RuntimeError: the step went wrong", "and this is detail"]
    words = State.model_validate_json(pod.termination_log.read_bytes())
    assert words == pod.state()


def test_an_exit_without_a_word_is_classified_by_its_code(tmp_path: Path, start_pod: StartPod) -> None:
    pod = start_pod(Run(tmp_path), FAULT_KIND="exit", FAULT_STEP="3", FAULT_CODE="93")
    pod.put(alone(1, pod))
    end = pod.wait_for(Phase.EXITED).exit
    assert end is not None
    assert (end.code, end.failure, end.message) == (
        93, FailureClass.DO_NOT_RESTART, "the trainer exited with code 93",
    )  # fmt: skip


def test_a_hang_is_found_its_stacks_are_dumped_and_the_trainer_is_killed(tmp_path: Path, start_pod: StartPod) -> None:
    run = Run(tmp_path, overrides={"deadlines": {"hang": 1}})
    pod = start_pod(run, FAULT_KIND="hang", FAULT_STEP="7")
    pod.put(alone(1, pod))
    end = pod.wait_for(Phase.EXITED).exit
    assert end is not None
    assert (end.code, end.signal, end.failure) == (ExitCode.HANG, "SIGKILL", FailureClass.HANG)
    assert re.fullmatch(r"no step for \d s \(limit 1 s\) after step [1-7]: asleep \(state S\).*", end.message)
    assert end.process_state == "S"
    assert [frame.split(" ")[1] for frame in end.stack[:2]] == ["_fail", "train_step"]
    assert end.last_lines
    assert "most recent call first" not in "".join(end.last_lines), "what it said before it was asked"
    log = pod.log.read_text()
    assert "most recent call first" in log
    assert "in _fail" in log
    assert pod.children() == []


def test_sigterm_saves_and_leaves_and_the_next_pod_loses_no_step(tmp_path: Path, start_pod: StartPod) -> None:
    run, log = Run(tmp_path, steps=200, save_every=1000), tmp_path / "steps.log"
    pods = [start_pod(run, f"small-{rank}", STEP_SECONDS="0.02", STEP_LOG=str(log)) for rank in range(2)]
    push(pods, fence=1)
    pods[0].wait_for(Phase.TRAINING, step=5)
    pods[1].terminate()  # one pod is drained: the others stop at the same step
    ends = [pods[1].wait_for_end()]
    stopped = pods[0].wait_for(Phase.EXITED)
    assert stopped.exit is not None
    assert (stopped.exit.code, stopped.exit.failure) == (ExitCode.STOPPED, FailureClass.STOPPED)
    assert stopped.checkpoint is not None
    assert stopped.checkpoint.step == stopped.step == losses(log)[-1][0] < 200
    code, words = ends[0]
    assert (code, words.phase) == (ExitCode.STOPPED, Phase.EXITED)
    assert words.exit is not None
    assert words.exit.message == "stopped as asked"
    again = [pods[0], start_pod(run, "small-1b", STEP_LOG=str(log))]
    push(again, fence=2, floor_step=stopped.step)
    code, state = again[1].wait_for_end()
    assert (code, state.resumed_from and state.resumed_from.step) == (0, stopped.step)
    assert [step for step, _ in losses(log)] == list(range(1, 201))


def test_sigterm_without_a_trainer_ends_at_once(tmp_path: Path, start_pod: StartPod) -> None:
    pod = start_pod(Run(tmp_path))
    pod.terminate()
    code, words = pod.wait_for_end()
    assert (code, words.phase, words.exit) == (ExitCode.STOPPED, Phase.IDLE, None)


def test_no_trainer_outlives_its_supervisor(tmp_path: Path, start_pod: StartPod) -> None:
    pod = start_pod(Run(tmp_path, steps=2000), STEP_SECONDS="0.01")
    pod.put(alone(1, pod))
    pod.wait_for(Phase.TRAINING)
    (trainer,) = pod.children()
    os.kill(pod.process.pid, signal.SIGKILL)
    give_up_at = time.monotonic() + 5
    while is_alive(trainer):
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


def test_a_full_log_costs_its_lines_and_not_the_training(tmp_path: Path, start_pod: StartPod) -> None:
    pod = start_pod(Run(tmp_path, steps=5), log_to="/dev/full")
    pod.put(alone(1, pod))
    code, words = pod.wait_for_end()
    assert (code, words.phase, words.step) == (0, Phase.SUCCEEDED, 5)


def test_a_log_that_nobody_reads_never_stops_the_supervisor(tmp_path: Path, start_pod: StartPod) -> None:
    run = Run(tmp_path, overrides={"deadlines": {"form": 2}})
    pod = start_pod(run, log_to=subprocess.PIPE, FLOOD="300000")  # more than the two pipes to the reader hold
    pod.put(alone(1, pod))
    end = pod.wait_for(Phase.EXITED).exit
    assert end is not None
    assert (end.failure, end.message[:15]) == (FailureClass.HANG, "no progress for")
    pod.terminate()
    assert pod.wait_for_end()[0] == ExitCode.STOPPED


NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


@pytest.mark.skipif(
    subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode != 0, reason="needs PID namespaces"
)
def test_as_pid_1_it_collects_orphans_and_keeps_the_status_of_the_trainer(tmp_path: Path, start_pod: StartPod) -> None:
    faults = {"ORPHANS": "5", "FAULT_KIND": "exit", "FAULT_STEP": "40", "FAULT_CODE": "93", "STEP_SECONDS": "0.02"}
    pod = start_pod(Run(tmp_path, steps=100), prefix=NAMESPACE, **faults)
    pod.put(alone(1, pod))
    pod.wait_for(Phase.TRAINING)
    (first,) = pod.children()
    assert Path(f"/proc/{first}/status").read_text().split("NSpid:")[1].split()[1] == "1"
    end = pod.wait_for(Phase.EXITED).exit
    assert end is not None
    assert (end.code, end.failure) == (93, FailureClass.DO_NOT_RESTART)
    assert children_of(first) == [], "no zombie is left"


def test_a_trainer_that_cannot_be_imported_says_so(tmp_path: Path, start_pod: StartPod) -> None:
    pod = start_pod(Run(tmp_path), TRAINER_MODULE="tests.support.no_such_trainer")
    pod.put(alone(1, pod))
    end = pod.wait_for(Phase.EXITED).exit
    assert end is not None
    assert (end.code, end.failure) == (1, FailureClass.APPLICATION)
    assert re.fullmatch(
        r"the trainer exited with code 1 before it began: \S+: No module named tests.support.no_such_trainer",
        end.message,
    )


def test_the_operator_is_hinted_at_the_first_step_each_commit_and_the_end(tmp_path: Path, start_pod: StartPod) -> None:
    hints: list[tuple[str, dict[str, str]]] = []

    class Operator(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            hints.append((self.path, body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with HTTPServer(("127.0.0.1", 0), Operator) as operator:
        threading.Thread(target=operator.serve_forever, daemon=True).start()
        pod = start_pod(Run(tmp_path), CAPSTAN_OPERATOR_URL=f"http://127.0.0.1:{operator.server_port}/")
        pod.put(alone(1, pod))
        assert pod.wait_for_end()[0] == 0
        operator.shutdown()
    assert 2 <= len(hints) <= 9
    body = {"namespace": "default", "job": "small", "pod": "small-0"}
    assert hints == [("/hint", body)] * len(hints)


def test_an_operator_that_does_not_answer_holds_nothing_up(tmp_path: Path, start_pod: StartPod) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        pod = start_pod(Run(tmp_path, steps=5), CAPSTAN_OPERATOR_URL=url)
        pod.put(alone(1, pod))
        code, words = pod.wait_for_end()
    assert (code, words.phase) == (0, Phase.SUCCEEDED)


def test_a_missing_secret_ends_the_pod_with_the_config_code(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"job": "default/small"}))
    pod = Pod(run, "small-0")
    assert pod.process.wait(30) == ExitCode.CONFIG
    assert "supervisor: the job's Secret is not readable" in pod.log.read_text()
