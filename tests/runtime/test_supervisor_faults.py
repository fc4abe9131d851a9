"""The supervisor when something is broken on purpose, and what the operator asks and hears then."""

import asyncio
import json
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from capstan_runtime.contract import env
from capstan_runtime.contract.exit_codes import ExitCode, FailureClass
from capstan_runtime.contract.state import Exit, Phase, Section
from capstan_runtime.supervisor.hint import Hints
from capstan_runtime.supervisor.settings import Settings, read_settings
from tests.support.training_runs import (
    FIRST_STEP,
    PATIENCE_SECONDS,
    Pod,
    Run,
    StartPod,
    alone,
    free_port,
    push,
    scripted,
    wait_until_gone,
)


def test_a_stopped_trainer_is_told_from_a_busy_one(tmp_path: Path, start_pod: StartPod) -> None:
    run = Run(tmp_path, overrides={"deadlines": {"hang": 1}})
    trains = ({"enter": ["Step", 51]}, {"print": "step 51"}, {"report": {"phase": "Training", "step": 51}})
    pod = start_pod(run, **scripted(*trains, {"signal": int(signal.SIGSTOP)}))
    pod.put(alone(1, pod))
    end = pod.wait_for(Phase.EXITED).exit
    assert end is not None
    assert (end.code, end.signal, end.failure) == (ExitCode.HANG, "SIGKILL", FailureClass.HANG)
    assert re.fullmatch(
        r"no step for \d+ s \(limit 1 s\) after step 51: stopped by a signal \(state T\) while computing", end.message
    )
    assert (end.step, end.section, end.process_state, end.stack) == (51, Section.STEP, "T", [])
    assert end.last_lines == ["step 51"]


def test_a_trainer_leaves_at_its_next_checkpoint_when_asked_and_not_before_it_can_hear(
    tmp_path: Path, start_pod: StartPod
) -> None:
    usr2 = int(signal.SIGUSR2)
    leave = ({"sleep": 0.5}, *FIRST_STEP, {"wait for": usr2}, {"report": {"step": 20}}, {"exit": 80})
    pod = start_pod(Run(tmp_path), **scripted(*leave))
    member = alone(1, pod)
    asked = member.model_copy(update={"leave_at_checkpoint": True})
    assert pod.put(member)[0] == 200
    assert pod.put(asked)[0] == 200, "while it still imports, when the signal would kill it"
    assert pod.put(asked)[0] == 200
    assert pod.state().leave_at_checkpoint
    status, answer = pod.put(member)
    assert (status, answer["message"]) == (
        409,
        "leaveAtCheckpoint: fence 1 was asked to leave, and that cannot be taken back",
    )
    end = pod.wait_for(Phase.EXITED).exit
    assert end is not None
    assert (end.code, end.failure, end.message) == (
        ExitCode.STOPPED, FailureClass.STOPPED, "left after the checkpoint of step 20, as asked",
    )  # fmt: skip


def ended_unkillable(pod: Pod, state: str = "asleep (state S)") -> Exit:
    code, words = pod.wait_for_end()
    assert (code, words.phase, words.exit and words.exit.fence) == (ExitCode.HANG, Phase.EXITED, words.fence)
    assert words.exit is not None
    assert (words.exit.code, words.exit.failure) == (ExitCode.HANG, FailureClass.HANG)
    assert f"the trainer cannot be killed: 0.5 s after SIGKILL it is still {state}; " in words.exit.message
    return words.exit


def test_a_pod_whose_hung_trainer_cannot_be_killed_ends(tmp_path: Path, start_pod: StartPod) -> None:
    run = Run(tmp_path, overrides={"deadlines": {"hang": 1}})
    pod = start_pod(run, UNKILLABLE="yes", **scripted(*FIRST_STEP, {"signal": int(signal.SIGSTOP)}))
    push([pod], fence=1)
    end = ended_unkillable(pod, "stopped by a signal (state T)")
    assert re.match(r"no step for \d+ s \(limit 1 s\) after step 1: stopped by a signal \(state T\); ", end.message)
    assert (end.step, end.asked) == (1, False)


def test_a_pod_whose_old_trainer_cannot_be_killed_ends_and_says_so_for_the_new_place(
    tmp_path: Path, start_pod: StartPod
) -> None:
    pod = start_pod(Run(tmp_path), UNKILLABLE="yes", **scripted(*FIRST_STEP, {"sleep": 600}))
    push([pod], fence=1)
    pod.wait_for(Phase.TRAINING)
    push([pod], fence=2)
    end = ended_unkillable(pod)
    assert (end.fence, end.step) == (2, None)


