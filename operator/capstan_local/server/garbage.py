"""Garbage collection by owner references, as kube-controller-manager does it: background, foreground and orphan."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from capstan_local.server.codec import make_entry
from capstan_local.server.collection import Change, Entry, Key
from capstan_local.server.deletion import FOREGROUND, ORPHAN, DeleteOptions, Deleter
from capstan_local.server.errors import ApiError
from capstan_local.server.resources import Catalog
from capstan_local.server.storage import Store
from capstan_local.server.workqueue import WorkQueue
from capstan_local.server.writes import is_finished_deleting

Object = dict[str, Any]
Place = tuple[str, Key]  # (storage key, (namespace, name))

# Owners known to be gone although their kind may be gone too; a bound, not a promise.
_REMEMBERED_ABSENT = 10_000


@dataclass(slots=True)
class _Owners:
    """The owner references of one object by what became of the owner."""

    solid: list[Object] = field(default_factory=list)
    gone: list[Object] = field(default_factory=list)
    waiting: list[Object] = field(default_factory=list)  # being deleted in the foreground


class GarbageCollector:
    """Deletes what has lost its owners."""

    def __init__(self, store: Store, catalog: Catalog) -> None:
        self._store = store
        self._catalog = catalog
        self._deleter = Deleter(store, catalog)
        self._absent: OrderedDict[str, None] = OrderedDict()
        self.queue: WorkQueue[Place] = WorkQueue("garbage collector", self._collect)

    def start(self) -> None:
        """Look at every object once, from then on at those that change."""
        self._store.global_listeners.append(self._heard)
        for storage_key, entry in self._store.everything():
            if entry.owners or entry.deleting:
                self.queue.add((storage_key, entry.key))

    def _heard(self, storage_key: str, change: Change) -> None:
        entry, before = change.entry, change.before
        if change.deleted:
            self._absent[entry.uid] = None
            if len(self._absent) > _REMEMBERED_ABSENT:
                self._absent.popitem(last=False)
            for dependent in self._store.dependents.get(entry.uid, ()):
                self.queue.add(dependent)
        elif entry.deleting or (entry.owners and (before is None or before.owners != entry.owners)):
            self.queue.add((storage_key, entry.key))
        if change.deleted or entry.deleting:
            for owner in entry.owners:  # it may wait for this one
                place = self._store.uids.get(owner)
                if place is not None:
                    self.queue.add(place)

    async def _collect(self, place: Place) -> None:
        storage_key, (namespace, name) = place
        entry = self._store.get(storage_key, namespace, name)
        if entry is None or storage_key not in self._catalog.stored():
            return
        if entry.deleting:
            await self._finish_deletion(storage_key, entry)
        elif entry.owners:
            await self._check_owners(storage_key, entry)

    async def _finish_deletion(self, storage_key: str, entry: Entry) -> None:
        obj = entry.load()
        finalizers = obj["metadata"].get("finalizers") or ()
        if ORPHAN in finalizers:
            for dependent_key, dependent in self._dependents(entry):
                await self._drop_owners(dependent_key, dependent, {entry.uid})
            await self._drop_finalizer(storage_key, entry.key, ORPHAN)
        elif FOREGROUND in finalizers:
            blocking = False
            for dependent_key, dependent in self._dependents(entry):
                if not _blocks(dependent, entry.uid):
                    continue
                blocking = True
                if not dependent.deleting:
                    self.queue.add((dependent_key, dependent.key))
            if not blocking:
                await self._drop_finalizer(storage_key, entry.key, FOREGROUND)

    async def _check_owners(self, storage_key: str, entry: Entry) -> None:
        obj = entry.load()
        owners = self._classify(entry, obj)
        if owners is None or not (owners.gone or owners.waiting):
            return
        if owners.solid:
            await self._drop_owners(storage_key, entry, {owner["uid"] for owner in (*owners.gone, *owners.waiting)})
            return
        policy = "Background"
        finalizers = obj["metadata"].get("finalizers") or ()
        if ORPHAN in finalizers:
            policy = "Orphan"
        elif FOREGROUND in finalizers or (owners.waiting and self._store.dependents.get(entry.uid)):
            policy = "Foreground"
        resource = self._catalog.stored()[storage_key]
        try:
            await self._deleter.delete(
                resource, entry.namespace, entry.name, DeleteOptions(policy=policy, uid=entry.uid, rv=str(entry.rv))
            )
        except ApiError as error:
            if error.code not in (404, 409):
                raise
            if error.code == 409:  # it changed meanwhile: look again
                self.queue.add((storage_key, entry.key))

    def _classify(self, entry: Entry, obj: Object) -> _Owners | None:
        """None: some owner is of a kind that is not served, so nothing can be said."""
        owners = _Owners()
        for reference in obj["metadata"].get("ownerReferences") or ():
            place = self._store.uids.get(reference["uid"])
            owner = self._store.get(place[0], *place[1]) if place else None
            if owner and owner.namespace in ("", entry.namespace) and owner.name == reference["name"]:
                waits = owner.deleting and FOREGROUND in (owner.load()["metadata"].get("finalizers") or ())
                (owners.waiting if waits else owners.solid).append(reference)
            elif (
                reference["uid"] in self._absent
                or self._catalog.of_kind(reference["apiVersion"], reference["kind"]) is not None
            ):
                owners.gone.append(reference)
            else:
                return None
        return owners

    def _dependents(self, entry: Entry) -> list[tuple[str, Entry]]:
        found: list[tuple[str, Entry]] = []
        for storage_key, (namespace, name) in sorted(self._store.dependents.get(entry.uid, ())):
            dependent = self._store.get(storage_key, namespace, name)
            if dependent is not None and (not entry.namespace or namespace == entry.namespace):
                found.append((storage_key, dependent))
        return found

    async def _drop_owners(self, storage_key: str, entry: Entry, uids: set[str]) -> None:
        current = self._store.get(storage_key, *entry.key)
        if current is None or current.uid != entry.uid or storage_key not in self._catalog.stored():
            return
        obj = current.load()
        kept = [owner for owner in obj["metadata"].get("ownerReferences") or () if owner["uid"] not in uids]
        if kept:
            obj["metadata"]["ownerReferences"] = kept
        else:
            obj["metadata"].pop("ownerReferences", None)
        await self._rewrite(storage_key, obj)

    async def _drop_finalizer(self, storage_key: str, key: Key, finalizer: str) -> None:
        current = self._store.get(storage_key, *key)
        if current is None:
            return
        obj = current.load()
        kept = [name for name in obj["metadata"].get("finalizers") or () if name != finalizer]
        obj["metadata"]["finalizers"] = kept
        if not kept:
            del obj["metadata"]["finalizers"]
        await self._rewrite(storage_key, obj)

    async def _rewrite(self, storage_key: str, obj: Object) -> None:
        entry = make_entry(self._catalog.stored()[storage_key], obj, self._store.next_rv())
        await (
            self._store.delete(storage_key, entry) if is_finished_deleting(obj) else self._store.put(storage_key, entry)
        )


def _blocks(dependent: Entry, owner_uid: str) -> bool:
    references = dependent.load()["metadata"].get("ownerReferences") or ()
    return any(owner["uid"] == owner_uid and owner.get("blockOwnerDeletion") for owner in references)
