"""CustomResourceDefinitions: what makes one acceptable, its status, and the resources it serves."""

import re
from collections.abc import Iterable
from typing import Any

from capstan_local.schema.structural import SchemaError, check_structural, compile_schema
from capstan_local.server.errors import Cause, duplicate, invalid_value, not_supported, required
from capstan_local.server.metadata import label_problems, now_rfc3339, subdomain_problems
from capstan_local.server.resources import Catalog, Custom, Resource, ScalePaths, version_priority

Object = dict[str, Any]

CRDS = "customresourcedefinitions.apiextensions.k8s.io"
CLEANUP_FINALIZER = "customresourcecleanup.apiextensions.k8s.io"

_VERSION = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_PRESERVE_ALL = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def validate(crd: Object, old: Object | None) -> list[Cause]:
    """Everything wrong with a defaulted CRD."""
    spec = crd.get("spec") or {}
    return [
        *_name_causes(crd, spec),
        *_version_causes(spec),
        *(_update_causes(crd, old) if old is not None else ()),
    ]


def _name_causes(crd: Object, spec: Object) -> Iterable[Cause]:
    names, group = spec.get("names") or {}, spec.get("group", "")
    expected = f"{names.get('plural', '')}.{group}"
    if crd["metadata"].get("name") != expected:
        yield invalid_value(
            "metadata.name", crd["metadata"].get("name", ""), 'must be spec.names.plural+"."+spec.group'
        )
    if not group:
        yield required("spec.group")
    elif "." not in group:
        yield invalid_value("spec.group", group, "should be a domain with at least one dot")
    else:
        yield from (invalid_value("spec.group", group, why) for why in subdomain_problems(group))
    if spec.get("scope") not in ("Cluster", "Namespaced"):
        yield not_supported("spec.scope", spec.get("scope", ""), ("Cluster", "Namespaced"))
    for field in ("plural", "singular", "kind", "listKind"):
        value = names.get(field, "")
        if not value:
            yield required(f"spec.names.{field}")
        else:
            yield from (invalid_value(f"spec.names.{field}", value, why) for why in label_problems(value.lower()))
    if names.get("kind") and names.get("kind") == names.get("listKind"):
        yield invalid_value("spec.names.listKind", names["listKind"], "kind and listKind may not be the same")
    for field in ("shortNames", "categories"):
        for at, value in enumerate(names.get(field) or ()):
            yield from (invalid_value(f"spec.names.{field}[{at}]", value, why) for why in label_problems(value))
    strategy = (spec.get("conversion") or {}).get("strategy")
    if strategy != "None":  # a conversion webhook would need calls out of this process
        yield not_supported("spec.conversion.strategy", strategy, ("None",))


def _version_causes(spec: Object) -> Iterable[Cause]:
    versions = spec.get("versions") or []
    if not versions:
        yield required("spec.versions", "must have at least one version")
        return
    seen: set[str] = set()
    for at, version in enumerate(versions):
        path, name = f"spec.versions[{at}]", version.get("name", "")
        if not _VERSION.fullmatch(name):
            yield from (invalid_value(f"{path}.name", name, why) for why in label_problems(name))
        if name in seen:
            yield duplicate(f"{path}.name", name)
        seen.add(name)
        yield from _schema_causes(version, f"{path}.schema.openAPIV3Schema")
        scale = (version.get("subresources") or {}).get("scale")
        if scale is not None:
            for field, root in (("specReplicasPath", ".spec."), ("statusReplicasPath", ".status.")):
                if not str(scale.get(field, "")).startswith(root):
                    why = f"should be a json path under {root[:-1]}"
                    yield invalid_value(f"{path}.subresources.scale.{field}", scale.get(field, ""), why)
    stored = [version.get("name") for version in versions if version.get("storage")]
    if len(stored) != 1:
        yield invalid_value("spec.versions", "", "must have exactly one version marked as storage version")


def _schema_causes(version: Object, at: str) -> Iterable[Cause]:
    schema = (version.get("schema") or {}).get("openAPIV3Schema")
    if schema is None:
        yield required(at, "schemas are required")
        return
    problems = check_structural(schema)
    if not problems:
        try:
            compile_schema(schema)
        except SchemaError as error:
            problems = error.problems
    for problem in problems:
        where, colon, message = problem.partition(": ")
        if not colon:
            where, message = "", problem
        yield Cause("FieldValueInvalid", message, f"{at}.{where}" if where else at)


def _update_causes(crd: Object, old: Object) -> Iterable[Cause]:
    spec, old_spec = crd["spec"], old["spec"]
    for field in ("group", "scope"):
        if spec.get(field) != old_spec.get(field):
            yield invalid_value(f"spec.{field}", spec.get(field), "field is immutable")
    for field in ("kind", "plural"):
        if spec["names"].get(field) != old_spec["names"].get(field):
            yield invalid_value(f"spec.names.{field}", spec["names"].get(field), "field is immutable")
    names = {version.get("name") for version in spec.get("versions") or ()}
    for at, version in enumerate((old.get("status") or {}).get("storedVersions") or ()):
        if version not in names:
            why = "missing from spec.versions; spec.versions must be updated by adding it again"
            yield invalid_value(f"status.storedVersions[{at}]", version, why)


