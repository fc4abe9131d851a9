"""Create, update, patch and apply: from a request's object to a stored one.

Everything between reading the stored object and staging its successor runs without an await, so no two writers of one
object can interleave; only the commit is awaited.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from capstan_local.schema import managed_fields
from capstan_local.server import crd_registry, defaults, metadata, strategy, validation
from capstan_local.server.admission import Admission
from capstan_local.server.codec import dumps, make_entry, render, to_stored, to_version
from capstan_local.server.collection import Entry
from capstan_local.server.decoding import Strictness, check_kind, decode
from capstan_local.server.errors import (
    ApiError,
    Cause,
    already_exists,
    apply_conflict,
    bad_request,
    conflict,
    invalid,
    not_found,
)
from capstan_local.server.resources import Catalog, Resource
from capstan_local.server.storage import Store

Object = dict[str, Any]
Transform = Callable[[Object], Object]

_NAME_TRIES = 8
# Kinds that refuse a replace without a resource version, beside all custom resources.
_VERSIONED_UPDATES = (
    "apiextensions.k8s.io/v1/CustomResourceDefinition",
    "coordination.k8s.io/v1/Lease",
    "policy/v1/PodDisruptionBudget",
)
# Kinds of which a PUT may make a new object.
_CREATED_BY_PUT = (
    "coordination.k8s.io/v1/Lease",
    "rbac.authorization.k8s.io/v1/ClusterRole",
    "rbac.authorization.k8s.io/v1/ClusterRoleBinding",
    "rbac.authorization.k8s.io/v1/Role",
    "rbac.authorization.k8s.io/v1/RoleBinding",
    "v1/Endpoints",
    "v1/Event",
    "v1/LimitRange",
    "v1/Service",
)


@dataclass(slots=True)
class WriteOptions:
    """What a write request asks for beside its object."""

    manager: str
    strictness: Strictness
    dry_run: bool = False
    force: bool = False


@dataclass(slots=True)
class Written:
    """The result of a write: the HTTP code and the object as the client gets it."""

    code: int
    body: bytes
    entry: Entry | None = None  # None after a dry run


@dataclass(slots=True)
class _Update:
    """One update under way: what it acts on and how."""

    resource: Resource
    subresource: str
    options: WriteOptions
    mode: Literal["put", "patch", "apply"]


class Writer:
    """Writes to `store` what `catalog` serves."""

    def __init__(self, store: Store, catalog: Catalog, admission: Admission) -> None:
        self._store = store
        self._catalog = catalog
        self._admission = admission

    async def create(self, resource: Resource, namespace: str, obj: Object, options: WriteOptions) -> Written:
        """201 and the new object. Raises ApiError."""
        return await self._create(resource, namespace, decode(resource, obj, options.strictness), options, None)

    async def _create(
        self, resource: Resource, namespace: str, obj: Object, options: WriteOptions, applied: Object | None
    ) -> Written:
        meta = obj["metadata"]
        metadata.settle_namespace(resource, meta, namespace)
        if resource.namespaced:
            self._admission.check_namespace(resource, namespace, meta.get("name") or "")
        if meta.get("resourceVersion"):
            raise ApiError(500, "resourceVersion should not be set on objects to be created", reason="")
        generated = not meta.get("name") and bool(meta.get("generateName"))
        metadata.prepare_create(resource, meta)
        new = self._settle(resource, to_stored(resource, obj), None)
        for _ in range(_NAME_TRIES if generated else 1):
            if self._store.get(resource.storage_key, namespace if resource.namespaced else "", meta["name"]) is None:
                break
            if generated:
                meta["name"] = metadata.generate_name(meta["generateName"])
        else:
            raise already_exists(resource.plural, resource.group, meta["name"])
        if applied is None:
            new = self._record(_Update(resource, "", options, "put"), None, new)
        if options.dry_run:
            return Written(201, dumps(to_version(resource, new)))
        entry = make_entry(resource, new, self._store.next_rv())
        await self._put(resource, entry, new)
        return Written(201, render(resource, entry), entry)

    async def replace(
        self, resource: Resource, namespace: str, name: str, subresource: str, obj: Object, options: WriteOptions
    ) -> Written:
        """PUT: 200 and the object. Raises ApiError."""
        obj = decode(resource, obj, options.strictness)
        meta = obj["metadata"]
        if not meta.get("name"):
            raise bad_request("name must be provided")
        _check_name(meta, name)
        metadata.settle_namespace(resource, meta, namespace)
        creates = resource.kind_key in _CREATED_BY_PUT and not subresource
        if creates and self._store.get(resource.storage_key, namespace if resource.namespaced else "", name) is None:
            return await self._create(resource, namespace, obj, options, None)
        entry = self._find(resource, namespace, name)
        return await self._update(_Update(resource, subresource, options, "put"), entry, obj)

    async def patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        subresource: str,
        transform: Transform,
        options: WriteOptions,
    ) -> Written:
        """200 and the object after `transform` of a copy of it in the requested version. Raises ApiError."""
        entry = self._find(resource, namespace, name)
        live = to_version(resource, entry.load())
        patched = transform(live)
        if not isinstance(patched, dict):
            raise bad_request("a patch must leave an object")
        patched = decode(resource, patched, options.strictness)
        _check_name(patched["metadata"], name)
        metadata.settle_namespace(resource, patched["metadata"], namespace)
        return await self._update(_Update(resource, subresource, options, "patch"), entry, patched)

    async def apply(
        self, resource: Resource, namespace: str, name: str, subresource: str, applied: Object, options: WriteOptions
    ) -> Written:
        """Server-side apply: 201 when the object is new, otherwise 200. Raises ApiError (409 with the conflicts)."""
        for field in ("apiVersion", "kind"):
            if not applied.get(field):
                raise bad_request(f"{field} must be set in an apply patch")
        check_kind(resource, applied)
        meta = applied["metadata"]
        if meta.get("managedFields"):
            raise bad_request("metadata.managedFields must be nil")
        meta.setdefault("name", name)
        _check_name(meta, name)
        metadata.settle_namespace(resource, meta, namespace)
        applied = decode(resource, applied, options.strictness)
        entry = self._store.get(resource.storage_key, namespace if resource.namespaced else "", name)
        if entry is None and (subresource or meta.get("uid")):
            raise not_found(resource.plural, resource.group, name)
        live = to_version(resource, entry.load()) if entry else None
        if live is not None and meta.get("resourceVersion") not in (None, "", live["metadata"]["resourceVersion"]):
            raise conflict(resource.plural, resource.group, name)
        merged = self._merge(resource, live, applied, subresource, options)
        if entry is None:
            return await self._create(resource, namespace, merged, options, applied)
        return await self._update(_Update(resource, subresource, options, "apply"), entry, merged)

    async def mutate(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        subresource: str,
        transform: Transform,
        options: WriteOptions,
    ) -> Written:
        """An update by the server itself on a client's behalf (scale, binding, finalisation). Raises ApiError."""
        entry = self._find(resource, namespace, name)
        changed = transform(to_version(resource, entry.load()))
        return await self._update(_Update(resource, subresource, options, "patch"), entry, changed)

    # ---- the common part of all updates

    async def _update(self, update: _Update, entry: Entry, obj: Object) -> Written:
        resource, options = update.resource, update.options
        old = to_version(resource, entry.load()) if resource.custom else entry.load()
        self._check_preconditions(update, obj["metadata"], old["metadata"])
        new = to_stored(resource, obj)
        if resource.custom:
            old = to_stored(resource, old)
        metadata.prepare_update(new["metadata"], old["metadata"])
        new = strategy.restrict_update(resource, new, old, update.subresource)
        new = self._settle(resource, new, old, update.subresource)
        strategy.bump_generation(resource, new, old)
        if _same(new, old):
            return Written(200, render(resource, entry), entry)
        if update.mode != "apply":
            new = self._record(update, old, new)
        if options.dry_run:
            return Written(200, dumps(to_version(resource, new)))
        successor = make_entry(resource, new, self._store.next_rv())
        if is_finished_deleting(new):
            await self._delete(resource, successor, new)
        else:
            await self._put(resource, successor, new)
        return Written(200, render(resource, successor), successor)

    def _check_preconditions(self, update: _Update, new: Object, old: Object) -> None:
        resource, name = update.resource, old["name"]
        if new.get("uid") and new["uid"] != old["uid"]:
            why = f"Precondition failed: UID in precondition: {new['uid']}, UID in object meta: {old['uid']}"
            raise conflict(resource.plural, resource.group, name, why)
        rv = new.get("resourceVersion")
        if not rv:
            if update.mode == "put" and (resource.custom or resource.kind_key in _VERSIONED_UPDATES):
                why = "Invalid value: 0x0: must be specified for an update"
                cause = Cause("FieldValueInvalid", why, "metadata.resourceVersion")
                raise invalid(resource.plural, resource.group, name, [cause])
        elif rv != old["resourceVersion"]:
            raise conflict(resource.plural, resource.group, name)

    def _settle(self, resource: Resource, new: Object, old: Object | None, subresource: str = "") -> Object:
        """Default, admit and validate a new or changed object in its stored version. Raises ApiError 422."""
        meta = new["metadata"]
        causes = metadata.validate(resource, meta, old["metadata"] if old else None)
        if resource.custom:
            if old is None:
                strategy.drop_foreign_status(resource, new)
            new = resource.custom.structural.default(new)
            causes += [
                Cause(error.reason, error.body, error.path) for error in resource.custom.structural.validate(new, old)
            ]
        else:
            causes += self._settle_builtin(resource, new, old, subresource)
        if causes:
            raise invalid(resource.kind, resource.group, meta.get("name") or "", causes)
        return new

    def _settle_builtin(self, resource: Resource, new: Object, old: Object | None, subresource: str) -> list[Cause]:
        if old is None:
            strategy.drop_foreign_status(resource, new)
        defaults.default_object(_stored_kind_key(resource), new)
        if old is None:
            strategy.prepare_create(resource, new)
            self._admission.prepare_create(resource, new)
        elif not subresource:
            self._admission.prepare_update(resource, new, old)
        if resource.storage_key == crd_registry.CRDS:
            causes = crd_registry.validate(new, old)
            if not causes and subresource != "status":
                crd_registry.refresh_status(new, self._catalog)
            return causes
        if subresource == "status":
            return []
        return validation.validate(_stored_kind_key(resource), new, None if subresource else old)

    def _merge(
        self, resource: Resource, live: Object | None, applied: Object, subresource: str, options: WriteOptions
    ) -> Object:
        try:
            return managed_fields.server_side_apply(
                live,
                applied,
                manager=options.manager,
                force=options.force,
                subresource=subresource or None,
                api_version=resource.api_version,
                schema=resource.types,
                now=metadata.now_rfc3339(),
            )
        except managed_fields.ApplyConflict as error:
            causes = [Cause("FieldManagerConflict", message, path) for _, path, message in error.causes]
            raise apply_conflict(_conflict_message(error.causes), causes) from None
        except ValueError as error:
            raise bad_request(f"failed to create typed patch object: {error}") from None

    def _record(self, update: _Update, old: Object | None, new: Object) -> Object:
        return managed_fields.record_update(
            old,
            new,
            manager=update.options.manager,
            subresource=update.subresource or None,
            api_version=update.resource.api_version,
            schema=update.resource.types,
            now=metadata.now_rfc3339(),
        )

    def _find(self, resource: Resource, namespace: str, name: str) -> Entry:
        entry = self._store.get(resource.storage_key, namespace if resource.namespaced else "", name)
        if entry is None:
            raise not_found(resource.plural, resource.group, name)
        return entry

    async def _put(self, resource: Resource, entry: Entry, obj: Object) -> None:
        done = self._store.put(resource.storage_key, entry)
        if resource.storage_key == crd_registry.CRDS:
            crd_registry.serve(self._catalog, obj, entry.rv)
        await done

    async def _delete(self, resource: Resource, last: Entry, obj: Object) -> None:
        done = self._store.delete(resource.storage_key, last)
        if resource.storage_key == crd_registry.CRDS:
            crd_registry.withdraw(self._catalog, obj)
        await done


