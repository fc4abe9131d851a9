"""Serving pods with real Ray and real checkpoints, on addresses of one machine."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from capstan_runtime.checkpoint.layout import SHARDS
from capstan_runtime.contract import env
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.serve_replica.one_node import last_words
from tests.serve_replica.pods import (
    INFER,
    LIVE,
    READY,
    SECONDS,
    SIGNATURE,
    WITH_TLS,
    RunningPod,
    config_of,
    make_checkpoint,
    request_body,
)
from tests.support.certificates import Authority, serial_of
from tests.support.checkpoints import flip, folder_of

RAY_ASKS_SECONDS = 30.0
"""How long one of Ray's own questions for a node waits for an answer, whether its raylet lives or not."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s")


@pytest.fixture(scope="module")
def root(folder: Path) -> str:
    return make_checkpoint(folder / "store")


@pytest.fixture(scope="module")
def pods(folder: Path, root: str) -> Iterator[list[RunningPod]]:
    """Two, that started at the same time on this machine, live at once and ready now."""
    started = [RunningPod(folder / name, folder / "store", config_of(root)) for name in ("a", "b")]
    try:
        for pod in started:
            reply = pod.until(lambda pod=pod: pod.ask(LIVE))
            assert reply.status == 200
        for pod in started:
            pod.until(pod.is_ready)
        yield started
    finally:
        for pod in started:
            pod.kill()


def family_of(pod: RunningPod) -> list[psutil.Process]:
    first = psutil.Process(pod.process.pid)
    return [first, *first.children(recursive=True)]


def replica_of(pod: RunningPod) -> psutil.Process:
    return next(process for process in family_of(pod) if process.name().startswith("ray::ServeReplica"))


def test_each_pod_answers_with_the_checkpoint_it_was_told_to_serve(pods: list[RunningPod], root: str) -> None:
    replies = [pod.ask(INFER, request_body(samples=3)) for pod in pods]
    assert all(reply is not None and reply.status == 200 for reply in replies)
    bodies = [json.loads(reply.body) for reply in replies if reply is not None]
    tensors = [{each["name"]: each for each in body["outputs"]} for body in bodies]
    assert [body["parameters"]["model_digest"] for body in bodies] == [root, root]
    assert [each["probabilities"]["shape"] for each in tensors] == [[3, SIGNATURE.outputs]] * 2
    assert tensors[0]["probabilities"] == tensors[1]["probabilities"]


