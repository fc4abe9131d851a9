"""`capstan local`: the embedded cluster with Capstan on it, as one background process of this user.

up ──starts──▶ serve (API server, controllers, nodes) ──runs──▶ operator, a Deployment like on any cluster
"""

import argparse
import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from capstan_local.client import Access, ApiError, Client, Unreachable
from capstan_local.cluster import LocalControlPlane
from capstan_local.controllers import run_controllers
from capstan_local.node.images import ImageRule, host_rule
from capstan_local.node.kubelet import KubeletAccess
from capstan_local.node.machine import detect_gpus
from capstan_local.node.node import Node, default_name
from capstan_local.node.registration import remove_node
from capstan_operator.local_home import (
    POLL_SECONDS,
    STOP_SECONDS,
    Home,
    LocalClusterError,
    Serving,
    WrongUsage,
    has_ended,
    stop,
)
from capstan_operator.local_install import install, nodes_are_ready, operator_is_ready

READY_SECONDS = 60.0


def main(options: argparse.Namespace) -> int:
    """Runs one action of `capstan local`."""
    actions = {"up": _up, "down": _down, "status": _status, "serve": _serve, "node": _node}
    try:
        return actions[options.action](options)
    except (LocalClusterError, ApiError, Unreachable, OSError) as error:
        print(f"capstan local {options.action}: {error}", file=sys.stderr)
        return 2 if isinstance(error, WrongUsage) else 1


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
    home = _home(options)
    with home.served(options.gpus, options.nodes):
        asyncio.run(_run_cluster(home, options.port, options.gpus, options.nodes))
    return 0


async def _run_cluster(home: Home, port: int, gpus: int | None, count: int) -> None:
    """`count` nodes share the machine: each offers its cores and memory, and a part of its GPUs."""
    ids = await detect_gpus() if gpus is None else [str(index) for index in range(gpus)]
    async with AsyncExitStack() as stack:
        plane = await stack.enter_async_context(LocalControlPlane(home=home.folder, port=port))
        client = await stack.enter_async_context(Client(Access.from_kubeconfig(plane.kubeconfig_path)))
        access, images = KubeletAccess(token=plane.kubelet_token), image_rules(home.folder)
        await _remove_former_nodes(client, home, count)
        nodes = [
            Node(
                client,
                home.node(index),
                node_name(index),
                images,
                ids[index::count],
                serves_machine=index == 0,
                access=access,
            )
            for index in range(count)
        ]
        await _until_stopped(lambda stopping: run_controllers(client, stopping), *(node.run for node in nodes))


def node_name(index: int) -> str:
    """The host's name for the first node, `<host>-2` and so on for the others."""
    host = default_name(socket.gethostname())
    return host if index == 0 else f"{host}-{index + 1}"


async def _remove_former_nodes(client: Client, home: Home, count: int) -> None:
    """What an earlier start had beyond `count` nodes: nobody else would ever end the pods on them."""
    index = count
    while home.node(index).exists():
        await remove_node(client, node_name(index))
        await asyncio.to_thread(shutil.rmtree, home.node(index))
        index += 1


def _node(options: argparse.Namespace) -> int:
    try:
        access = Access.from_kubeconfig(options.kubeconfig)
    except ValueError as error:
        raise WrongUsage(f"--kubeconfig: {error}") from error

    async def run() -> None:
        async with Client(access) as client:
            home = options.home.expanduser().absolute()
            await _until_stopped(
                Node(client, home=home / "node", name=options.name, images=image_rules(home), gpus=options.gpus).run
            )

    asyncio.run(run())
    return 0


async def _until_stopped(*parts: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Runs the parts until SIGTERM or SIGINT; the failure of one stops all."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)

    async def guarded(part: Callable[[asyncio.Event], Awaitable[None]]) -> None:
        try:
            await part(stopping)
        finally:
            stopping.set()

    async with asyncio.TaskGroup() as group:
        for part in parts:
            group.create_task(guarded(part))


# up, down, status: what a user calls


def _home(options: argparse.Namespace) -> Home:
    return Home(options.home.expanduser().absolute())


def _up(options: argparse.Namespace) -> int:
    home = _home(options)
    serving = home.serving()
    if serving is None:
        try:
            home.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise LocalClusterError(f"--home: {home.folder} cannot be made: {error.strerror}") from error
        pid, nodes = _start_server(home, options), options.nodes or 1
    else:
        _refuse_differences(home, serving, options)
        pid, nodes = serving.pid, serving.nodes

    async def wait(what: str, is_ready: Callable[[], Awaitable[bool]]) -> None:
        await _wait(home, pid, what, is_ready)

    asyncio.run(install(home.kubeconfig, nodes, wait, allow_chaos=options.allow_chaos))
    print(f"The cluster is up: export KUBECONFIG={home.kubeconfig}")
    return 0


def _refuse_differences(home: Home, serving: Serving, options: argparse.Namespace) -> None:
    """A running cluster keeps the port, the GPUs and the nodes it has: raises WrongUsage when others are asked for."""
    for option, runs, asked in (
        ("--port", home.port(), options.port or None),
        ("--gpus", serving.gpus, options.gpus),
        ("--nodes", serving.nodes, options.nodes),
    ):
        if asked is not None and asked != runs:
            has = "the GPUs that it found" if runs is None else f"{option} {runs}"
            raise WrongUsage(
                f"the cluster at {home.folder} runs with {has}, not {option} {asked}; "
                f"stop it first: capstan local down --home {home.folder}"
            )


def _start_server(home: Home, options: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "capstan_operator", "local", "serve", "--home", str(home.folder)]
    for option, value in (("--port", options.port), ("--gpus", options.gpus), ("--nodes", options.nodes)):
        command += [] if value is None else [option, str(value)]
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


async def _wait(home: Home, pid: int, what: str, is_ready: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        with suppress(Unreachable, ApiError):
            if await is_ready():
                return
        if has_ended(pid):
            raise LocalClusterError(f"the cluster's process ended while waiting for the {what}; see {home.log}")
        if time.monotonic() > deadline:
            raise LocalClusterError(f"the {what} is not ready after {READY_SECONDS:.0f} s; see {home.log}")
        await asyncio.sleep(POLL_SECONDS)


def _down(options: argparse.Namespace) -> int:
    home = _home(options)
    serving = home.serving()
    if serving is None:
        print(f"No cluster runs from {home.folder}")
        return 0
    if not stop(serving):
        raise LocalClusterError(
            f"process {serving.pid} did not stop within {STOP_SECONDS:.0f} s and was killed; see {home.log}"
        )
    print(f"Stopped; state stays in {home.folder}")
    return 0


def _status(options: argparse.Namespace) -> int:
    home = _home(options)
    serving = home.serving()
    if serving is None:
        print(f"No cluster runs from {home.folder}; start one with: capstan local up --home {home.folder}")
        return 1

    async def ask() -> tuple[bool, bool]:
        async with Client(Access.from_kubeconfig(home.kubeconfig)) as client:
            return await nodes_are_ready(client, serving.nodes), await operator_is_ready(client)

    try:
        node, operator = asyncio.run(ask())
    except (Unreachable, ApiError, OSError, ValueError) as error:
        raise LocalClusterError(f"process {serving.pid} runs, but does not answer: {error}") from error
    print(f"Process {serving.pid}, KUBECONFIG={home.kubeconfig}")
    print(f"Node {'ready' if node else 'NOT ready'}, operator {'ready' if operator else 'NOT ready'}")
    return 0 if node and operator else 1
