"""What has to go before a namespace or a CustomResourceDefinition can: everything in it, every object of it."""

import asyncio
from typing import Any

from capstan_local.server import crd_registry
from capstan_local.server.codec import make_entry
from capstan_local.server.collection import Change, Entry
from capstan_local.server.deletion import DeleteOptions, Deleter
from capstan_local.server.errors import ApiError
from capstan_local.server.metadata import now_rfc3339
from capstan_local.server.resources import Catalog, Resource
from capstan_local.server.storage import Store
from capstan_local.server.workqueue import WorkQueue
from capstan_local.server.writes import is_finished_deleting

Object = dict[str, Any]

_NAMESPACES = "namespaces"
_AT_ONCE = 64


class Terminator:
    """Empties namespaces and CRDs that are being deleted, then lets them go."""

    def __init__(self, store: Store, catalog: Catalog) -> None:
        self._store = store
        self._catalog = catalog
        self._deleter = Deleter(store, catalog)
        self.queue: WorkQueue[tuple[str, str]] = WorkQueue("terminator", self._terminate)

    def start(self) -> None:
        self._store.global_listeners.append(self._heard)
        for storage_key in (_NAMESPACES, crd_registry.CRDS):
            for entry in self._store.scan(storage_key):
                if entry.deleting:
                    self.queue.add((storage_key, entry.name))

    def _heard(self, storage_key: str, change: Change) -> None:
        entry = change.entry
        if storage_key in (_NAMESPACES, crd_registry.CRDS):
            if entry.deleting and not change.deleted:
                self.queue.add((storage_key, entry.name))
            return
        if not change.deleted:
            return
        for holder, name in ((_NAMESPACES, entry.namespace), (crd_registry.CRDS, storage_key)):
            holding = self._store.get(holder, "", name)
            if holding is not None and holding.deleting:
                self.queue.add((holder, name))

    async def _terminate(self, item: tuple[str, str]) -> None:
        storage_key, name = item
        entry = self._store.get(storage_key, "", name)
        if entry is None or not entry.deleting:
            return
        if storage_key == _NAMESPACES:
            await self._empty_namespace(entry)
        else:
            await self._empty_crd(entry)

    async def _empty_namespace(self, entry: Entry) -> None:
        resources = [resource for resource in self._catalog.stored().values() if resource.namespaced]
        for resource in resources:
            await self._delete_all(resource, entry.name)
        current = self._store.get(_NAMESPACES, "", entry.name)
        if current is None or not current.deleting:
            return
        left = {
            resource: count
            for resource in resources
            if (count := sum(1 for _ in self._store.scan(resource.storage_key, entry.name)))
        }
        namespace = current.load()
        if left:
            _report_remaining(namespace, left)
        else:
            kept = [name for name in namespace["spec"].get("finalizers") or () if name != "kubernetes"]
            namespace["spec"]["finalizers"] = kept
            if not kept:
                del namespace["spec"]["finalizers"]
        await self._rewrite(_NAMESPACES, current, namespace)

    async def _empty_crd(self, entry: Entry) -> None:
        crd = entry.load()
        storage_key = f"{crd['spec']['names']['plural']}.{crd['spec']['group']}"
        resource = self._catalog.stored().get(storage_key)
        if resource is not None:
            await self._delete_all(resource, "")
        current = self._store.get(crd_registry.CRDS, "", entry.name)
        if current is None or any(True for _ in self._store.scan(storage_key)):
            return
        crd = current.load()
        kept = [name for name in crd["metadata"].get("finalizers") or () if name != crd_registry.CLEANUP_FINALIZER]
        crd["metadata"]["finalizers"] = kept
        if not kept:
            del crd["metadata"]["finalizers"]
        await self._rewrite(crd_registry.CRDS, current, crd)

    async def _delete_all(self, resource: Resource, namespace: str) -> None:
        waiting = [entry for entry in self._store.scan(resource.storage_key, namespace) if not entry.deleting]
        for at in range(0, len(waiting), _AT_ONCE):
            await asyncio.gather(*(self._delete(resource, entry) for entry in waiting[at : at + _AT_ONCE]))

    async def _delete(self, resource: Resource, entry: Entry) -> None:
        options = DeleteOptions(policy="Background", uid=entry.uid)
        try:
            await self._deleter.delete(resource, entry.namespace, entry.name, options)
        except ApiError as error:
            if error.code not in (404, 409):  # gone or replaced meanwhile: not ours to delete any more
                raise

    async def _rewrite(self, storage_key: str, current: Entry, obj: Object) -> None:
        if obj == current.load():
            return
        successor = make_entry(self._catalog.stored()[storage_key], obj, self._store.next_rv())
        if not is_finished_deleting(obj):
            await self._store.put(storage_key, successor)
            return
        done = self._store.delete(storage_key, successor)
        if storage_key == crd_registry.CRDS:
            crd_registry.withdraw(self._catalog, obj)
        await done


def _report_remaining(namespace: Object, left: dict[Resource, int]) -> None:
    """Say on the namespace's status what it still waits for."""
    listed = ", ".join(
        f"{resource.plural}.{resource.group or ''} has {count} resource instances" for resource, count in left.items()
    )
    message = f"Some resources are remaining: {listed}"
    conditions = namespace.setdefault("status", {}).setdefault("conditions", [])
    new = {"type": "NamespaceContentRemaining", "status": "True", "reason": "SomeResourcesRemain", "message": message}
    for at, condition in enumerate(conditions):
        if condition["type"] == new["type"]:
            if condition.get("message") != message:
                conditions[at] = {**new, "lastTransitionTime": now_rfc3339()}
            return
    conditions.append({**new, "lastTransitionTime": now_rfc3339()})
