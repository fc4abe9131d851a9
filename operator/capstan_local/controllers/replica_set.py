"""ReplicaSet: as many pods of one template as asked for."""

import time

from capstan_local.client import PODS, REPLICA_SETS, Key, Object, key_of
from capstan_local.controllers.queue import KeyQueue
from capstan_local.controllers.shared import (
    OwnedIndex,
    Shared,
    controller_of,
    is_active,
    is_deleting,
    matches,
    owner_reference,
    ready_since,
)
from capstan_local.node.status import parse_timestamp

API_VERSION, KIND = "apps/v1", "ReplicaSet"


class ReplicaSetController:
    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._queue = KeyQueue("replica set", self._reconcile)
        self._pods = OwnedIndex(shared, PODS, self._note_pod)
        shared.listen(REPLICA_SETS, lambda _change, obj, _old: self._queue.wake(key_of(obj)))

    async def run(self) -> None:
        await self._queue.run()

    def _note_pod(self, pod: Object) -> None:
        owner, namespace = controller_of(pod), pod["metadata"]["namespace"]
        if owner is not None:
            if owner["kind"] == KIND:
                self._queue.wake((namespace, owner["name"]))
        elif pod["metadata"].get("labels"):
            for replica_set in self._shared.in_namespace(REPLICA_SETS, namespace):
                if matches(replica_set["spec"]["selector"], pod["metadata"]["labels"]):
                    self._queue.wake(key_of(replica_set))

    async def _reconcile(self, key: Key) -> float | None:
        replica_set = self._shared.objects(REPLICA_SETS).get(key)
        if replica_set is None:
            return None
        if not is_deleting(replica_set):
            await self._adopt(replica_set)
            await self._scale(replica_set)
        pods = [pod for pod in self._pods.owned_by(replica_set["metadata"]["uid"]) if is_active(pod)]
        status, later = build_status(replica_set, pods, time.time())
        if status != {name: replica_set.get("status", {}).get(name, 0) for name in status}:
            written = await self._shared.client.patch(REPLICA_SETS, key, {"status": status}, subresource="status")
            self._shared.remember(REPLICA_SETS, written)
        return later

    async def _adopt(self, replica_set: Object) -> None:
        """Takes over pods that match and belong to nobody."""
        for pod in list(self._shared.in_namespace(PODS, replica_set["metadata"]["namespace"])):
            if (
                controller_of(pod) is None
                and is_active(pod)
                and matches(replica_set["spec"]["selector"], pod["metadata"].get("labels") or {})
            ):
                references = [
                    *(pod["metadata"].get("ownerReferences") or []),
                    owner_reference(replica_set, API_VERSION, KIND),
                ]
                body = {"metadata": {"uid": pod["metadata"]["uid"], "ownerReferences": references}}
                self._shared.remember(PODS, await self._shared.client.patch(PODS, key_of(pod), body))

    async def _scale(self, replica_set: Object) -> None:
        active = [pod for pod in self._pods.owned_by(replica_set["metadata"]["uid"]) if is_active(pod)]
        missing = replica_set["spec"].get("replicas", 1) - len(active)
        for _ in range(missing):
            pod = await self._shared.client.create(PODS, build_pod(replica_set))
            self._shared.remember(PODS, pod)
            self._event(replica_set, "SuccessfulCreate", f"Created pod: {pod['metadata']['name']}")
        for pod in sorted(active, key=_usefulness)[: max(0, -missing)]:
            await self._shared.client.delete(PODS, key_of(pod), uid=pod["metadata"]["uid"])
            self._event(replica_set, "SuccessfulDelete", f"Deleted pod: {pod['metadata']['name']}")

    def _event(self, replica_set: Object, reason: str, message: str) -> None:
        self._shared.events.record(replica_set, reason, message, kind=KIND, api_version=API_VERSION)


def build_pod(replica_set: Object) -> Object:
    template, metadata = replica_set["spec"]["template"], replica_set["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            **{
                name: value
                for name, value in (template.get("metadata") or {}).items()
                if name in ("labels", "annotations")
            },
            "namespace": metadata["namespace"],
            "generateName": f"{metadata['name']}-",
            "ownerReferences": [owner_reference(replica_set, API_VERSION, KIND)],
        },
        "spec": template["spec"],
    }


def build_status(replica_set: Object, pods: list[Object], now: float) -> tuple[Object, float | None]:
    """The status of a ReplicaSet with these active pods, and in how many seconds the next pod becomes available."""
    labels = (replica_set["spec"]["template"].get("metadata") or {}).get("labels") or {}
    ready = [since for pod in pods if (since := ready_since(pod)) is not None]
    pauses = [
        parse_timestamp(since) + replica_set["spec"].get("minReadySeconds", 0) - now if since else 0 for since in ready
    ]
    waiting = [pause for pause in pauses if pause > 0 and replica_set["spec"].get("minReadySeconds", 0)]
    status = {
        "replicas": len(pods),
        "fullyLabeledReplicas": sum(labels.items() <= (pod["metadata"].get("labels") or {}).items() for pod in pods),
        "readyReplicas": len(ready),
        "availableReplicas": len(ready) - len(waiting),
        "observedGeneration": replica_set["metadata"].get("generation", 0),
    }
    return status, min(waiting) if waiting else None


def _usefulness(pod: Object) -> tuple[bool, bool, bool, float, str]:
    """Pods that are least missed come first: unscheduled, pending, not ready, then the youngest."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    return (
        bool(pod["spec"].get("nodeName")),
        status.get("phase") == "Running",
        ready_since(pod) is not None,
        -parse_timestamp(metadata["creationTimestamp"]),
        metadata["name"],
    )
