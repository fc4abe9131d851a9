"""Deployment: rolls ReplicaSets from one template to the next."""

import hashlib
import time
from collections.abc import Sequence

import orjson

from capstan_local.client import DEPLOYMENTS, PODS, REPLICA_SETS, ApiError, Key, Object, key_of
from capstan_local.controllers.queue import KeyQueue
from capstan_local.controllers.rollout import Scaling, build_status, plan_scaling
from capstan_local.controllers.shared import OwnedIndex, Shared, controller_of, is_deleting, owner_reference

API_VERSION, KIND = "apps/v1", "Deployment"
HASH_LABEL = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
DEFAULT_HISTORY = 10


class DeploymentController:
    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._queue = KeyQueue("deployment", self._reconcile)
        self._sets = OwnedIndex(shared, REPLICA_SETS, self._note_set)
        self._pods = OwnedIndex(shared, PODS, self._note_pod)
        shared.listen(DEPLOYMENTS, lambda _change, obj, _old: self._queue.wake(key_of(obj)))

    async def run(self) -> None:
        await self._queue.run()

    def _note_set(self, replica_set: Object) -> None:
        owner = controller_of(replica_set)
        if owner is not None and owner["kind"] == KIND:
            self._queue.wake((replica_set["metadata"]["namespace"], owner["name"]))

    def _note_pod(self, pod: Object) -> None:
        """Recreate waits for the old pods to be gone, which no ReplicaSet's status tells."""
        owner = controller_of(pod)
        if owner is not None and owner["kind"] == "ReplicaSet":
            replica_set = self._shared.objects(REPLICA_SETS).get((pod["metadata"]["namespace"], owner["name"]))
            if replica_set is not None:
                self._note_set(replica_set)

    async def _reconcile(self, key: Key) -> float | None:
        deployment = self._shared.objects(DEPLOYMENTS).get(key)
        if deployment is None or is_deleting(deployment):
            return None
        sets = sorted(self._sets.owned_by(deployment["metadata"]["uid"]), key=_revision)
        wanted_hash = template_hash(deployment)
        current = next((item for item in sets if item["metadata"]["labels"].get(HASH_LABEL) == wanted_hash), None)
        old = [item for item in sets if item is not current]
        if not deployment["spec"].get("paused"):
            if current is None and not self._must_wait(deployment, old):
                current = await self._create_set(deployment, wanted_hash, _next_revision(sets))
            elif current is not None and old and _revision(current) <= _revision(old[-1]):
                current = await self._renew(deployment, current, _next_revision(sets))
        for scaling in plan_scaling(deployment, current, old):
            await self._scale(deployment, scaling)
        if not deployment["spec"].get("paused"):
            await self._forget_history(deployment, old)
        return await self._write_status(deployment, current, old)

    def _must_wait(self, deployment: Object, old: Sequence[Object]) -> bool:
        """With strategy Recreate nothing new starts while something old lives."""
        if deployment["spec"].get("strategy", {}).get("type") != "Recreate":
            return False
        return any(
            pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")
            for replica_set in old
            for pod in self._pods.owned_by(replica_set["metadata"]["uid"])
        )

    async def _create_set(self, deployment: Object, wanted_hash: str, revision: int) -> Object | None:
        built = build_replica_set(deployment, wanted_hash, revision)
        try:
            created = await self._shared.client.create(REPLICA_SETS, built)
        except ApiError as error:
            if error.code == 409:  # it exists and the watch has yet to show it
                return None
            raise
        self._shared.remember(REPLICA_SETS, created)
        await self._set_revision(deployment, revision)
        return created

    async def _renew(self, deployment: Object, current: Object, revision: int) -> Object:
        """Makes an older ReplicaSet the newest again, after a rollback."""
        body = {"metadata": {"annotations": {REVISION: str(revision)}}}
        written = await self._shared.client.patch(REPLICA_SETS, key_of(current), body)
        self._shared.remember(REPLICA_SETS, written)
        await self._set_revision(deployment, revision)
        return written

    async def _set_revision(self, deployment: Object, revision: int) -> None:
        body = {"metadata": {"annotations": {REVISION: str(revision)}}}
        self._shared.remember(DEPLOYMENTS, await self._shared.client.patch(DEPLOYMENTS, key_of(deployment), body))

    async def _scale(self, deployment: Object, scaling: Scaling) -> None:
        before = scaling.replica_set["spec"].get("replicas", 1)
        body = {"spec": {"replicas": scaling.replicas}}
        written = await self._shared.client.patch(REPLICA_SETS, key_of(scaling.replica_set), body)
        self._shared.remember(REPLICA_SETS, written)
        direction = "up" if scaling.replicas > before else "down"
        name = written["metadata"]["name"]
        message = f"Scaled {direction} replica set {name} from {before} to {scaling.replicas}"
        self._shared.events.record(deployment, "ScalingReplicaSet", message, kind=KIND, api_version=API_VERSION)

    async def _forget_history(self, deployment: Object, old: list[Object]) -> None:
        limit = deployment["spec"].get("revisionHistoryLimit", DEFAULT_HISTORY)
        idle = [
            item
            for item in old
            if item["spec"].get("replicas", 1) == 0
            and not item.get("status", {}).get("replicas")
            and not is_deleting(item)
        ]
        for item in idle[: max(0, len(old) - limit)]:
            await self._shared.client.delete(REPLICA_SETS, key_of(item), uid=item["metadata"]["uid"])

    async def _write_status(self, deployment: Object, current: Object | None, old: list[Object]) -> float | None:
        status, later = build_status(deployment, current, old, time.time())
        before = deployment.get("status") or {}
        if any(before.get(name, 0) != value for name, value in status.items()):
            written = await self._shared.client.patch(
                DEPLOYMENTS, key_of(deployment), {"status": status}, subresource="status"
            )
            self._shared.remember(DEPLOYMENTS, written)
        return later


def template_hash(deployment: Object) -> str:
    """A name for the pod template: equal templates have equal names."""
    text = orjson.dumps(deployment["spec"]["template"], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()[:10]


def build_replica_set(deployment: Object, wanted_hash: str, revision: int) -> Object:
    """The ReplicaSet of the deployment's present template, as yet without pods."""
    metadata, spec = deployment["metadata"], deployment["spec"]
    template = spec["template"]
    labels = {**(template.get("metadata", {}).get("labels") or {}), HASH_LABEL: wanted_hash}
    selector = spec["selector"]
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "namespace": metadata["namespace"],
            "name": f"{metadata['name']}-{wanted_hash}",
            "labels": labels,
            "annotations": {REVISION: str(revision)},
            "ownerReferences": [owner_reference(deployment, API_VERSION, KIND)],
        },
        "spec": {
            "replicas": 0,
            "minReadySeconds": spec.get("minReadySeconds", 0),
            "selector": {**selector, "matchLabels": {**(selector.get("matchLabels") or {}), HASH_LABEL: wanted_hash}},
            "template": {**template, "metadata": {**(template.get("metadata") or {}), "labels": labels}},
        },
    }


def _revision(replica_set: Object) -> int:
    return int((replica_set["metadata"].get("annotations") or {}).get(REVISION, 0))


def _next_revision(sets: Sequence[Object]) -> int:
    return max((_revision(item) for item in sets), default=0) + 1
