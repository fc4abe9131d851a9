"""What every cluster has from the start: system namespaces, a service account and the CA in each namespace."""

from pathlib import Path
from typing import Any

from capstan_local.server.collection import Change
from capstan_local.server.decoding import Strictness
from capstan_local.server.errors import ApiError
from capstan_local.server.resources import Catalog
from capstan_local.server.storage import Store
from capstan_local.server.workqueue import WorkQueue
from capstan_local.server.writes import WriteOptions, Writer

Object = dict[str, Any]

NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system")
_PRIORITY_CLASSES = {"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}


class Bootstrap:
    """Creates them, and goes on to furnish new namespaces."""

    def __init__(self, store: Store, catalog: Catalog, writer: Writer, ca: Path) -> None:
        self._store = store
        self._catalog = catalog
        self._writer = writer
        self._authority = ca.read_text()
        self.queue: WorkQueue[str] = WorkQueue("namespace furnisher", self._furnish)

    async def start(self) -> None:
        for name in NAMESPACES:
            await self._ensure("namespaces", "", {"metadata": {"name": name}})
        for name, value in _PRIORITY_CLASSES.items():
            description = "Used for system critical pods."
            obj = {"metadata": {"name": name}, "value": value, "description": description}
            await self._ensure("priorityclasses.scheduling.k8s.io", "", obj)
        for entry in self._store.scan("namespaces"):
            await self._furnish(entry.name)
        self._store.global_listeners.append(self._heard)

    def _heard(self, storage_key: str, change: Change) -> None:
        if storage_key == "namespaces" and change.before is None:
            self.queue.add(change.entry.name)

    async def _furnish(self, namespace: str) -> None:
        await self._ensure("serviceaccounts", namespace, {"metadata": {"name": "default"}})
        authority = {"metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": self._authority}}
        await self._ensure("configmaps", namespace, authority)

    async def _ensure(self, storage_key: str, namespace: str, obj: Object) -> None:
        """Create `obj` unless it is there or its namespace is going away."""
        if self._store.get(storage_key, namespace, obj["metadata"]["name"]) is not None:
            return
        resource = self._catalog.stored()[storage_key]
        options = WriteOptions(manager="capstan-local", strictness=Strictness())
        try:
            await self._writer.create(resource, namespace, obj, options)
        except ApiError as error:
            if error.code not in (403, 404, 409):
                raise
