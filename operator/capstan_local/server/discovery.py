"""Discovery: /version, /api, /apis and what each group version serves, in the legacy and the aggregated form."""

from typing import Any

from capstan_local.server.representation import parse_accept
from capstan_local.server.resources import Catalog, Resource

Object = dict[str, Any]

# The API generation this server speaks; clients decide by it which features to use.
VERSION: Object = {
    "major": "1",
    "minor": "32",
    "gitVersion": "v1.32.4+capstan-local",
    "gitCommit": "0000000000000000000000000000000000000000",
    "gitTreeState": "clean",
    "buildDate": "2025-04-22T16:02:32Z",
    "goVersion": "none",
    "compiler": "CPython",
    "platform": "linux/amd64",
}

_AGGREGATED = "apidiscovery.k8s.io"
# Subresource -> (group, version, kind, verbs); the rest are of the resource's own kind.
_FOREIGN = {
    "scale": ("autoscaling", "v1", "Scale", ("get", "patch", "update")),
    "binding": ("", "v1", "Binding", ("create",)),
    "eviction": ("policy", "v1", "Eviction", ("create",)),
    "token": ("authentication.k8s.io", "v1", "TokenRequest", ("create",)),
    "exec": ("", "v1", "PodExecOptions", ("create", "get")),
    "attach": ("", "v1", "PodAttachOptions", ("create", "get")),
    "portforward": ("", "v1", "PodPortForwardOptions", ("create", "get")),
}
_OWN_VERBS = {"log": ("get",), "finalize": ("update",)}
_DEFAULT_VERBS = ("get", "patch", "update")


def aggregated_version(accept: str) -> str:
    """The version of apidiscovery.k8s.io the client takes (v2 or v2beta1); "" for the legacy form."""
    for wanted in parse_accept(accept):
        if wanted.media_type != "application/json":
            continue
        if not wanted.parameters.get("as"):
            return ""
        version = wanted.parameters.get("v", "")
        if wanted.parameters.get("g") == _AGGREGATED and version in ("v2", "v2beta1"):
            return version
    return ""


def api_versions(url: str) -> Object:
    """/api"""
    address = url.removeprefix("https://")
    ranges = [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}]
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": ranges}


def group_list(catalog: Catalog) -> Object:
    """/apis"""
    groups = [_group(catalog, name) for name in catalog.groups()]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def api_group(catalog: Catalog, name: str) -> Object | None:
    """/apis/GROUP; None when it is not served."""
    if name not in catalog.groups():
        return None
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(catalog, name)}


def _group(catalog: Catalog, name: str) -> Object:
    versions = [{"groupVersion": f"{name}/{version}", "version": version} for version in catalog.versions(name)]
    return {"name": name, "versions": versions, "preferredVersion": versions[0]}


def resource_list(catalog: Catalog, group: str, version: str) -> Object | None:
    """/api/v1 and /apis/GROUP/VERSION; None when it is not served."""
    resources = catalog.in_version(group, version)
    if not resources:
        return None
    entries: list[Object] = []
    for resource in sorted(resources, key=lambda resource: resource.plural):
        entries.append(_legacy_entry(resource))
        entries += [_legacy_subresource(resource, name) for name in sorted(resource.subresources)]
    name = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": entries}


def _legacy_entry(resource: Resource) -> Object:
    entry: Object = {
        "name": resource.plural,
        "singularName": resource.singular_name,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": sorted(resource.verbs),
    }
    if resource.short_names:
        entry["shortNames"] = list(resource.short_names)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    return entry


def _legacy_subresource(resource: Resource, name: str) -> Object:
    entry: Object = {"name": f"{resource.plural}/{name}", "singularName": "", "namespaced": resource.namespaced}
    group, version, kind, verbs = _subresource(resource, name)
    if (group, version) != (resource.group, resource.version):
        entry |= {"group": group, "version": version}
    return {**entry, "kind": kind, "verbs": list(verbs)}


def _subresource(resource: Resource, name: str) -> tuple[str, str, str, tuple[str, ...]]:
    own = (resource.group, resource.version, resource.kind, _OWN_VERBS.get(name, _DEFAULT_VERBS))
    return _FOREIGN.get(name, own)


def aggregated(catalog: Catalog, version: str, *, core: bool) -> Object:
    """/api (`core`) or /apis as an APIGroupDiscoveryList of the asked version."""
    groups = [""] if core else catalog.groups()
    return {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": f"{_AGGREGATED}/{version}",
        "metadata": {},
        "items": [_discovered_group(catalog, group) for group in groups],
    }


def aggregated_content_type(version: str) -> str:
    return f"application/json;g={_AGGREGATED};v={version};as=APIGroupDiscoveryList"


def _discovered_group(catalog: Catalog, group: str) -> Object:
    versions = [
        {
            "version": version,
            "resources": [
                _discovered(resource)
                for resource in sorted(catalog.in_version(group, version), key=lambda resource: resource.plural)
            ],
            "freshness": "Current",
        }
        for version in catalog.versions(group)
    ]
    return {
        "metadata": {"name": group, "creationTimestamp": None} if group else {"creationTimestamp": None},
        "versions": versions,
    }


def _discovered(resource: Resource) -> Object:
    entry: Object = {
        "resource": resource.plural,
        "responseKind": {"group": resource.group, "version": resource.version, "kind": resource.kind},
        "scope": "Namespaced" if resource.namespaced else "Cluster",
        "singularResource": resource.singular_name,
        "verbs": sorted(resource.verbs),
    }
    if resource.short_names:
        entry["shortNames"] = list(resource.short_names)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    if resource.subresources:
        entry["subresources"] = [_discovered_subresource(resource, name) for name in sorted(resource.subresources)]
    return entry


def _discovered_subresource(resource: Resource, name: str) -> Object:
    group, version, kind, verbs = _subresource(resource, name)
    return {
        "subresource": name,
        "responseKind": {"group": group, "version": version, "kind": kind},
        "verbs": list(verbs),
    }
