"""The Node object: what this machine has to offer, and that it is alive."""

import asyncio
import importlib.metadata
import logging
import os
import platform
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from capstan_local.client import (
    LEASES,
    NODES,
    PODS,
    STRATEGIC_PATCH,
    ApiError,
    Client,
    Object,
    Unreachable,
    key_of,
)
from capstan_local.node.machine import OomCounter, memory_bytes
from capstan_local.node.status import timestamp

log = logging.getLogger(__name__)

LEASE_NAMESPACE = "kube-node-lease"
LEASE_SECONDS = 40
HEARTBEAT_SECONDS = 10.0
STATUS_BEATS = 30
"""The status is written anew every 300 s, as by the kubelet; between, the lease says that the node is alive."""
RETRY_SECONDS = 1.0
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def capacity(home: Path, gpus: int, max_pods: int) -> dict[str, str]:
    """What the machine has, as quantities."""
    amounts = {
        "cpu": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory_bytes() // 1024}Ki",
        "ephemeral-storage": f"{shutil.disk_usage(home).total // 1024}Ki",
        "pods": str(max_pods),
    }
    return {**amounts, "nvidia.com/gpu": str(gpus)} if gpus else amounts


class Registration:
    """Keeps Node and Lease as they should be."""

    def __init__(self, client: Client, name: str, address: str, port: int, amounts: dict[str, str]) -> None:
        self._client = client
        self._name = name
        self._address = address
        self._port = port
        self._amounts = amounts
        self._ready_since = timestamp(time.time())

    async def register(self) -> None:
        """Creates or updates the Node and says that it is ready; tried until the API server agrees."""
        while True:
            try:
                await self._create_node()
                await self.write_status(is_ready=True)
                await self._renew_lease()
                return
            except (ApiError, Unreachable) as error:
                log.warning("node %s is not registered, next try in %.0f s: %s", self._name, RETRY_SECONDS, error)
                await asyncio.sleep(RETRY_SECONDS)

    async def keep_alive(self, oom: OomCounter) -> None:
        """Heartbeats until cancelled. `oom` is looked at, so that an old OOM kill is not taken for a new one."""
        beats = 0
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            beats += 1
            oom.look()
            try:
                await self._renew_lease()
                if beats % STATUS_BEATS == 0:
                    await self.write_status(is_ready=True)
            except ApiError as error:
                if error.code == 404:  # somebody deleted the node, which lives nevertheless
                    await self.register()
                else:
                    log.warning("heartbeat: %s", error)
            except Unreachable as error:
                log.warning("heartbeat: %s", error)

    async def write_status(self, *, is_ready: bool) -> None:
        body = {"status": self._build_status(is_ready=is_ready)}
        await self._client.patch(NODES, ("", self._name), body, subresource="status", content_type=STRATEGIC_PATCH)

    async def _create_node(self) -> None:
        labels = {
            "kubernetes.io/hostname": self._name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": _architecture(),
        }
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self._name, "labels": labels}, "spec": {}}
        try:
            await self._client.create(NODES, node)
        except ApiError as error:
            if error.code != 409:
                raise
            await self._client.patch(NODES, ("", self._name), {"metadata": {"labels": labels}})

    def _build_status(self, *, is_ready: bool) -> Object:
        now = timestamp(time.time())
        ready: tuple[str, str, str] = ("True", "KubeletReady", "the node runs containers as processes")
        if not is_ready:
            ready = ("False", "NodeShutdown", "node is shutting down")
            self._ready_since = now
        conditions = [_condition("Ready", *ready, now, self._ready_since)]
        for kind in ("MemoryPressure", "DiskPressure", "PIDPressure"):
            conditions.append(_condition(kind, "False", "NotMeasured", "not measured here", now, self._ready_since))
        return {
            # No Hostname: API servers prefer it to the IP, and a node's name need not resolve on a laptop.
            "addresses": [{"type": "InternalIP", "address": self._address}],
            "capacity": self._amounts,
            "allocatable": self._amounts,
            "conditions": conditions,
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._port}},
            "nodeInfo": _node_info(),
        }

    async def _renew_lease(self) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        key = (LEASE_NAMESPACE, self._name)
        spec: Object = {"holderIdentity": self._name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now}
        try:
            await self._client.patch(LEASES, key, {"spec": spec})
        except ApiError as error:
            if error.code != 404:
                raise
            metadata = {"name": self._name, "namespace": LEASE_NAMESPACE}
            lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
            await self._client.create(LEASES, lease)


async def remove_node(client: Client, name: str) -> None:
    """What an administrator does about a machine that will not come back: its pods, then the Node, are deleted."""
    pods, _ = await client.list(PODS, fieldSelector=f"spec.nodeName={name}")
    for pod in pods:
        await client.delete(PODS, key_of(pod), grace_seconds=0)
    await client.delete(NODES, ("", name))


def _condition(kind: str, status: str, reason: str, message: str, now: str, since: str) -> dict[str, Any]:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastHeartbeatTime": now,
        "lastTransitionTime": since,
    }


def _architecture() -> str:
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


def _node_info() -> dict[str, str]:
    version = importlib.metadata.version("capstan")
    system = platform.freedesktop_os_release()
    return {
        "machineID": "",
        "systemUUID": "",
        "bootID": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "kernelVersion": platform.release(),
        "osImage": system.get("PRETTY_NAME", "Linux"),
        "containerRuntimeVersion": f"process://{version}",
        "kubeletVersion": f"v{version}-local",
        "kubeProxyVersion": f"v{version}-local",
        "operatingSystem": "linux",
        "architecture": _architecture(),
    }
