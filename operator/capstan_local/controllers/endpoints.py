"""Endpoints of Services that select pods."""

from collections import defaultdict
from typing import Any

from capstan_local.client import ENDPOINTS, PODS, SERVICES, ApiError, ChangeType, Key, Object, key_of
from capstan_local.controllers.queue import KeyQueue
from capstan_local.controllers.shared import Shared, is_deleting, matches, ready_since


class EndpointsController:
    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._queue = KeyQueue("endpoints", self._reconcile)
        shared.listen(SERVICES, lambda _change, obj, _old: self._queue.wake(key_of(obj)))
        shared.listen(ENDPOINTS, lambda _change, obj, _old: self._queue.wake(key_of(obj)))
        shared.listen(PODS, self._note_pod)

    async def run(self) -> None:
        await self._queue.run()

    def _note_pod(self, _change: ChangeType, pod: Object, old: Object | None) -> None:
        if old is not None and _facts(pod) == _facts(old) and not is_deleting(pod):
            return
        versions = [version for version in (pod, old) if version is not None]
        for service in self._shared.in_namespace(SERVICES, pod["metadata"]["namespace"]):
            selector = {"matchLabels": service["spec"].get("selector")}
            if selector["matchLabels"] and any(matches(selector, _labels(version)) for version in versions):
                self._queue.wake(key_of(service))

    async def _reconcile(self, key: Key) -> float | None:
        client = self._shared.client
        service, existing = self._shared.objects(SERVICES).get(key), self._shared.objects(ENDPOINTS).get(key)
        if service is None:
            if existing is not None and MANAGED in (existing["metadata"].get("annotations") or {}):
                await client.delete(ENDPOINTS, key)
            return None
        if not service["spec"].get("selector") or is_deleting(service):
            return None
        pods = [
            pod
            for pod in self._shared.in_namespace(PODS, key[0])
            if matches({"matchLabels": service["spec"]["selector"]}, _labels(pod))
        ]
        subsets = build_subsets(service, pods)
        if existing is None:
            endpoints = {
                "apiVersion": "v1",
                "kind": "Endpoints",
                "metadata": {
                    "namespace": key[0],
                    "name": key[1],
                    "labels": service["metadata"].get("labels") or {},
                    "annotations": {MANAGED: "true"},
                },
                "subsets": subsets,
            }
            try:
                self._shared.remember(ENDPOINTS, await client.create(ENDPOINTS, endpoints))
            except ApiError as error:
                if error.code not in (403, 409):
                    raise
        elif (existing.get("subsets") or []) != subsets:
            self._shared.remember(ENDPOINTS, await client.patch(ENDPOINTS, key, {"subsets": subsets}))
        return None


MANAGED = "capstan-local/managed"
"""Annotation of Endpoints that go when their Service goes."""


def build_subsets(service: Object, pods: list[Object]) -> list[Object]:
    """The subsets of the Endpoints of `service`: addresses grouped by the ports they serve, in a stable order."""
    groups: dict[tuple[tuple[str, int, str], ...], dict[str, list[Object]]] = defaultdict(
        lambda: {"addresses": [], "notReadyAddresses": []}
    )
    publishes_all = bool(service["spec"].get("publishNotReadyAddresses"))
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["name"])):
        status = pod.get("status") or {}
        ip = status.get("podIP")
        if not ip or status.get("phase") in ("Succeeded", "Failed") or (is_deleting(pod) and not publishes_all):
            continue
        ports = tuple(
            (port.get("name", ""), number, port.get("protocol", "TCP"))
            for port in service["spec"].get("ports") or []
            if (number := target_port(port, pod)) is not None
        )
        is_ready = publishes_all or ready_since(pod) is not None
        groups[ports]["addresses" if is_ready else "notReadyAddresses"].append(_address(pod, ip))
    return [
        {
            **{kind: addresses for kind, addresses in group.items() if addresses},
            **({"ports": [_port(*port) for port in ports]} if ports else {}),
        }
        for ports, group in sorted(groups.items(), key=lambda item: item[0])
    ]


def _address(pod: Object, ip: str) -> Object:
    metadata, spec = pod["metadata"], pod["spec"]
    target = {"kind": "Pod", "namespace": metadata["namespace"], "name": metadata["name"], "uid": metadata["uid"]}
    address: Object = {"ip": ip, "nodeName": spec.get("nodeName"), "targetRef": target}
    if spec.get("hostname"):
        address["hostname"] = spec["hostname"]
    return address


def _port(name: str, number: int, protocol: str) -> Object:
    return {**({"name": name} if name else {}), "port": number, "protocol": protocol}


def target_port(port: Object, pod: Object) -> int | None:
    """The number behind a Service's port on this pod; None when the pod has no port of that name."""
    target: Any = port.get("targetPort") or port["port"]
    if isinstance(target, int):
        return target
    for container in pod["spec"]["containers"]:
        for candidate in container.get("ports") or []:
            if candidate.get("name") == target:
                return int(candidate["containerPort"])
    return None


def _labels(obj: Object) -> dict[str, str]:
    return obj["metadata"].get("labels") or {}


def _facts(pod: Object) -> tuple[Any, ...]:
    """What of a pod its Endpoints depend on."""
    status = pod.get("status") or {}
    is_over = status.get("phase") in ("Succeeded", "Failed")
    return _labels(pod), status.get("podIP"), is_over, ready_since(pod) is not None, is_deleting(pod)
