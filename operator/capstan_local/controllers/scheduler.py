"""Binds pending pods to ready nodes that have room for them."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from capstan_local.client import (
    CLAIMS,
    NODES,
    PODS,
    STRATEGIC_PATCH,
    ApiError,
    ChangeType,
    Key,
    Object,
    Unreachable,
    key_of,
)
from capstan_local.controllers.shared import Shared, claims_of, is_deleting, matches_expression
from capstan_local.node.status import timestamp
from capstan_local.quantity import parse_quantity, pod_requests

log = logging.getLogger(__name__)

NAME = "default-scheduler"
AT_ONCE = 32
RETRY_SECONDS = 1.0

Amounts = dict[str, Decimal]


class Scheduler:
    """First come, first served within a priority; the node with the largest share of free CPU wins, then the one with
    the fewest pods."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._wake = asyncio.Event()
        self._requests: dict[str, Amounts] = {}
        """uid -> what a pending or placed pod occupies"""
        self._placed: dict[str, str] = {}
        """uid -> node, from the moment of binding until the pod has ended"""
        self._pending: dict[str, Object] = {}
        shared.listen(PODS, self._note_pod)
        shared.listen(NODES, self._note_node)
        shared.listen(CLAIMS, self._note_claim)

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not await self._pass():
                asyncio.get_running_loop().call_later(RETRY_SECONDS, self._wake.set)

    def _note_node(self, _change: ChangeType, node: Object, old: Object | None) -> None:
        if old is None or _offer(node) != _offer(old):  # not at every heartbeat
            self._wake.set()

    def _note_claim(self, _change: ChangeType, claim: Object, old: Object | None) -> None:
        if old is None or _claim_facts(claim) != _claim_facts(old):
            self._wake.set()

    def _note_pod(self, change: ChangeType, pod: Object, _old: Object | None) -> None:
        uid = pod["metadata"]["uid"]
        if change == "DELETED" or pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            self._pending.pop(uid, None)
            self._requests.pop(uid, None)
            if self._placed.pop(uid, None) is not None:
                self._wake.set()  # there is room again
            return
        node = pod["spec"].get("nodeName")
        if uid not in self._requests:
            try:
                self._requests[uid] = {**pod_requests(pod["spec"]), "pods": Decimal(1)}
            except ValueError as error:
                log.warning("pod %s/%s is not scheduled: %s", *key_of(pod), error)
                return
        if node:
            self._placed[uid] = node
            self._pending.pop(uid, None)
        elif uid not in self._placed and _is_ours(pod):
            if uid not in self._pending:
                self._wake.set()
            self._pending[uid] = pod

    async def _pass(self) -> bool:
        """One look at all pending pods; False when some write failed and another look is due."""
        nodes = list(self._shared.objects(NODES).values())
        free = self._free(nodes)
        bindings: list[tuple[Object, str]] = []
        unplaced: list[tuple[Object, str]] = []
        for pod in sorted(self._pending.values(), key=_turn):
            wanted = self._requests[pod["metadata"]["uid"]]
            problem = claim_problem(pod, self._shared.objects(CLAIMS))
            name, why = (None, problem) if problem else choose_node(pod, wanted, nodes, free)
            if name is None:
                unplaced.append((pod, why))
                continue
            for resource, amount in wanted.items():
                free[name][resource] = free[name].get(resource, Decimal(0)) - amount
            bindings.append((pod, name))
        gate = asyncio.Semaphore(AT_ONCE)

        async def within(work: Any) -> bool:
            async with gate:
                return bool(await work)

        writes = [self._bind(pod, name) for pod, name in bindings] + [self._explain(pod, why) for pod, why in unplaced]
        return all(await asyncio.gather(*(within(write) for write in writes)))

    def _free(self, nodes: list[Object]) -> dict[str, Amounts]:
        free = {node["metadata"]["name"]: _allocatable(node) for node in nodes}
        for uid, name in self._placed.items():
            if name in free:
                for resource, amount in self._requests[uid].items():
                    free[name][resource] = free[name].get(resource, Decimal(0)) - amount
        return free

    async def _bind(self, pod: Object, node: str) -> bool:
        namespace, name = key_of(pod)
        uid = pod["metadata"]["uid"]
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"namespace": namespace, "name": name, "uid": uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        self._placed[uid] = node
        self._pending.pop(uid, None)
        try:
            await self._shared.client.create(PODS, binding, name=name, subresource="binding")
        except (ApiError, Unreachable) as error:
            if isinstance(error, ApiError) and error.code in (404, 409):
                return True  # it is gone, or bound by somebody else: the watch tells
            log.warning("pod %s/%s is not bound to %s: %s", namespace, name, node, error)
            if self._placed.pop(uid, None) is not None and uid in self._requests:
                self._pending[uid] = pod
            return False
        self._shared.events.record(pod, "Scheduled", f"Successfully assigned {namespace}/{name} to {node}")
        return True

    async def _explain(self, pod: Object, why: str) -> bool:
        """Writes why the pod waits, unless the pod says so already."""
        conditions = (pod.get("status") or {}).get("conditions") or []
        now = timestamp(time.time())
        wanted = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why}
        current: Object = next((item for item in conditions if item["type"] == "PodScheduled"), {})
        if all(current.get(name) == value for name, value in wanted.items()):
            return True
        since = current.get("lastTransitionTime") if current.get("status") == "False" else None
        body = {"status": {"conditions": [{**wanted, "lastTransitionTime": since or now}]}}
        self._shared.events.record(pod, "FailedScheduling", why, warning=True)
        try:
            written = await self._shared.client.patch(
                PODS, key_of(pod), body, subresource="status", content_type=STRATEGIC_PATCH
            )
        except (ApiError, Unreachable) as error:
            log.info("pod %s/%s: %s", *key_of(pod), error)
            return isinstance(error, ApiError) and error.code == 404
        self._shared.remember(PODS, written)
        return True