def test_a_pod_is_reached_at_its_address_and_ray_only_from_within(pods: list[RunningPod]) -> None:
    found = {
        (connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
        for process in family_of(pods[0])
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    outside = {(address, port) for address, port in found if address != "127.0.0.1"}
    # Serve's own gRPC server of a replica listens everywhere, whatever it is told; it asks for Ray's token.
    assert {each for each in outside if each[0] != "::"} == {(pods[0].address, env.SERVE_PORT)}
    assert len(outside) == 2


def test_a_pod_runs_no_more_of_ray_than_it_needs(pods: list[RunningPod]) -> None:
    names = sorted(process.name().split(":capstan")[0] for process in family_of(pods[0]))
    ray = ["gcs_server", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::ServeController", "ray::ServeReplica"]
    assert [name for name in names if name not in ("python", Path(sys.executable).name)] == [*ray, "raylet"]


def test_a_replica_that_is_killed_comes_back_while_the_pod_answers(pods: list[RunningPod]) -> None:
    pod = pods[0]
    killed = replica_of(pod)
    killed.kill()
    pod.until(lambda: "died; Ray Serve starts another" in pod.said())
    reply = pod.until(lambda: pod.ask(READY))
    assert reply.status in (200, 503)
    pod.until(pod.is_ready)
    assert replica_of(pod).pid != killed.pid
    assert pods[1].is_ready()


def test_pods_are_rolled_under_load_without_a_request_that_fails(
    pods: list[RunningPod], folder: Path, root: str
) -> None:
    (folder / "body").write_bytes(request_body())
    clients = subprocess.Popen(
        [sys.executable, "-m", "tests.serve_replica.clients", str(folder / "body")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert clients.stdin is not None
    assert clients.stdout is not None

    def tell(word: str) -> None:
        assert clients.stdin is not None
        clients.stdin.write(f"{word}\n")
        clients.stdin.flush()

    new = RunningPod(folder / "c", folder / "store", config_of(root))
    try:
        for pod in pods:
            tell(f"+{pod.address}")
        new.until(new.is_ready)
        tell(f"+{new.address}")
        for pod in pods:
            pod.process.terminate()
            assert pod.ended() == (0, "drained")
            tell(f"-{pod.address}")
        seen, _ = clients.communicate("stop\n", timeout=SECONDS)
    finally:
        clients.kill()
        new.kill()
    result = json.loads(seen)
    assert result["failed"] == []
    assert result["answered"] > 100


def test_a_pod_with_a_certificate_speaks_tls_alone_and_follows_its_renewal(folder: Path, root: str) -> None:
    authority = Authority()
    pod = RunningPod(folder / "t", folder / "store", config_of(root, **WITH_TLS), authority=authority)

    def serial() -> int:
        raw = socket.create_connection((pod.address, env.SERVE_PORT), timeout=SECONDS)
        with authority.client().wrap_socket(raw, server_hostname=pod.address) as connection:
            return serial_of(connection)

    try:
        pod.until(pod.is_ready)
        reply = pod.ask(INFER, request_body())
        assert reply is not None
        assert reply.status == 200
        renewed = authority.issue(pod.address)
        pod.secret.swap(renewed.files)
        pod.until(lambda: serial() == renewed.serial)
        pod.process.terminate()
        assert pod.ended() == (0, "drained")
    finally:
        pod.kill()


def test_a_checkpoint_with_a_wrong_bit_is_never_served(folder: Path) -> None:
    store = folder / "rotten"
    root = make_checkpoint(store)
    flip(next((folder_of(store, root) / SHARDS).iterdir()), -1)
    pod = RunningPod(folder / "r", store, config_of(root))
    try:
        code, message = pod.ended()
    finally:
        pod.kill()
    assert code == ExitCode.CORRUPT_CHECKPOINT
    assert root in message or "shards/" in message, message
    assert "\n" not in message


def test_a_raylet_that_dies_at_its_start_is_told_and_ray_started_again_before_ray_itself_would_notice(
    folder: Path, root: str
) -> None:
    pod = RunningPod(folder / "d", folder / "store", config_of(root))

    def raylets() -> list[psutil.Process]:
        return [process for process in family_of(pod) if process.name() == "raylet"]

    try:
        (raylet,) = pod.until(raylets)
        raylet.kill()
        killed = time.monotonic()
        told = "serve: Ray ended with status 1; starting it again. It said last: Ray's raylet ended with status -9: "
        pod.until(lambda: told in pod.said())
        assert time.monotonic() - killed < RAY_ASKS_SECONDS
        pod.until(raylets)
    finally:
        pod.kill()


FAILED_CHECK = """\
[2026-11-29 08:14:30,517 C 32260 32260] (raylet) node_manager.cc:3576:  An unexpected system state has occurred. \
You have likely discovered a bug in Ray. Check failed: port.has_value() Timed out waiting for file /tmp/c/1/s/agent_port
*** StackTrace Information ***
/ray/core/src/ray/raylet/raylet(+0x2eee5a) [0x55f85e593e5a] ray::raylet::NodeManager::WaitForDashboardAgentPorts()
"""


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (FAILED_CHECK, "Check failed: port.has_value() Timed out waiting for file /tmp/c/1/s/agent_port"),
        ("first\nno such option\n\n", "no such option"),
        ("", "it said nothing"),
        (None, "it said nothing"),
    ],
)
def test_what_ray_says_last_is_its_reason_and_not_its_stack(tmp_path: Path, log: str | None, said: str) -> None:
    if log is not None:
        (tmp_path / "raylet.err").write_text(log)
    assert last_words(tmp_path / "raylet.err") == said
