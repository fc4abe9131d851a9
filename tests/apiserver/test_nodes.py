"""What the API server passes on to a node: logs and exec, with a node that runs pods as processes."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import kubernetes
import pytest
from kubernetes.stream import stream

from tests.apiserver.client import Api, Json, Watch, eventually
from tests.apiserver.kubectl import Kubectl
from tests.apiserver.objects import pod
from tests.support.control_planes import ControlPlane, Server

NODE = "battery-node"


@pytest.fixture(scope="module")
def node(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A node in a process of its own, joined to the server."""
    home = tmp_path_factory.mktemp(f"node-{control_plane.name}")
    argv: list[str | Path] = [sys.executable, "-m", "capstan_local.node", "--name", NODE, "--home", home / "state"]
    server = Server("node", [*argv, "--kubeconfig", control_plane.kubeconfig, "--backoff-seconds", "0.2"], home)
    yield server
    assert server.stop(signal.SIGTERM) == 0, server.log_tail()


@pytest.fixture
async def ready_node(api: Api, node: Server) -> str:
    async def is_ready() -> bool:
        assert node.process.poll() is None, node.log_tail()
        answer = await api.get(f"/api/v1/nodes/{NODE}")
        conditions = answer.body.get("status", {}).get("conditions") or [] if answer.status == 200 else []
        return ("Ready", "True") in {(item["type"], item["status"]) for item in conditions}

    await eventually(is_ready, "the node is ready")
    return NODE


def script(name: str, text: str, **spec: Any) -> Json:
    """A pod on the node whose only container `main` runs a shell script."""
    container = {"name": "main", "image": "local/host", "command": ["/bin/sh", "-c", text]}
    return pod(name, **{"nodeName": NODE, "restartPolicy": "Never", "containers": [container]} | spec)


async def in_phase(api: Api, path: str, phase: str) -> Json:
    async def check() -> Json | None:
        item: Json = (await api.get(path)).expect(200)
        return item if item["status"]["phase"] == phase else None

    found: Json = await eventually(check, f"{path} is {phase}")
    return found


