"""One informer per kind for all controllers, and who wants to hear of what."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from capstan_local.client import (
    CLAIMS,
    DEPLOYMENTS,
    ENDPOINTS,
    JOBS,
    NAMESPACES,
    NODES,
    PODS,
    REPLICA_SETS,
    SERVICE_ACCOUNTS,
    SERVICES,
    ChangeType,
    Client,
    Key,
    Object,
    Resource,
)
from capstan_local.informer import Informer
from capstan_local.node.events import EventRecorder

Listener = Callable[[ChangeType, Object, Object | None], None]

KINDS = (PODS, NODES, NAMESPACES, SERVICES, ENDPOINTS, SERVICE_ACCOUNTS, CLAIMS, DEPLOYMENTS, REPLICA_SETS, JOBS)


class Controller(Protocol):
    async def run(self) -> None: ...


class Shared:
    """The informers, the client and the event recorder that all controllers use."""

    def __init__(self, client: Client, events: EventRecorder) -> None:
        self.client = client
        self.events = events
        self._listeners: dict[Resource, list[Listener]] = {kind: [] for kind in KINDS}
        self._informers = {kind: Informer(client, kind, self._forward(kind)) for kind in KINDS}

    def listen(self, kind: Resource, listener: Listener) -> None:
        """`listener` hears of every change of `kind` from now on; to be called before `run`."""
        self._listeners[kind].append(listener)

    def objects(self, kind: Resource) -> dict[Key, Object]:
        """All objects of a kind as last seen; not to be changed."""
        return self._informers[kind].objects

    def remember(self, kind: Resource, obj: Object) -> None:
        """Makes an object that was just written visible before the watch shows it, so that it is not written twice."""
        self._informers[kind].remember(obj)

    def in_namespace(self, kind: Resource, namespace: str) -> Iterator[Object]:
        return (obj for key, obj in self.objects(kind).items() if key[0] == namespace)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.events.run())
            for informer in self._informers.values():
                group.create_task(informer.run())

    async def synced(self) -> None:
        for informer in self._informers.values():
            await informer.synced.wait()

    def _forward(self, kind: Resource) -> Listener:
        def on_change(change: ChangeType, obj: Object, old: Object | None) -> None:
            for listener in self._listeners[kind]:
                listener(change, obj, old)

        return on_change


def claims_of(pod: Object) -> set[str]:
    """Names of the PersistentVolumeClaims whose volumes a pod mounts."""
    volumes = pod["spec"].get("volumes") or []
    return {volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume}


class OwnedIndex:
    """Objects by the uid of their controller, kept by listening."""

    def __init__(self, shared: Shared, kind: Resource, on_change: Callable[[Object], None]) -> None:
        """`on_change(owner_reference_holder)` is called with each changed object that has, or had, a controller."""
        self._by_owner: dict[str, dict[str, Object]] = {}
        self._on_change = on_change
        shared.listen(kind, self._note)

    def owned_by(self, uid: str) -> list[Object]:
        return list(self._by_owner.get(uid, {}).values())

    def _note(self, change: ChangeType, obj: Object, old: Object | None) -> None:
        if old is not None:
            self._drop(old)
        owner = controller_of(obj)
        if owner is not None and change != "DELETED":
            self._by_owner.setdefault(owner["uid"], {})[obj["metadata"]["uid"]] = obj
        for version in (obj, old):
            if version is not None:
                self._on_change(version)

    def _drop(self, obj: Object) -> None:
        owner = controller_of(obj)
        if owner is None:
            return
        siblings = self._by_owner.get(owner["uid"], {})
        siblings.pop(obj["metadata"]["uid"], None)
        if not siblings:
            self._by_owner.pop(owner["uid"], None)


def controller_of(obj: Object) -> Object | None:
    """The owner reference of the controller; None without one."""
    return next((ref for ref in obj["metadata"].get("ownerReferences") or [] if ref.get("controller")), None)


def owner_reference(owner: Object, api_version: str, kind: str) -> Object:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def is_deleting(obj: Object) -> bool:
    return bool(obj["metadata"].get("deletionTimestamp"))


def is_active(pod: Object) -> bool:
    """Whether a pod still does something: neither ended nor being deleted."""
    return not is_deleting(pod) and pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")


def ready_since(pod: Object) -> str | None:
    """When the pod became ready; None while it is not."""
    for condition in pod.get("status", {}).get("conditions") or []:
        if condition["type"] == "Ready" and condition["status"] == "True":
            return str(condition.get("lastTransitionTime") or "")
    return None


def matches(selector: Any, labels: dict[str, str]) -> bool:
    """Whether a LabelSelector (matchLabels, matchExpressions) selects these labels; an empty one selects all."""
    if any(labels.get(name) != value for name, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(matches_expression(expression, labels) for expression in selector.get("matchExpressions") or [])


def matches_expression(expression: Object, labels: dict[str, str]) -> bool:
    """One requirement of a label selector or node selector. ValueError for an operator that does not exist."""
    value, values = labels.get(expression["key"]), expression.get("values") or []
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt":
            return value is not None and int(value) > int(values[0])
        case "Lt":
            return value is not None and int(value) < int(values[0])
    raise ValueError(f"operator: {expression['operator']!r} is none of In, NotIn, Exists, DoesNotExist, Gt, Lt")
