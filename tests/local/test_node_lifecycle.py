"""A node that stops, is killed, comes back, loses its launcher, or meets a second one."""

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

from capstan_local.client import NODES, PODS, Client, Object
from capstan_local.node import KubeletAccess, Node
from capstan_local.node.launcher import all_pids, mark_of, parent_of
from tests.support.control_planes import ControlPlane
from tests.support.local_node import RunningNode, eventually, node_running, read_log, shell, state_of

TREE = "setsid sleep 4111 & (sleep 4112 &); echo up; exec sleep 4113"


def marked(pod: Object) -> list[int]:
    return [pid for pid in all_pids() if f"/{pod['metadata']['uid']}/" in (mark_of(pid) or "")]


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


async def create_pair(running: RunningNode, namespace: str) -> tuple[Object, Object]:
    """A pod that is always restarted and one that never is, both running a tree of processes."""
    always = await running.create(namespace, "always", shell(TREE), restartPolicy="Always")
    never = await running.create(namespace, "never", shell(TREE))
    for pod in (always, never):
        await running.wait_phase(pod, "Running")
        await eventually(lambda pod=pod: _printed(running.client, pod))
    return always, never


async def _printed(client: Client, pod: Object) -> bool:
    return await read_log(client, pod) == "up\n"


async def is_ready(client: Client, name: str) -> str:
    node = await client.get(NODES, name)
    return next(item["status"] for item in node["status"]["conditions"] if item["type"] == "Ready")


async def test_a_node_that_stops_ends_its_containers_and_says_so(
    client: Client, namespace: str, node_home: Path
) -> None:
    name = f"node-{namespace}"
    async with node_running(client, node_home, name) as running:
        always, never = await create_pair(running, namespace)
        assert await is_ready(client, name) == "True"
    assert (marked(always), marked(never), await is_ready(client, name)) == ([], [], "False")
    ended = await client.get(PODS, "never", namespace)
    assert (ended["status"]["phase"], ended["status"]["reason"]) == ("Failed", "Terminated")
    async with node_running(client, node_home, name) as running:
        back = await running.wait(always, lambda seen: state_of(seen)["restartCount"] == 1 and state_of(seen)["ready"])
        assert state_of(back)["lastState"]["terminated"]["exitCode"] == 143
        assert (await client.get(PODS, "never", namespace))["status"] == ended["status"]
        await client.delete(PODS, (namespace, "always"))
        await running.wait_gone(always)
    await client.delete(NODES, ("", name))


async def test_a_killed_node_leaves_no_process_and_tells_the_truth_when_it_is_back(
    control_plane: ControlPlane, client: Client, namespace: str, node_home: Path
) -> None:
    name = f"node-{namespace}"
    command = [sys.executable, "-m", "capstan_local.node", "--kubeconfig", str(control_plane.kubeconfig)]
    process = await asyncio.create_subprocess_exec(
        *command, "--home", str(node_home), "--name", name, start_new_session=True
    )
    try:
        unused = asyncio.get_running_loop().create_future()
        outside = RunningNode(_named(client, node_home, name), client, node_home, asyncio.Event(), unused)
        always, never = await create_pair(outside, namespace)
        assert len(marked(always)) == 3
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()

    async def all_gone() -> bool:
        return marked(always) + marked(never) == []

    await eventually(all_gone, seconds=5)
    async with node_running(client, node_home, name) as running:
        lost = await running.wait_phase(never, "Failed")
        terminated = state_of(lost)["state"]["terminated"]
        assert (terminated["exitCode"], terminated["reason"]) == (137, "ContainerStatusUnknown")
        back = await running.wait(always, lambda seen: state_of(seen)["restartCount"] == 1 and state_of(seen)["ready"])
        assert back["status"]["podIP"] == (await client.get(PODS, "always", namespace))["status"]["podIP"]
    await client.delete(NODES, ("", name))


def _named(client: Client, home: Path, name: str) -> Node:
    return Node(client, home, name)


async def test_pods_deleted_while_the_node_was_away_leave_nothing(
    client: Client, namespace: str, node_home: Path
) -> None:
    name = f"node-{namespace}"
    async with node_running(client, node_home, name) as running:
        pod = await running.create(namespace, "brief", shell("echo up; exit 0"))
        await running.wait_phase(pod, "Succeeded")
    folder = node_home / "pods" / pod["metadata"]["uid"]
    assert folder.exists()
    await client.delete(PODS, (namespace, "brief"), grace_seconds=0)
    async with node_running(client, node_home, name):
        assert not folder.exists()
    await client.delete(NODES, ("", name))


