"""What Kueue and a node do to the pods of a group, as Kueue's pages on plain pods and its pod_controller.go have it.

A group is admitted once it has as many pods as each of them says, and a test says so. Pods of it wait behind a gate
until then, and stay, held by a finalizer, until they are replaced or their group is over. API servers before 1.27 know
no gate: a condition stands for it, as it does beside the gate in later ones.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from capstan_operator.cluster.errors import ApiError
from capstan_operator.cluster.kinds import PODS
from capstan_operator.cluster.limiter import Lane
from capstan_runtime.contract.state import Exit, Phase
from tests.support.fake_supervisors import FakeSupervisor, FakeSupervisors
from tests.support.real_cluster import Cluster

Pod = dict[str, Any]
FINALIZER = "kueue.x-k8s.io/managed"
GROUP, SIZE, LAST = (
    "kueue.x-k8s.io/pod-group-name",
    "kueue.x-k8s.io/pod-group-total-count",
    "kueue.x-k8s.io/retriable-in-group",
)
GATED = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "SchedulingGated",
    "message": "Scheduling is blocked due to non-empty scheduling gates",
}


class FakeKueue:
    """`run` looks at all pods of one namespace again and again, until cancelled."""

    def __init__(self, cluster: Cluster, supervisors: FakeSupervisors) -> None:
        self._cluster = cluster
        self._supervisors = supervisors
        self._addresses = 0
        self.by_pod: dict[str, FakeSupervisor] = {}
        self.has_quota = False
        """Groups that are whole are admitted."""
        self.whole: set[str] = set()
        """Names of groups that had all their pods at once: only then is there a Workload."""
        self.over: set[str] = set()
        """Names of groups whose quota was given back."""
        self.violations: list[str] = []
        """What Kueue would have deleted pods for, or let them wait for ever."""

    async def run(self) -> None:
        while True:
            try:
                await self._look()
            except ApiError as error:
                if not (error.is_not_found or error.is_conflict):
                    raise
            await asyncio.sleep(0.05)

    async def preempt(self) -> None:
        """Take the quota of all that runs back."""
        self.has_quota = False
        target = {"type": "TerminationTarget", "status": "True", "reason": "WorkloadEvicted"}
        for pod in await self._cluster.list(PODS):
            if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]:
                conditions = [*pod["status"].get("conditions", []), target | {"message": "Preempted in a test"}]
                await self._cluster.set_pod_status(pod["metadata"]["name"], conditions=conditions)
                await self._cluster.delete(PODS, pod["metadata"]["name"])

    def train(self, fence: int, step: int) -> None:
        """All ranks of attempt `fence` make steps."""
        for one in self.by_pod.values():
            told = one.memberships[-1] if one.memberships else None
            if told is not None and told.fence == fence:
                one.become(fence=fence, rank=told.rank, world=told.world, phase=Phase.TRAINING, step=step)

    async def _look(self) -> None:
        groups: dict[str, list[Pod]] = {}
        for pod in await self._cluster.list(PODS):
            await self._end(pod)
            if name := pod["metadata"]["labels"].get(GROUP):
                groups.setdefault(name, []).append(pod)
        for name, pods in groups.items():
            await self._look_at_group(name, sorted(pods, key=lambda pod: pod["metadata"]["creationTimestamp"]))

    async def _look_at_group(self, name: str, pods: list[Pod]) -> None:
        sizes = {int(pod["metadata"]["annotations"][SIZE]) for pod in pods}
        if len(sizes) > 1:
            self.violations.append(f"{name}: its pods say that it has {sizes}")
        size = min(sizes)
        if name in self.over and any("deletionTimestamp" not in pod["metadata"] for pod in pods):
            self.violations.append(f"{name}: a pod came after it was over")
        for pod in pods:
            await self._hold(pod)
        inactive = [pod for pod in pods if _is_inactive(pod)]
        active = [pod for pod in pods if not _is_inactive(pod)]
        if len(active) > size:
            self.violations.append(f"{name}: has {len(active)} pods, and {size} are admitted")
        self.whole |= {name} if len(active) == size else set()
        if name in self.whole and self.has_quota:
            for pod in active:
                await self._let_through(pod)
        for pod in inactive[: max(0, len(pods) - size)]:
            await self._release(pod)
        is_last = any(pod["metadata"]["annotations"].get(LAST) == "false" for pod in pods)
        if is_last and all(_is_terminated(pod) or _is_inactive(pod) for pod in pods):
            self.over.add(name)
            for pod in pods:
                await self._release(pod)

    async def _hold(self, pod: Pod) -> None:
        """What Kueue's webhook does before the pod is stored."""
        metadata = pod["metadata"]
        if "deletionTimestamp" not in metadata and FINALIZER not in metadata.get("finalizers", []):
            if "kueue.x-k8s.io/managed" in metadata["labels"]:
                return
            labels = {"kueue.x-k8s.io/managed": "true"}
            patch = {"metadata": {"finalizers": [FINALIZER], "labels": labels}}
            await self._patch(pod, patch)
            if not pod["status"].get("conditions"):
                await self._cluster.set_pod_status(metadata["name"], conditions=[GATED])

    async def _let_through(self, pod: Pod) -> None:
        """The gate goes, a node takes the pod, and its supervisor answers."""
        metadata, name = pod["metadata"], pod["metadata"]["name"]
        if pod["status"]["phase"] != "Pending" or "deletionTimestamp" in metadata or name in self.by_pod:
            return
        self._addresses += 1
        ip = f"127.0.7.{self._addresses}"
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}}
        binding["target"] = {"apiVersion": "v1", "kind": "Node", "name": "node-0"}
        path = PODS.path(self._cluster.namespace, name, "binding")
        await self._cluster.client.call("POST", path, lane=Lane.SYSTEM, body=json.dumps(binding).encode())
        self.by_pod[name] = await self._supervisors.add(ip, name, metadata["ownerReferences"][0]["uid"])
        await self._cluster.set_pod_status(name, phase="Running", podIP=ip, hostIP="127.0.0.1", conditions=[])

    async def _end(self, pod: Pod) -> None:
        """What a kubelet does with a pod that is being deleted: its trainer saves, and it ends."""
        metadata, name = pod["metadata"], pod["metadata"]["name"]
        if "deletionTimestamp" not in metadata or pod["status"]["phase"] != "Running":
            return
        one = self.by_pod[name]
        fence, at = one.state.fence, 1.0
        said = Exit(fence=fence, code=80, failure="Stopped", message="stopped as asked", at=at, asked=True)
        one.become(phase=Phase.EXITED, exit=said)
        terminated = {"exitCode": 80, "reason": "Error", "message": one.state.model_dump_json(by_alias=True)}
        containers = [{"name": "trainer", "state": {"terminated": terminated}}]
        await self._cluster.set_pod_status(name, phase="Failed", containerStatuses=containers)
        at_once = json.dumps({"gracePeriodSeconds": 0}).encode()
        path = PODS.path(self._cluster.namespace, name)
        await self._cluster.client.call("DELETE", path, lane=Lane.SYSTEM, body=at_once)

    async def _release(self, pod: Pod) -> None:
        if FINALIZER in pod["metadata"].get("finalizers", []):
            await self._patch(pod, {"metadata": {"finalizers": None}})

    async def _patch(self, pod: Pod, patch: dict[str, Any]) -> None:
        namespace, name = self._cluster.namespace, pod["metadata"]["name"]
        await self._cluster.client.merge_patch(PODS, namespace, name, patch, lane=Lane.SYSTEM)


def _is_inactive(pod: Pod) -> bool:
    is_placed = bool(pod["spec"].get("nodeName"))
    return pod["status"]["phase"] == "Failed" or ("deletionTimestamp" in pod["metadata"] and not is_placed)


def _is_terminated(pod: Pod) -> bool:
    return pod["status"]["phase"] in ("Succeeded", "Failed")