def refresh_status(crd: Object, catalog: Catalog) -> None:
    """Set what kube-apiserver's controllers report: accepted names, stored versions, conditions."""
    spec = crd["spec"]
    status = crd["status"] = crd.get("status") or {}
    stored = status.get("storedVersions") or []
    now_stored = next(version["name"] for version in spec["versions"] if version.get("storage"))
    status["storedVersions"] = stored if now_stored in stored else [*stored, now_stored]
    conflict = _names_conflict(crd, catalog)
    if conflict:
        reason, taken = conflict
        _set_condition(status, "NamesAccepted", "False", reason, f'"{taken}" is already in use')
        _set_condition(status, "Established", "False", "NotAccepted", "not all names are accepted")
        status.setdefault("acceptedNames", {"plural": "", "kind": ""})
        return
    status["acceptedNames"] = spec["names"]
    _set_condition(status, "NamesAccepted", "True", "NoConflicts", "no conflicts found")
    _set_condition(status, "Established", "True", "InitialNamesAccepted", "the initial names have been accepted")


def _names_conflict(crd: Object, catalog: Catalog) -> tuple[str, str] | None:
    """(condition reason, name) of the first name that another resource of the group has; None when all are free."""
    names, group = crd["spec"]["names"], crd["spec"]["group"]
    for other in catalog:
        if other.group != group or other.plural == names["plural"]:
            continue
        taken = {other.plural, other.singular_name, *other.short_names}
        kinds = {other.kind, other.list_name}
        for reason, found, wanted in (
            ("SingularConflict", taken, [names["singular"]]),
            ("ShortNamesConflict", taken, names.get("shortNames") or []),
            ("KindConflict", kinds, [names["kind"]]),
            ("ListKindConflict", kinds, [names["listKind"]]),
        ):
            for name in wanted:
                if name in found:
                    return reason, name
    return None


def _set_condition(status: Object, kind: str, value: str, reason: str, message: str) -> None:
    conditions = status.setdefault("conditions", [])
    new = {"type": kind, "status": value, "reason": reason, "message": message}
    for at, condition in enumerate(conditions):
        if condition["type"] == kind:
            if condition["status"] != value:
                conditions[at] = {"lastTransitionTime": now_rfc3339(), **new}
            return
    conditions.append({"lastTransitionTime": now_rfc3339(), **new})


def set_terminating(crd: Object) -> None:
    """Mark a CRD whose objects are being deleted."""
    message = "CustomResource deletion is in progress"
    _set_condition(crd.setdefault("status", {}), "Terminating", "True", "InstanceDeletionInProgress", message)


def is_established(crd: Object) -> bool:
    conditions = (crd.get("status") or {}).get("conditions") or ()
    return any(condition["type"] == "Established" and condition["status"] == "True" for condition in conditions)


def serve(catalog: Catalog, crd: Object, rv: int) -> None:
    """Serve what `crd`, stored at `rv`, defines; nothing unless it is established."""
    spec = crd["spec"]
    versions = [version for version in spec["versions"] if version.get("served")] if is_established(crd) else []
    stored = next(version["name"] for version in spec["versions"] if version.get("storage"))
    resources = [_resource(catalog, crd, version, stored, rv) for version in versions]
    catalog.replace_custom(spec["group"], spec["names"]["plural"], resources)


def withdraw(catalog: Catalog, crd: Object) -> None:
    """Stop serving a deleted CRD's resources."""
    catalog.replace_custom(crd["spec"]["group"], crd["spec"]["names"]["plural"], ())


def _resource(catalog: Catalog, crd: Object, version: Object, stored: str, rv: int) -> Resource:
    spec, names = crd["spec"], crd["spec"]["names"]
    subresources = version.get("subresources") or {}
    return Resource(
        group=spec["group"],
        version=version["name"],
        plural=names["plural"],
        kind=names["kind"],
        namespaced=spec["scope"] == "Namespaced",
        singular=names["singular"],
        short_names=tuple(names.get("shortNames") or ()),
        categories=tuple(names.get("categories") or ()),
        subresources=tuple(name for name in ("status", "scale") if subresources.get(name) is not None),
        stored_version=stored,
        list_kind=names["listKind"],
        printer_columns=list(version.get("additionalPrinterColumns") or ()),
        deprecation=_deprecation(spec, version),
        custom=_custom(catalog, crd, version, rv),
    )


def _deprecation(spec: Object, version: Object) -> str:
    """What clients of a deprecated version are warned of; "" for a current one."""
    if not version.get("deprecated"):
        return ""
    if version.get("deprecationWarning"):
        return str(version["deprecationWarning"])
    group, kind = spec["group"], spec["names"]["kind"]
    current = [other["name"] for other in spec["versions"] if other.get("served") and not other.get("deprecated")]
    best = max(current, key=version_priority, default="")
    warning = f"{group}/{version['name']} {kind} is deprecated"
    better = best and version_priority(best) > version_priority(version["name"])
    return f"{warning}; use {group}/{best} {kind}" if better else warning


def _custom(catalog: Catalog, crd: Object, version: Object, rv: int) -> Custom:
    """The schema part; the one already compiled when neither schema nor CRD changed."""
    spec = crd["spec"]
    schema = (version.get("schema") or {}).get("openAPIV3Schema") or _PRESERVE_ALL
    scale = (version.get("subresources") or {}).get("scale")
    fields = tuple(field["jsonPath"].lstrip(".") for field in version.get("selectableFields") or ())
    paths = (
        ScalePaths(scale["specReplicasPath"], scale["statusReplicasPath"], scale.get("labelSelectorPath"))
        if scale
        else None
    )
    known = catalog.find(spec["group"], version["name"], spec["names"]["plural"])
    new = Custom(crd["metadata"]["uid"], schema, rv, fields, paths)
    return known.custom if known and known.custom and known.custom.is_like(new) else new
