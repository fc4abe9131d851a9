"""Makes PersistentVolumes, folders of this machine, for claims that nobody else serves.

Follows the protocol of external provisioners, so that a real controller manager, which binds claims itself, agrees with
it: a PersistentVolume that names the claim in claimRef. Where there is no such controller the binding is written here;
both write the same.
"""

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from capstan_local.client import CLAIMS, STORAGE_CLASSES, VOLUMES, ApiError, Client, Key, Object, Unreachable, key_of
from capstan_local.informer import Informer
from capstan_local.node.events import EventRecorder

log = logging.getLogger(__name__)

STORAGE_CLASS = "local"
PROVISIONER = "local-node/folder"
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
RETRY_SECONDS = 2.0
IS_DEFAULT = "storageclass.kubernetes.io/is-default-class"


class Provisioner:
    """Serves claims of the StorageClass `local`, which it makes the default, and claims of no class at all."""

    def __init__(
        self,
        client: Client,
        home: Path,
        events: EventRecorder,
        on_claim: Callable[[Key], None],
        is_in_use: Callable[[Key], bool],
    ) -> None:
        """`on_claim` is told of every change of a claim; `is_in_use` says whether a pod here still uses one."""
        self._client = client
        self._home = home
        self._events = events
        self._on_claim = on_claim
        self._is_in_use = is_in_use
        self._wake = asyncio.Event()
        self._claims = Informer(client, CLAIMS, self._note_claim)
        self._volumes = Informer(client, VOLUMES, lambda *_: self._wake.set())

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._claims.run())
            group.create_task(self._volumes.run())
            await self._until_done(self._make_storage_class)
            await self._claims.synced.wait()
            await self._volumes.synced.wait()
            while True:
                self._wake.clear()
                await self._until_done(self._serve_all)
                await self._wake.wait()

    def wake(self) -> None:
        """A pod is gone: a claim it used may be free now."""
        self._wake.set()

    def _note_claim(self, _change: str, claim: Object, _old: Object | None) -> None:
        self._wake.set()
        self._on_claim(key_of(claim))

    async def _until_done(self, work: Callable[[], Any]) -> None:
        while True:
            try:
                await work()
                return
            except (ApiError, Unreachable, OSError) as error:
                log.warning("provisioner, next try in %.0f s: %s", RETRY_SECONDS, error)
                await asyncio.sleep(RETRY_SECONDS)

    async def _make_storage_class(self) -> None:
        """The default class, unless the cluster has one already."""
        existing, _ = await self._client.list(STORAGE_CLASSES)
        has_default = any((item["metadata"].get("annotations") or {}).get(IS_DEFAULT) == "true" for item in existing)
        storage_class = {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": STORAGE_CLASS, "annotations": {IS_DEFAULT: str(not has_default).lower()}},
            "provisioner": PROVISIONER,
            "reclaimPolicy": "Delete",
            "volumeBindingMode": "Immediate",
        }
        await self._create(STORAGE_CLASSES, storage_class)

    async def _serve_all(self) -> None:
        for claim in list(self._claims.objects.values()):
            if self._is_ours(claim):
                await self._bind(claim)
        for volume in list(self._volumes.objects.values()):
            if volume["metadata"].get("annotations", {}).get(PROVISIONED_BY) == PROVISIONER:
                await self._reclaim(volume)

    def _is_ours(self, claim: Object) -> bool:
        status, spec = claim.get("status") or {}, claim["spec"]
        if status.get("phase") == "Bound" or claim["metadata"].get("deletionTimestamp"):
            return False
        volume = spec.get("volumeName")
        if volume and volume != _volume_name(claim):
            return False  # asked for a particular volume
        return spec.get("storageClassName") in (None, STORAGE_CLASS) and not spec.get("selector")

    async def _bind(self, claim: Object) -> None:
        namespace, name = key_of(claim)
        folder = self._home / "volumes" / namespace / name
        folder.mkdir(parents=True, exist_ok=True)
        volume = _build_volume(claim, folder)
        was_new = await self._create(VOLUMES, volume)
        bound = {"spec": {"volumeName": volume["metadata"]["name"]}, "metadata": {"annotations": _BOUND}}
        await self._client.patch(CLAIMS, (namespace, name), bound)
        status = {
            "phase": "Bound",
            "accessModes": claim["spec"]["accessModes"],
            "capacity": volume["spec"]["capacity"],
        }
        await self._client.patch(CLAIMS, (namespace, name), {"status": status}, subresource="status")
        await self._client.patch(
            VOLUMES, ("", volume["metadata"]["name"]), {"status": {"phase": "Bound"}}, subresource="status"
        )
        if was_new:
            message = f"Successfully provisioned volume {volume['metadata']['name']}"
            self._events.record(claim, "ProvisioningSucceeded", message, kind="PersistentVolumeClaim")

    async def _reclaim(self, volume: Object) -> None:
        """Removes a volume and its folder once its claim is gone and no pod here uses it, unless it is to be kept."""
        reference = volume["spec"]["claimRef"]
        key = (reference["namespace"], reference["name"])
        claim = self._claims.objects.get(key)
        if claim is not None and claim["metadata"]["uid"] == reference["uid"]:
            return
        if volume["spec"].get("persistentVolumeReclaimPolicy") != "Delete" or self._is_in_use(key):
            return
        folder = Path(volume["spec"]["hostPath"]["path"])
        if claim is None and folder.is_relative_to(self._home):
            with contextlib.suppress(FileNotFoundError):
                await asyncio.to_thread(shutil.rmtree, folder)
        await self._client.delete(VOLUMES, ("", volume["metadata"]["name"]), uid=volume["metadata"]["uid"])

    async def _create(self, resource: Any, obj: Object) -> bool:
        """False when it is there already."""
        try:
            await self._client.create(resource, obj)
        except ApiError as error:
            if error.code == 409:
                return False
            raise
        return True


_BOUND = {"pv.kubernetes.io/bind-completed": "yes", "pv.kubernetes.io/bound-by-controller": "yes"}


def _volume_name(claim: Object) -> str:
    return f"pvc-{claim['metadata']['uid']}"


def _build_volume(claim: Object, folder: Path) -> Object:
    namespace, name = key_of(claim)
    spec = claim["spec"]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": _volume_name(claim), "annotations": {PROVISIONED_BY: PROVISIONER}},
        "spec": {
            "accessModes": spec["accessModes"],
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": spec.get("storageClassName") or "",
            "volumeMode": spec.get("volumeMode") or "Filesystem",
            "hostPath": {"path": str(folder), "type": ""},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": namespace,
                "name": name,
                "uid": claim["metadata"]["uid"],
            },
        },
    }
