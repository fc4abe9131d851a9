"""DELETE: preconditions, grace, finalizers and the propagation policy."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from capstan_local.server import crd_registry
from capstan_local.server.codec import dumps, make_entry, render, to_version
from capstan_local.server.collection import Entry
from capstan_local.server.errors import ApiError, Cause, conflict, forbidden, invalid, not_found, not_supported
from capstan_local.server.resources import Catalog, Resource
from capstan_local.server.storage import Store
from capstan_local.server.writes import is_finished_deleting

Object = dict[str, Any]

ORPHAN = "orphan"
FOREGROUND = "foregroundDeletion"

_POLICIES = ("Background", "Foreground", "Orphan")
# Kinds whose DELETE answers with the object when it is gone at once; all others answer with a Status.
_RETURNS_OBJECT = (
    "v1/PersistentVolume",
    "v1/PersistentVolumeClaim",
    "v1/Pod",
    "v1/PodTemplate",
    "v1/ResourceQuota",
    "v1/Service",
    "v1/ServiceAccount",
)
# Kinds whose dependents are left alone unless the client says otherwise (for old clients' sake).
_ORPHANS_BY_DEFAULT = ("batch/v1/Job", "v1/ReplicationController")
_IMMORTAL_NAMESPACES = ("default", "kube-system", "kube-public")


@dataclass(slots=True)
class DeleteOptions:
    """metav1.DeleteOptions. None means: not given."""

    grace_seconds: int | None = None
    policy: str | None = None
    uid: str | None = None
    rv: str | None = None
    dry_run: bool = False


def parse_options(body: Object, query: dict[str, str]) -> DeleteOptions:
    """Options from the body, where there is none from the query. Raises ApiError 422."""
    preconditions = body.get("preconditions") or {}
    grace = body.get("gracePeriodSeconds", query.get("gracePeriodSeconds"))
    policy = body.get("propagationPolicy") or query.get("propagationPolicy")
    orphan = body.get("orphanDependents", query.get("orphanDependents"))
    if policy is None and orphan is not None:
        policy = "Orphan" if orphan in (True, "true") else "Background"
    if policy is not None and policy not in _POLICIES:
        causes = [not_supported("propagationPolicy", policy, ("Foreground", "Background", "Orphan", "nil"))]
        raise invalid("DeleteOptions", "meta.k8s.io", "", causes)
    dry_run = body.get("dryRun") or [value for value in (query.get("dryRun"),) if value]
    if dry_run and dry_run != ["All"]:
        raise invalid("DeleteOptions", "meta.k8s.io", "", [not_supported("dryRun", dry_run[0], ("All",))])
    try:
        grace_seconds = None if grace is None else int(grace)
    except (TypeError, ValueError):
        cause = Cause("FieldValueInvalid", f'Invalid value: "{grace}": must be an integer', "gracePeriodSeconds")
        raise invalid("DeleteOptions", "meta.k8s.io", "", [cause]) from None
    return DeleteOptions(
        grace_seconds=grace_seconds,
        policy=policy,
        uid=preconditions.get("uid"),
        rv=preconditions.get("resourceVersion"),
        dry_run=bool(dry_run),
    )


class Deleter:
    """Deletes from `store`."""

    def __init__(self, store: Store, catalog: Catalog) -> None:
        self._store = store
        self._catalog = catalog

    async def delete(self, resource: Resource, namespace: str, name: str, options: DeleteOptions) -> bytes:
        """The response's body: the object where it lingers, otherwise as kube-apiserver answers. Raises ApiError."""
        entry = self._store.get(resource.storage_key, namespace if resource.namespaced else "", name)
        if entry is None:
            raise not_found(resource.plural, resource.group, name)
        self._check(resource, entry, options)
        obj = entry.load()
        _mark(resource, obj, options)
        if options.dry_run:
            return dumps(to_version(resource, obj))
        if _is_unchanged(obj, entry):
            return render(resource, entry)
        if not is_finished_deleting(obj):
            last = make_entry(resource, obj, self._store.next_rv())
            done = self._store.put(resource.storage_key, last)
            if resource.storage_key == crd_registry.CRDS:
                crd_registry.serve(self._catalog, obj, last.rv)
            await done
            return render(resource, last)
        # Nothing holds it: it goes as it is, without ever having been marked.
        last = make_entry(resource, entry.load(), self._store.next_rv())
        done = self._store.delete(resource.storage_key, last)
        if resource.storage_key == crd_registry.CRDS:
            crd_registry.withdraw(self._catalog, obj)
        await done
        return render(resource, last) if resource.kind_key in _RETURNS_OBJECT else _success(resource, last)

    def _check(self, resource: Resource, entry: Entry, options: DeleteOptions) -> None:
        checks = (
            ("UID", options.uid, entry.uid, "deleted and then recreated"),
            ("ResourceVersion", options.rv, str(entry.rv), "modified"),
        )
        for what, wanted, actual, happened in checks:
            if wanted is not None and wanted != actual:
                why = (
                    f"the {what} in the precondition ({wanted}) does not match the {what} in record ({actual}). "
                    f"The object might have been {happened}"
                )
                raise conflict(resource.kind, resource.group, entry.name, why)
        if resource.kind_key == "v1/Namespace" and entry.name in _IMMORTAL_NAMESPACES:
            raise forbidden("namespaces", "", entry.name, "this namespace may not be deleted")