def test_a_deleted_pod_whose_trainer_cannot_be_killed_ends(tmp_path: Path, start_pod: StartPod) -> None:
    run = Run(tmp_path, overrides={"deadlines": {"stop": 0.2, "save": 0.2}})
    pod = start_pod(run, UNKILLABLE="yes", **scripted(*FIRST_STEP, {"wait for": 15}, {"sleep": 600}))
    push([pod], fence=1)
    pod.wait_for(Phase.TRAINING)
    pod.terminate()
    assert ended_unkillable(pod).asked


def test_what_a_trainer_said_of_its_failure_stays_the_failure_of_one_that_cannot_be_killed(
    tmp_path: Path, start_pod: StartPod
) -> None:
    failed = {"report": {"failure": "Numerical", "message": "loss is nan", "badBatch": 7}}
    pod = start_pod(Run(tmp_path), UNKILLABLE="yes", **scripted(*FIRST_STEP, failed, {"sleep": 600}))
    push([pod], fence=1)
    code, words = pod.wait_for_end()
    assert words.exit is not None
    assert (code, words.exit.failure, words.exit.message) == (ExitCode.HANG, FailureClass.NUMERICAL, "loss is nan")


def test_an_exit_code_of_0_is_no_success_of_a_trainer_that_has_not_said_so(tmp_path: Path, start_pod: StartPod) -> None:
    pod = start_pod(Run(tmp_path), **scripted(*FIRST_STEP, {"exit": 0}))
    push([pod], fence=1)
    end = pod.wait_for(Phase.EXITED).exit
    assert end is not None
    assert (end.code, end.failure) == (0, FailureClass.APPLICATION)
    assert end.message == "the trainer exited with code 0 without having said that it is done"


@pytest.mark.parametrize(("exits", "ends"), [(93, 93), (0, 1)])
def test_when_the_job_is_over_a_pod_whose_trainer_has_ended_ends_as_that_did(
    tmp_path: Path, start_pod: StartPod, exits: int, ends: int
) -> None:
    memory = tmp_path / "memory"
    (memory / "left").mkdir(parents=True)
    run = Run(tmp_path, overrides={"warmSpare": True})
    more = {env.MEMORY: str(memory)}
    pod = start_pod(run, **scripted(*FIRST_STEP, {"wait for": 10}, {"print": "why"}, {"exit": exits}), **more)
    member = alone(2, pod)
    over = member.model_copy(update={"is_over": True, "world": 4})
    assert pod.put(over)[0] == 409, "before any attempt there is nothing to end as"
    assert pod.put(member)[0] == 200
    pod.wait_for(Phase.TRAINING)
    status, answer = pod.put(over)
    assert (status, answer["message"]) == (409, "isOver: a trainer runs in this pod; delete the pod to stop it")
    os.kill(pod.children()[0], 10)
    before = pod.wait_for(Phase.EXITED)
    assert pod.put(over.model_copy(update={"fence": 1}))[0] == 409
    status, answer = pod.put(over)
    assert (status, answer["phase"]) == (200, "Stopping")
    code, words = pod.wait_for_end()
    assert (code, words.exit, words.fence) == (ends, before.exit, 2)
    assert "why" in pod.log.read_text().splitlines()
    assert list(memory.iterdir()) == [], "a pod that stays for its log holds no memory"


def test_a_lost_node_is_dark_for_ever(tmp_path: Path, start_pod: StartPod) -> None:
    injected = {"name": "storm-1", "fault": "LoseNode", "rank": 0, "step": 7, "at": 5.0}
    lose = ({"wait for": 10}, {"report": {"injected": injected}}, {"sleep": 60})
    run = Run(tmp_path, overrides={"warmSpare": True})
    pod = start_pod(run, **scripted(*FIRST_STEP, *lose))
    pod.put(alone(1, pod))
    spare = pod.wait_until_warm()
    trainer = pod.children()[0]
    os.kill(trainer, 10)
    for child in (trainer, spare):
        wait_until_gone(child)
    for _ in range(3):
        with pytest.raises(OSError, match=r"refused|reset|disconnect|closed"):
            pod.request("GET", "/healthz")
        time.sleep(0.1)
    pod.terminate()
    time.sleep(0.5)
    assert pod.process.poll() is None, "nobody there hears that the pod is deleted"
    assert pod.termination_log.read_bytes() == b"", "and nobody writes"
    assert pod.children() == []


