"""`capstan local`: the embedded cluster with Capstan on it, as one background process of this user.

up ──starts──▶ serve (API server, controllers, node) ──runs──▶ operator, a Deployment like on any cluster
"""

import argparse
import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from capstan_local.client import Access, ApiError, Client, Resource, Unreachable
from capstan_local.cluster import LocalControlPlane
from capstan_local.controllers import run_controllers
from capstan_local.node.images import ImageRule, host_rule
from capstan_local.node.kubelet import KubeletAccess
from capstan_local.node.node import Node
from capstan_operator.api.meta import FIELD_MANAGER, GROUP
from capstan_operator.crdgen import training_job_crd

NAMESPACE = "capstan-system"
OPERATOR = "capstan-operator"
OPERATOR_PORT = 8080
READY_SECONDS = 60.0
STOP_SECONDS = 40.0
POLL_SECONDS = 0.05

CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", namespaced=False)
NAMESPACES = Resource("", "v1", "namespaces", namespaced=False)
SERVICES = Resource("", "v1", "services")
DEPLOYMENTS = Resource("apps", "v1", "deployments")
NODES = Resource("", "v1", "nodes", namespaced=False)

Manifest = dict[str, Any]


class LocalClusterError(Exception):
    """One line for the user: what did not work and where to look."""


def main(options: argparse.Namespace) -> int:
    """Runs one action of `capstan local`."""
    actions = {"up": _up, "down": _down, "status": _status, "serve": _serve, "node": _node}
    try:
        return actions[options.action](options)
    except (LocalClusterError, ApiError, Unreachable, OSError) as error:
        print(f"capstan local {options.action}: {error}", file=sys.stderr)
        return 1


@dataclass(frozen=True, slots=True)
class Home:
    """The folder that holds everything of one local cluster."""

    folder: Path

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    @property
    def log(self) -> Path:
        return self.folder / "cluster.log"

    @property
    def lock(self) -> Path:
        """Held by the serving process for as long as it lives; its content is that process's pid."""
        return self.folder / "cluster.lock"

    def running_pid(self) -> int | None:
        """The pid of the process that serves this home; None when none does."""
        try:
            with self.lock.open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return None
        except BlockingIOError:
            return int(self.lock.read_text() or 0) or None
        return None