def choose_node(
    pod: Object, wanted: Mapping[str, Decimal], nodes: list[Object], free: Mapping[str, Mapping[str, Decimal]]
) -> tuple[str | None, str]:
    """The node to bind `pod` to; None, and why none will do, in the words of kube-scheduler."""
    problems: Counter[str] = Counter()
    best: tuple[Decimal, Decimal, str] | None = None
    for node in nodes:
        name = node["metadata"]["name"]
        problem = _objection(pod, node) or _shortage(wanted, free[name])
        if problem:
            problems[problem] += 1
            continue
        share = free[name].get("cpu", Decimal(0)) / max(_allocatable(node).get("cpu", Decimal(1)), Decimal("0.001"))
        rank = (share, free[name].get("pods", Decimal(0)), name)
        if best is None or rank > best:
            best = rank
    if best is not None:
        return best[2], ""
    reasons = ", ".join(f"{count} {problem}" for problem, count in sorted(problems.items()))
    return None, f"0/{len(nodes)} nodes are available{': ' + reasons if reasons else ''}."


def claim_problem(pod: Object, claims: Mapping[Key, Object]) -> str:
    """Why the pod's claims keep it from every node, in the words of kube-scheduler; empty when they do not."""
    for name in sorted(claims_of(pod)):
        claim = claims.get((pod["metadata"]["namespace"], name))
        if claim is None:
            return f'persistentvolumeclaim "{name}" not found'
        if is_deleting(claim):
            return f'persistentvolumeclaim "{name}" is being deleted'
        if (claim.get("status") or {}).get("phase") == "Lost":
            return f'persistentvolumeclaim "{name}" bound to non-existent persistentvolume "{_volume(claim)}"'
        if not _volume(claim):
            return "pod has unbound immediate PersistentVolumeClaims"
    return ""


def _volume(claim: Object) -> str:
    return claim["spec"].get("volumeName") or ""


def _claim_facts(claim: Object) -> tuple[Any, ...]:
    """What of a claim decides about pods."""
    return _volume(claim), (claim.get("status") or {}).get("phase"), is_deleting(claim)


def _objection(pod: Object, node: Object) -> str | None:
    """Why the node may not take the pod, whatever room it has."""
    spec, labels = pod["spec"], node["metadata"].get("labels") or {}
    if is_deleting(node) or not _is_ready(node):
        return "node(s) were not ready"
    if node["spec"].get("unschedulable") and not _tolerates(spec, _UNSCHEDULABLE):
        return "node(s) were unschedulable"
    for taint in node["spec"].get("taints") or []:
        if taint["effect"] in ("NoSchedule", "NoExecute") and not _tolerates(spec, taint):
            return f"node(s) had taint {{{taint['key']}: {taint.get('value', '')}}}, that the pod didn't tolerate"
    selector: dict[str, str] = spec.get("nodeSelector") or {}
    if not selector.items() <= labels.items() or not _fits_affinity(spec, node):
        return "node(s) didn't match Pod's node affinity/selector"
    return None


_UNSCHEDULABLE = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}


def _shortage(wanted: Mapping[str, Decimal], free: Mapping[str, Decimal]) -> str | None:
    for resource, amount in sorted(wanted.items()):
        if amount > 0 and amount > free.get(resource, Decimal(0)):
            return "Too many pods" if resource == "pods" else f"Insufficient {resource}"
    return None


def _fits_affinity(spec: Mapping[str, Any], node: Object) -> bool:
    affinity = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    if not affinity:
        return True
    labels, fields = node["metadata"].get("labels") or {}, {"metadata.name": node["metadata"]["name"]}
    return any(
        all(matches_expression(item, labels) for item in term.get("matchExpressions") or [])
        and all(matches_expression(item, fields) for item in term.get("matchFields") or [])
        for term in affinity["nodeSelectorTerms"]
        if term.get("matchExpressions") or term.get("matchFields")
    )


def _tolerates(spec: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    for toleration in spec.get("tolerations") or []:
        if toleration.get("effect") and toleration["effect"] != taint["effect"]:
            continue
        if toleration.get("key") and toleration["key"] != taint["key"]:
            continue
        if toleration.get("operator") == "Exists" or (
            toleration.get("key") and toleration.get("value", "") == taint.get("value", "")
        ):
            return True
    return False


def _is_ours(pod: Object) -> bool:
    spec = pod["spec"]
    return spec.get("schedulerName", NAME) == NAME and not is_deleting(pod) and not spec.get("schedulingGates")


def _is_ready(node: Object) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or []
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def _allocatable(node: Object) -> Amounts:
    status = node.get("status") or {}
    return {name: parse_quantity(amount) for name, amount in (status.get("allocatable") or {}).items()}


def _offer(node: Object) -> tuple[Any, ...]:
    """What of a node decides about pods."""
    return _is_ready(node), node["metadata"].get("labels"), node["spec"], _allocatable(node), is_deleting(node)


def _turn(pod: Object) -> tuple[int, str, str]:
    return -(pod["spec"].get("priority") or 0), pod["metadata"].get("creationTimestamp", ""), pod["metadata"]["name"]
