"""The first process of a serving pod, with a scripted Ray: what it answers, when it gives up, how it ends."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from capstan_runtime.serve_replica.family import descendants
from tests.serve_replica.pods import INFER, LIVE, READY, RunningPod, config_of, request_body

Script = list[list[str]]
StartPod = Callable[[Script], RunningPod]


@pytest.fixture
def start_pod(tmp_path: Path) -> Iterator[StartPod]:
    pods: list[RunningPod] = []

    def start(script: Script) -> RunningPod:
        command = (sys.executable, "-m", "tests.serve_replica.scripted_pod", json.dumps(script))
        pods.append(RunningPod(tmp_path / f"pod-{len(pods)}", tmp_path, config_of("blake3:00"), command))
        return pods[-1]

    yield start
    for pod in pods:
        pod.kill()


def said(pod: RunningPod, text: str) -> None:
    pod.until(lambda: text in pod.said())


def test_before_a_replica_serves_the_pod_is_live_and_everything_else_is_503_and_closes(start_pod: StartPod) -> None:
    pod = start_pod([["hold"]])
    live = pod.until(lambda: pod.ask(LIVE))
    others = [pod.ask(READY), pod.ask(INFER, request_body(100)), pod.ask("/metrics")]
    assert (live.status, live.body) == (200, b'{"live": true}')
    assert [other and (other.status, other.headers["connection"]) for other in others] == [(503, "close")] * 3
    assert others[1] is not None
    assert json.loads(others[1].body) == {"error": "the model is not ready yet; try again"}


def test_a_checkpoint_that_does_not_verify_ends_the_pod_at_once_with_its_code_and_message(start_pod: StartPod) -> None:
    assert start_pod([["failed", "hold"]]).ended() == (65, "checkpoint 7 is corrupt")


def test_a_replica_that_died_three_times_ends_the_pod_with_what_it_said_last(start_pod: StartPod) -> None:
    pod = start_pod([["warm", "die"], ["die"], ["warm", "die"]])
    message = "the replica's process died 3 times; it said last: life of ['warm', 'die']"
    assert pod.ended() == (1, message)


def test_after_a_death_the_pod_answers_for_itself_again(start_pod: StartPod) -> None:
    pod = start_pod([["warm", "die"], ["hold"]])
    said(pod, "died; Ray Serve starts another")
    assert pod.until(lambda: pod.ask(LIVE)).status == 200
    assert pod.until(lambda: pod.ask(READY)).status == 503


def test_a_pod_whose_dead_replica_nobody_replaces_is_not_live(start_pod: StartPod) -> None:
    pod = start_pod([["warm", "die"]])
    said(pod, "died; Ray Serve starts another")
    live = pod.until(lambda: pod.ask(LIVE))
    assert (live.status, live.body) == (503, b'{"live": false}')


def test_ray_that_ends_is_started_again_and_the_third_time_the_pod_may_be_retried(start_pod: StartPod) -> None:
    pod = start_pod([["exit"]])
    assert pod.ended() == (75, "Ray ended 3 times; it said last: the raylet is gone")
    assert pod.said().count("Ray ended with status 3; starting it again. It said last: the raylet is gone\n") == 2


def test_a_new_replica_takes_over_from_one_that_is_still_there(start_pod: StartPod) -> None:
    pod = start_pod([["warm", "hold"], ["warm", "hold"]])
    said(pod, "heard leave")


def test_a_pod_that_is_asked_to_end_drains_its_replica_closes_its_door_and_leaves_nothing_behind(
    start_pod: StartPod,
) -> None:
    pod = start_pod([["warm", "hold"]])
    said(pod, "ready: ")
    said(pod, "the script is over")
    started = descendants(pod.process.pid)
    pod.process.terminate()
    assert pod.ended() == (0, "drained")
    assert [process for process in started if Path(f"/proc/{process}").exists()] == []
    assert list(pod.temporary.iterdir()) == []


def test_a_pod_that_is_asked_to_end_before_it_is_ready_ends(start_pod: StartPod) -> None:
    pod = start_pod([["hold"]])
    said(pod, "the script is over")
    pod.process.terminate()
    assert pod.ended() == (0, "stopped before it was ready")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runtime": "tensorflow"}, "runtime: Input should be 'flax' or 'torch'"),
        ({"color": 1}, "color: Extra inputs are not permitted"),
    ],
)
def test_a_configuration_that_is_wrong_ends_the_pod_with_the_field(
    start_pod: StartPod, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    pod = start_pod([["hold"]])
    pod.kill()
    file = tmp_path / "pod-0" / "serve.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    again = pod.again()
    assert again == (78, f"CAPSTAN_SERVE_CONFIG: {file}: {message}")


def test_a_temporary_folder_that_is_too_long_for_sockets_is_refused_with_its_limit(start_pod: StartPod) -> None:
    pod = start_pod([["hold"]])
    pod.kill()
    long = pod.temporary / ("x" * 90)
    long.mkdir()
    code, message = pod.again(TMPDIR=str(long))
    assert code == 78
    assert message == f"TMPDIR: {long} is too long for Ray's sockets: at most 72 bytes"