async def test_a_node_whose_launcher_is_killed_notices_and_goes_on(node: RunningNode, namespace: str) -> None:
    pod = await node.create(namespace, "tree", shell(TREE), restartPolicy="Always")
    await node.wait_phase(pod, "Running")
    await eventually(lambda: _printed(node.client, pod))
    leader = next(pid for pid in marked(pod) if "4113" in command_of(pid))
    os.kill(parent_of(leader), signal.SIGKILL)
    seen = await node.wait(pod, lambda seen: state_of(seen)["restartCount"] == 1 and state_of(seen)["ready"])
    assert state_of(seen)["lastState"]["terminated"]["exitCode"] == 137

    async def only_the_new_tree() -> bool:
        return len(marked(pod)) == 3

    await eventually(only_the_new_tree)


async def test_two_nodes_cannot_share_a_home(node: RunningNode) -> None:
    with pytest.raises(RuntimeError, match="in use by another node"):
        await Node(node.client, node.home, "second").run(asyncio.Event())


async def test_two_nodes_give_their_pods_different_addresses(
    node: RunningNode, client: Client, namespace: str, tmp_path: Path
) -> None:
    async with node_running(client, tmp_path / "other", f"other-{namespace}") as other:
        pods = [await running.create(namespace, running.node.name, shell("sleep 60")) for running in (node, other)]
        seen = [await node.wait_phase(pod, "Running") for pod in pods]
    await client.delete(NODES, ("", f"other-{namespace}"))
    addresses = [pod["status"]["podIP"] for pod in seen]
    assert addresses[0] != addresses[1]
    for address in addresses:
        assert re.fullmatch(r"127\.(6[4-9]|[78]\d|9[0-5])\.\d+\.\d+", address)


async def test_logs_and_exec_need_the_token_when_there_is_one(client: Client, namespace: str, node_home: Path) -> None:
    name = f"node-{namespace}"
    async with node_running(client, node_home, name, access=KubeletAccess(token="right")) as running:
        pod = await running.create(namespace, "secretive", shell("echo hush"))
        await running.wait_phase(pod, "Succeeded")
        port = (await client.get(NODES, name))["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
        base = f"https://127.0.0.1:{port}"
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session:

            async def ask(path: str, token: str | None) -> tuple[int, str]:
                headers = {"Authorization": f"Bearer {token}"} if token else {}
                async with session.get(base + path, headers=headers) as response:
                    return response.status, await response.text()

            logs = f"/containerLogs/{namespace}/secretive/main"
            assert await ask("/healthz", None) == (200, "ok")
            assert await ask(logs, None) == (401, "Unauthorized")
            assert await ask(logs, "wrong") == (401, "Unauthorized")
            assert await ask(f"/exec/{namespace}/secretive/main?command=id", "wrong") == (401, "Unauthorized")
            assert await ask(logs, "right") == (200, "hush\n")
            assert (await ask(f"{logs}?tailLines=-1", "right"))[0] == 400
            assert (await ask(f"/containerLogs/{namespace}/other/main", "right"))[0] == 404
    await client.delete(NODES, ("", name))


async def test_a_stopping_node_starts_nothing_again(client: Client, namespace: str, node_home: Path) -> None:
    """The echo of a pod's last status arrives when the pod has ended already, and looks like a pod to be run."""
    name = f"node-{namespace}"
    async with node_running(client, node_home, name) as running:
        script = "exec sleep 4200"
        pods = [
            await running.create(namespace, f"p{index}", shell(script), restartPolicy="Always") for index in range(20)
        ]
        for pod in pods:
            await running.wait_phase(pod, "Running")
    after = [await client.get(PODS, pod["metadata"]["name"], namespace) for pod in pods]
    assert [state_of(pod)["restartCount"] for pod in after] == [0] * 20
    assert [state_of(pod)["state"]["terminated"]["exitCode"] for pod in after] == [143] * 20
    for pod in pods:
        await client.delete(PODS, (namespace, pod["metadata"]["name"]), grace_seconds=0)
    await client.delete(NODES, ("", name))