async def test_a_pod_runs_and_its_log_is_read(api: Api, pods: str, ready_node: str) -> None:
    (await api.post(pods, script("p", "echo one; echo two >&2; echo three"))).expect(201)
    ended = await in_phase(api, f"{pods}/p", "Succeeded")
    state = ended["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (state["exitCode"], state["reason"]) == (0, "Completed")
    assert sorted((await api.get(f"{pods}/p/log")).expect(200).split()) == ["one", "three", "two"]
    assert (await api.get(f"{pods}/p/log", tailLines=1)).expect(200) == "three\n"
    assert (await api.get(f"{pods}/p/log", container="main", limitBytes=2)).expect(200) == "on"
    stamped = (await api.get(f"{pods}/p/log", timestamps="true", tailLines=1)).expect(200)
    assert stamped.endswith("Z three\n")
    body = (await api.get(f"{pods}/p/log", container="other")).expect(400)
    assert body["message"] == "container other is not valid for pod p"


async def test_a_log_can_be_followed_until_the_end(
    api: Api, control_plane: ControlPlane, pods: str, ready_node: str
) -> None:
    (await api.post(pods, script("p", "echo one; while [ ! -e stop ]; do sleep 0.05; done; echo two"))).expect(201)
    await in_phase(api, f"{pods}/p", "Running")
    headers = {"Authorization": f"Bearer {api.token}"}
    async with api.session.get(f"{api.url}{pods}/p/log?follow=true", headers=headers) as response:
        assert await response.content.readline() == b"one\n"
        # A relative path is in the container's working directory, the same for exec.
        run_in(control_plane, pods, "p", "touch", "stop")
        assert await response.content.readline() == b"two\n"
        assert await response.content.readline() == b""


async def test_the_log_of_the_life_before(api: Api, pods: str, ready_node: str) -> None:
    text = "if [ -e $MARK ]; then echo second; exit 0; fi; touch $MARK; echo first; exit 4"
    body = script("p", text, restartPolicy="OnFailure", volumes=[{"name": "v", "emptyDir": {}}])
    body["spec"]["containers"][0] |= {
        "volumeMounts": [{"name": "v", "mountPath": "/mark"}],
        "env": [{"name": "MARK", "value": "/mark/done"}],
    }
    (await api.post(pods, body)).expect(201)
    ended = await in_phase(api, f"{pods}/p", "Succeeded")
    (status,) = ended["status"]["containerStatuses"]
    assert (status["restartCount"], status["lastState"]["terminated"]["exitCode"]) == (1, 4)
    assert (await api.get(f"{pods}/p/log")).expect(200) == "second\n"
    assert (await api.get(f"{pods}/p/log", previous="true")).expect(200) == "first\n"


def run_in(plane: ControlPlane, pods: str, name: str, *command: str) -> str:
    """Output of a command in the pod, through the kubernetes client's websocket."""
    core = kubernetes.client.CoreV1Api(kubernetes.config.new_client_from_config(str(plane.kubeconfig)))
    namespace = pods.split("/")[4]
    output: str = stream(
        core.connect_get_namespaced_pod_exec,
        name,
        namespace,
        command=list(command),
        stdout=True,
        stderr=True,
        _request_timeout=20,
    )
    return output


async def test_a_command_runs_in_a_container(api: Api, control_plane: ControlPlane, pods: str, ready_node: str) -> None:
    (await api.post(pods, script("p", "sleep 60", terminationGracePeriodSeconds=1))).expect(201)
    await in_phase(api, f"{pods}/p", "Running")
    said = run_in(control_plane, pods, "p", "/bin/sh", "-c", "echo out; echo err >&2").split()
    assert sorted(said) == ["err", "out"], "two streams, in no order"
    (await api.delete(f"{pods}/p")).expect(200)


@pytest.fixture
def kubectl(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Kubectl:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on the PATH")
    return Kubectl(control_plane, namespace, tmp_path)


async def test_kubectl_shows_logs(api: Api, kubectl: Kubectl, pods: str, ready_node: str) -> None:
    kubectl("apply", "-f", "-", stdin=script("p", "for n in 1 2 3; do echo line $n; done; sleep 60"))
    await in_phase(api, f"{pods}/p", "Running")
    with kubectl.follow("logs", "-f", "p") as lines:
        assert [lines.next() for _ in range(3)] == ["line 1", "line 2", "line 3"]
        kubectl("delete", "pod", "p", "--grace-period=1")
        assert lines.process.wait(15) == 0
    assert "NotFound" in kubectl.run("logs", "p").fails()


@pytest.mark.current_kubernetes_only("exec over websockets: kubectl speaks SPDY to it")
async def test_kubectl_executes(api: Api, kubectl: Kubectl, pods: str, ready_node: str) -> None:
    kubectl("apply", "-f", "-", stdin=script("p", "sleep 60", terminationGracePeriodSeconds=1))
    await in_phase(api, f"{pods}/p", "Running")
    assert kubectl("exec", "p", "--", "echo", "hello") == "hello"
    done = kubectl.run("exec", "p", "--", "/bin/sh", "-c", "echo bad >&2; exit 3")
    assert done.code == 3
    assert "bad" in done.err
    assert kubectl("exec", "-i", "p", "--", "cat", stdin="through the pipe") == "through the pipe"
    kubectl("delete", "pod", "p")


async def until_deleted(watch: Watch) -> AsyncIterator[Json]:
    while (event := await watch.next()) is not None:
        yield event
        if event["type"] == "DELETED":
            return


async def test_a_deleted_pod_is_given_its_grace_by_the_node(api: Api, pods: str, ready_node: str) -> None:
    text = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done"
    created = (await api.post(pods, script("p", text, terminationGracePeriodSeconds=20))).expect(201)
    await in_phase(api, f"{pods}/p", "Running")

    async def is_up() -> bool:
        return (await api.get(f"{pods}/p/log")).body == "up\n"

    await eventually(is_up, "the trap is set")
    async with api.watch(pods, resourceVersion=created["metadata"]["resourceVersion"]) as watch:
        (await api.delete(f"{pods}/p")).expect(200)
        events = [event async for event in until_deleted(watch)]
    phases = [event["object"]["status"]["phase"] for event in events]
    assert events[-1]["type"] == "DELETED"
    assert "Succeeded" in phases[-2:]