def test_faults_and_notes_reach_the_state_and_outlive_the_attempt_or_not(tmp_path: Path, start_pod: StartPod) -> None:
    injected = {"name": "storm-1", "fault": "Kill", "rank": 0, "step": 7, "at": 5.0}
    storm = (
        {"report": {"injected": injected, "note": "a spike"}},
        {"report": {"microSplits": 4}, "fence": 1},
        {"signal": 9, "fence": 1},
        {"sleep": 60},
    )
    pod = start_pod(Run(tmp_path), **scripted(*FIRST_STEP, *storm))
    member = alone(1, pod)
    pod.put(member.model_copy(update={"micro_splits": 2}))
    killed = pod.wait_for(Phase.EXITED)
    assert [fault.name for fault in killed.injected] == ["storm-1"]
    assert (killed.notes, killed.micro_splits) == (["a spike"], 4)
    told_again = member.model_copy(update={"micro_splits": 4})
    assert pod.put(told_again)[0] == 200, "the operator follows what the ranks have found, amid the attempt"
    assert list(killed.timeline) == list(killed.seconds | {Phase.EXITED: 0.0})
    assert sum(killed.seconds.values()) == pytest.approx(
        killed.timeline[Phase.EXITED] - killed.timeline[Phase.STARTING],
        abs=1e-6,  # seconds since 1970 have a resolution of 0.24 us in a float
    )
    pod.put(alone(2, pod))
    again = pod.wait_for(Phase.TRAINING)
    give_up_at = time.monotonic() + 10
    while len(again.injected) < 2 and time.monotonic() < give_up_at:
        again = pod.state()
    assert (len(again.injected), again.notes, again.micro_splits, again.fence) == (2, ["a spike"], 1, 2)
    assert again.timeline[Phase.STARTING] > killed.timeline[Phase.EXITED]


def test_each_smaller_micro_step_may_take_as_long_to_compile_as_the_first(tmp_path: Path, start_pod: StartPod) -> None:
    run = Run(tmp_path, overrides={"deadlines": {"firstStep": 3}})
    compiles, trains = FIRST_STEP
    pauses = (
        {"sleep": 1.5},
        {"report": {"microSplits": 2}},
        {"sleep": 1.5},
        {"report": {"microSplits": 6}},
        {"sleep": 1.5},
    )
    pod = start_pod(run, **scripted(compiles, *pauses, trains, {"sleep": 60}))
    pod.put(alone(1, pod))
    give_up_at, tried = time.monotonic() + PATIENCE_SECONDS, pod.state()
    while tried.micro_splits < 6 and time.monotonic() < give_up_at:
        tried = pod.state()
    assert (tried.phase, tried.micro_splits) == (Phase.COMPILING, 6)
    assert tried.split_at == pytest.approx(time.time(), abs=1.5)
    training = pod.wait_for(Phase.TRAINING)
    assert (training.exit, training.split_at) == (None, None)


def hinting_settings(tmp_path: Path, url: str) -> Settings:
    run = Run(tmp_path)
    settings = read_settings(run.environ(**{env.POD_NAME: "small-0", env.POD_IP: "127.0.0.1"}))
    return replace(settings, operator_url=url)


@pytest.mark.parametrize(
    ("answers", "heard"), [([503, 503, 202], 3), ([429, 202], 2), ([202], 1), ([404, 202], 1), ([307, 202], 1)]
)
def test_a_hint_is_repeated_until_an_operator_takes_it(tmp_path: Path, answers: list[int], heard: int) -> None:
    got = []

    async def take(request: web.Request) -> web.Response:
        got.append(await request.json())
        return web.Response(status=answers[len(got) - 1])

    async def play() -> None:
        app = web.Application()
        app.add_routes([web.post("/hint", take)])
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port := free_port())
        await site.start()
        hints = Hints(hinting_settings(tmp_path, f"http://127.0.0.1:{port}"))
        hints.send()
        await hints.flush()
        await runner.cleanup()

    asyncio.run(play())
    assert got == [{"namespace": "default", "job": "small", "pod": "small-0"}] * heard


def test_news_that_come_up_while_a_hint_is_repeated_are_told_once_more_at_most(tmp_path: Path) -> None:
    got = []

    async def take(request: web.Request) -> web.Response:
        got.append(request.path)
        if len(got) == 1:
            for _ in range(5):
                hints.send()
        return web.Response(status=503 if len(got) == 1 else 202)

    async def play() -> None:
        nonlocal hints
        app = web.Application()
        app.add_routes([web.post("/hint", take)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port := free_port()).start()
        hints = Hints(hinting_settings(tmp_path, f"http://127.0.0.1:{port}"))
        hints.send()
        await hints.flush()
        await runner.cleanup()

    hints: Hints = None  # type: ignore[assignment]
    asyncio.run(play())
    assert got == ["/hint"] * 2, "the repetition comes after the news, so it tells them too"


def test_the_next_attempt_clears_what_was_said_of_the_last(tmp_path: Path, start_pod: StartPod) -> None:
    pod = start_pod(Run(tmp_path), **scripted(*FIRST_STEP, {"signal": 9, "fence": 1}, {"sleep": 60}))
    pod.put(alone(1, pod))
    assert pod.wait_for(Phase.EXITED).exit is not None
    assert json.loads(pod.termination_log.read_bytes())["exit"]["signal"] == "SIGKILL"
    pod.put(alone(2, pod))
    assert pod.wait_for(Phase.TRAINING).exit is None
    assert pod.termination_log.read_bytes() == b""