def _mark(resource: Resource, obj: Object, options: DeleteOptions) -> None:
    """Write the deletion into the object: when, with what grace, what has to happen first."""
    meta = obj["metadata"]
    first = "deletionTimestamp" not in meta
    grace = _grace_seconds(resource, obj, options)
    if not first and resource.kind_key == "v1/Pod":
        grace = min(grace, meta.get("deletionGracePeriodSeconds", 0))
    _settle_finalizers(resource, meta, options)
    if first:
        if meta.get("generation", 0) > 0:
            meta["generation"] += 1
        meta["deletionTimestamp"] = _seconds_from_now(grace)
        meta["deletionGracePeriodSeconds"] = grace
    elif grace < meta.get("deletionGracePeriodSeconds", 0):
        meta["deletionTimestamp"] = _seconds_from_now(grace)
        meta["deletionGracePeriodSeconds"] = grace
    if resource.kind_key == "v1/Namespace":
        obj.setdefault("status", {})["phase"] = "Terminating"
    elif resource.storage_key == crd_registry.CRDS:
        if first:
            meta["finalizers"] = list(dict.fromkeys([*(meta.get("finalizers") or ()), crd_registry.CLEANUP_FINALIZER]))
        crd_registry.set_terminating(obj)


def _grace_seconds(resource: Resource, obj: Object, options: DeleteOptions) -> int:
    """Seconds the object stays. Only pods that a node runs need any."""
    if resource.kind_key != "v1/Pod":
        return 0
    spec, phase = obj.get("spec") or {}, (obj.get("status") or {}).get("phase")
    if not spec.get("nodeName") or phase in ("Succeeded", "Failed"):
        return 0
    grace = (
        options.grace_seconds if options.grace_seconds is not None else spec.get("terminationGracePeriodSeconds", 30)
    )
    return max(int(grace), 1) if grace < 0 else int(grace)


def _settle_finalizers(resource: Resource, meta: Object, options: DeleteOptions) -> None:
    """The propagation policy lives in the object as a finalizer that the garbage collector acts on and removes."""
    finalizers = list(meta.get("finalizers") or ())
    policy = options.policy
    if policy is None:
        if ORPHAN in finalizers or FOREGROUND in finalizers:
            return
        policy = "Orphan" if resource.kind_key in _ORPHANS_BY_DEFAULT else "Background"
    finalizers = [finalizer for finalizer in finalizers if finalizer not in (ORPHAN, FOREGROUND)]
    if policy == "Orphan":
        finalizers.append(ORPHAN)
    elif policy == "Foreground":
        finalizers.append(FOREGROUND)
    if finalizers:
        meta["finalizers"] = finalizers
    else:
        meta.pop("finalizers", None)


def _is_unchanged(obj: Object, entry: Entry) -> bool:
    return entry.deleting and not is_finished_deleting(obj) and obj == entry.load()


def _seconds_from_now(seconds: int) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _success(resource: Resource, entry: Entry) -> bytes:
    details = {"name": entry.name, "group": resource.group, "kind": resource.plural, "uid": entry.uid}
    return dumps(
        {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "details": {key: value for key, value in details.items() if value},
        }
    )


def too_many_disruptions() -> ApiError:
    """The answer to an eviction that a PodDisruptionBudget does not allow now."""
    return ApiError(
        429,
        "Cannot evict pod as it would violate the pod's disruption budget.",
        details={
            "causes": [{"reason": "DisruptionBudget", "message": "The disruption budget does not allow this now."}]
        },
    )
