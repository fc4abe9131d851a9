"""A node of capstan_local inside a test, and what tests ask of it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from capstan_local.client import PODS, ApiError, Client, Object
from capstan_local.node import ImageRule, Node

T = TypeVar("T")

SECONDS = 30.0
IMAGES = [ImageRule("tools*", os.environ["PATH"].split(":"), {"FROM_IMAGE": "yes"}, ["sh", "-c"])]


async def eventually(look: Callable[[], Awaitable[T | None]], seconds: float = SECONDS) -> T:
    """The first answer of `look` that is neither None nor False; AssertionError when there is none in time."""
    deadline = time.monotonic() + seconds
    while True:
        found = await look()
        if found is not None and found is not False:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"it did not come to pass within {seconds:.0f} s")
        await asyncio.sleep(0.05)


@dataclass
class RunningNode:
    node: Node
    client: Client
    home: Path
    stop: asyncio.Event
    task: asyncio.Task[None]

    async def create(self, namespace: str, name: str, *containers: Object, **spec: Any) -> Object:
        """A pod bound to this node, past any scheduler. Containers without an image run `local/host`."""
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name},
            "spec": {
                "nodeName": self.node.name,
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 2,
                "containers": [{"image": "local/host", **container} for container in containers],
                **spec,
            },
        }
        return await self.client.create(PODS, pod)

    async def wait(self, pod: Object, holds: Callable[[Object], Any], seconds: float = SECONDS) -> Object:
        """The first version of `pod` for which `holds`; on failure the last one seen is in the message."""
        metadata, last = pod["metadata"], pod

        async def look() -> Object | None:
            nonlocal last
            last = await self.client.get(PODS, metadata["name"], metadata["namespace"])
            return last if holds(last) else None

        try:
            return await eventually(look, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; last seen: {last.get('status')}") from None

    async def wait_phase(self, pod: Object, *phases: str) -> Object:
        return await self.wait(pod, lambda seen: seen["status"].get("phase") in phases)

    async def wait_gone(self, pod: Object) -> None:
        async def is_gone() -> bool:
            try:
                seen = await self.client.get(PODS, pod["metadata"]["name"], pod["metadata"]["namespace"])
            except ApiError as error:
                return error.code == 404
            return bool(seen["metadata"]["uid"] != pod["metadata"]["uid"])

        await eventually(is_gone)

    async def log(self, pod: Object, **query: str) -> str:
        """What `kubectl logs` shows."""
        return await read_log(self.client, pod, **query)


async def read_log(client: Client, pod: Object, **query: str) -> str:
    path = PODS.path(pod["metadata"]["namespace"], pod["metadata"]["name"], "log")
    async with client.session.get(path, params=query) as response:
        text = await response.text()
        if response.status != 200:
            raise ApiError(response.status, "log", text)
        return text


@asynccontextmanager
async def node_running(client: Client, home: Path, name: str, **options: Any) -> AsyncIterator[RunningNode]:
    stop = asyncio.Event()
    node = Node(client, home, name, IMAGES, **options)
    task = asyncio.create_task(node.run(stop))
    ready = asyncio.create_task(node.ready.wait())
    await asyncio.wait({task, ready}, timeout=SECONDS, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    running = RunningNode(node, client, home, stop, task)
    try:
        yield running
    finally:
        stop.set()
        await asyncio.wait_for(task, SECONDS)


def shell(script: str, **container: Any) -> Object:
    """A container that runs `script`."""
    return {"name": "main", "command": ["bash", "-c", script], **container}


def state_of(pod: Object, index: int = 0) -> Object:
    """The ContainerStatus of one container, without what differs at every run."""
    status = dict(pod["status"]["containerStatuses"][index])
    status.pop("containerID", None)
    for name in ("state", "lastState"):
        status[name] = {
            kind: {key: value for key, value in detail.items() if key not in ("startedAt", "finishedAt", "containerID")}
            for kind, detail in (status.get(name) or {}).items()
        }
    return status