def is_finished_deleting(obj: Object) -> bool:
    """True when nothing holds a deleted object any more: no finalizer, no grace period still running."""
    meta = obj["metadata"]
    if "deletionTimestamp" not in meta or meta.get("finalizers") or meta.get("deletionGracePeriodSeconds"):
        return False
    return obj.get("kind") != "Namespace" or not (obj.get("spec") or {}).get("finalizers")


def _check_name(meta: Object, name: str) -> None:
    if meta.get("name") != name:
        raise bad_request(
            f"the name of the object ({meta.get('name') or ''}) does not match the name on the URL ({name})"
        )


def _stored_kind_key(resource: Resource) -> str:
    return "v1/Event" if resource.is_event else resource.kind_key


def _same(new: Object, old: Object) -> bool:
    """True when a write changes nothing, the times in managedFields aside."""
    new_meta, old_meta = new["metadata"], old["metadata"]
    managers = new_meta.get("managedFields")
    if managers is not None and _timeless(managers) != _timeless(old_meta.get("managedFields") or []):
        return False
    if any(new.get(field) != old.get(field) for field in {*new, *old} - {"metadata"}):
        return False
    fields = {*new_meta, *old_meta} - {"managedFields"}
    return all(new_meta.get(field) == old_meta.get(field) for field in fields)


def _timeless(managers: list[Object]) -> list[Object]:
    return [{key: value for key, value in manager.items() if key != "time"} for manager in managers]


def _conflict_message(causes: list[tuple[str, str, str]]) -> str:
    """`Apply failed with 1 conflict: conflict with "a" using v1: .data.x`; several are listed by manager."""
    if len(causes) == 1:
        _, path, message = causes[0]
        return f"Apply failed with 1 conflict: {message}: {path}"
    by_message: dict[str, list[str]] = {}
    for _, path, message in causes:
        by_message.setdefault(message.replace("conflict with", "conflicts with", 1), []).append(path)
    listed = "\n".join(
        f"{message}:\n" + "\n".join(f"- {path}" for path in paths) for message, paths in sorted(by_message.items())
    )
    return f"Apply failed with {len(causes)} conflicts: {listed}"