def image_rules(home: Path) -> list[ImageRule]:
    """Capstan's images run from this very environment; `local/host` is the machine's own programs."""
    path = [str(Path(sys.executable).parent), *os.environ.get("PATH", os.defpath).split(os.pathsep)]
    # Two workers share the machine; a thread per core in each would fight over the cores in every collective.
    threads = str(max(1, (os.cpu_count() or 1) // 2))
    environ = {
        "OMP_NUM_THREADS": threads,
        # Shared by all pods: a restarted trainer does not compile its step again.
        "JAX_COMPILATION_CACHE_DIR": str(home / "jax-cache"),
    }
    return [ImageRule("capstan/*", path, environ), host_rule()]


# serve and node: the processes themselves


def _serve(options: argparse.Namespace) -> int:
    home = Home(options.home.expanduser().absolute())
    home.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with home.lock.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LocalClusterError(f"{home.folder} is served by process {home.running_pid()} already") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        asyncio.run(_run_cluster(home, options.port, options.gpus))
    return 0


async def _run_cluster(home: Home, port: int, gpus: int | None) -> None:
    async with (
        LocalControlPlane(home=home.folder, port=port) as plane,
        Client(Access.from_kubeconfig(plane.kubeconfig_path)) as client,
    ):
        access = KubeletAccess(token=plane.kubelet_token)
        node = Node(client, home=home.folder / "node", images=image_rules(home.folder), gpus=gpus, access=access)
        await _until_stopped(lambda stop: run_controllers(client, stop), node.run)


def _node(options: argparse.Namespace) -> int:
    async def run() -> None:
        async with Client(Access.from_kubeconfig(options.kubeconfig)) as client:
            home = options.home.expanduser().absolute()
            await _until_stopped(
                Node(client, home=home / "node", name=options.name, images=image_rules(home), gpus=options.gpus).run
            )

    asyncio.run(run())
    return 0


async def _until_stopped(*parts: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Runs the parts until SIGTERM or SIGINT; the failure of one stops all."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    async def guarded(part: Callable[[asyncio.Event], Awaitable[None]]) -> None:
        try:
            await part(stop)
        finally:
            stop.set()

    async with asyncio.TaskGroup() as group:
        for part in parts:
            group.create_task(guarded(part))


# up, down, status: what a user calls


def _up(options: argparse.Namespace) -> int:
    home = Home(options.home.expanduser().absolute())
    pid = home.running_pid()
    if pid is None:
        home.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        pid = _start_server(home, options)
    asyncio.run(_install(home, pid))
    print(f"The cluster is up: export KUBECONFIG={home.kubeconfig}")
    return 0


def _start_server(home: Home, options: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "capstan_operator", "local", "serve", "--home", str(home.folder)]
    command += ["--port", str(options.port)]
    command += [] if options.gpus is None else ["--gpus", str(options.gpus)]
    home.kubeconfig.unlink(missing_ok=True)  # so that what we wait for is this process's
    with home.log.open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=home.folder
        )
    deadline = time.monotonic() + READY_SECONDS
    while not home.kubeconfig.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            tail = "\n".join(home.log.read_text(errors="replace").splitlines()[-5:])
            raise LocalClusterError(f"the API server did not start; the end of {home.log}:\n{tail}")
        time.sleep(POLL_SECONDS)
    return process.pid


async def _install(home: Home, pid: int) -> None:
    """Waits for each part and puts Capstan on the cluster; harmless to repeat."""
    async with Client(Access.from_kubeconfig(home.kubeconfig)) as client:
        await _wait(home, pid, "API server", lambda: _answers(client))
        print(f"API server   {client.access.server}")
        await _wait(home, pid, "node", lambda: _has_ready_node(client))
        print("Node         ready; runs containers as processes of this user")
        await _apply(client, CRDS, training_job_crd())
        await _apply(client, NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        service = await _apply(client, SERVICES, operator_service())
        await _apply(client, DEPLOYMENTS, operator_deployment(home.kubeconfig, service["spec"]["clusterIP"]))
        await _wait(home, pid, "operator", lambda: _operator_is_ready(client))
        print(f"Operator     ready; kubectl -n {NAMESPACE} logs deploy/{OPERATOR}")


async def _wait(home: Home, pid: int, what: str, is_ready: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        with suppress(Unreachable, ApiError):
            if await is_ready():
                return
        if home.running_pid() not in (pid, None) or not _is_alive(pid):
            raise LocalClusterError(f"the cluster's process ended while waiting for the {what}; see {home.log}")
        if time.monotonic() > deadline:
            raise LocalClusterError(f"the {what} is not ready after {READY_SECONDS:.0f} s; see {home.log}")
        await asyncio.sleep(POLL_SECONDS)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def _answers(client: Client) -> bool:
    await client.get(NAMESPACES, "default")
    return True


async def _has_ready_node(client: Client) -> bool:
    nodes, _ = await client.list(NODES)
    conditions = [entry for node in nodes for entry in node.get("status", {}).get("conditions", [])]
    return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in conditions)


async def _operator_is_ready(client: Client) -> bool:
    deployment = await client.get(DEPLOYMENTS, OPERATOR, NAMESPACE)
    status = deployment.get("status", {})
    is_current: bool = status.get("observedGeneration") == deployment["metadata"]["generation"]
    return is_current and status.get("updatedReplicas", 0) > 0 and status.get("readyReplicas", 0) > 0


async def _apply(client: Client, resource: Resource, manifest: Manifest) -> Manifest:
    metadata = manifest["metadata"]
    path = resource.path(metadata.get("namespace"), metadata["name"])
    applied: Manifest = await client.request(
        "PATCH",
        path,
        manifest,
        params={"fieldManager": FIELD_MANAGER, "force": "true"},
        content_type="application/apply-patch+yaml",
    )
    return applied


def operator_service() -> Manifest:
    """A stable address for the pods' hints, whichever replica answers."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": OPERATOR, "namespace": NAMESPACE},
        "spec": {
            "selector": {"app.kubernetes.io/name": OPERATOR},
            "ports": [{"name": "http", "port": OPERATOR_PORT, "protocol": "TCP", "targetPort": OPERATOR_PORT}],
        },
    }


def operator_deployment(kubeconfig: Path, service_ip: str) -> Manifest:
    """The operator as it would run on any cluster, but with this user's kubeconfig for an account."""
    labels = {"app.kubernetes.io/name": OPERATOR}
    command = ["python", "-m", "capstan_operator", "run", "--host", "$(POD_IP)", "--port", str(OPERATOR_PORT)]
    command += ["--url", f"http://{service_ip}:{OPERATOR_PORT}"]
    container = {
        "name": "operator",
        "image": f"capstan/operator:{version('capstan')}",
        "command": command,
        "env": [
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "KUBECONFIG", "value": str(kubeconfig)},
        ],
        "ports": [{"name": "http", "containerPort": OPERATOR_PORT}],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": OPERATOR_PORT}, "periodSeconds": 1},
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": OPERATOR_PORT}, "periodSeconds": 10},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": OPERATOR, "namespace": NAMESPACE, "labels": {"app.kubernetes.io/part-of": GROUP}},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


def _down(options: argparse.Namespace) -> int:
    home = Home(options.home.expanduser().absolute())
    pid = home.running_pid()
    if pid is None:
        print(f"No cluster runs from {home.folder}")
        return 0
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while home.running_pid() is not None:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            raise LocalClusterError(
                f"process {pid} did not stop within {STOP_SECONDS:.0f} s and was killed; see {home.log}"
            )
        time.sleep(POLL_SECONDS)
    print(f"Stopped; state stays in {home.folder}")
    return 0


def _status(options: argparse.Namespace) -> int:
    home = Home(options.home.expanduser().absolute())
    pid = home.running_pid()
    if pid is None:
        print(f"No cluster runs from {home.folder}; start one with: capstan local up")
        return 1

    async def ask() -> tuple[bool, bool]:
        async with Client(Access.from_kubeconfig(home.kubeconfig)) as client:
            return await _has_ready_node(client), await _operator_is_ready(client)

    try:
        node, operator = asyncio.run(ask())
    except (Unreachable, ApiError, OSError, ValueError) as error:
        raise LocalClusterError(f"process {pid} runs, but does not answer: {error}") from error
    print(f"Process {pid}, KUBECONFIG={home.kubeconfig}")
    print(f"Node {'ready' if node else 'NOT ready'}, operator {'ready' if operator else 'NOT ready'}")
    return 0 if node and operator else 1
