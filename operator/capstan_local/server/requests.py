"""What an HTTP request asks of the API: the path and the query, parsed; nothing is looked up in storage here."""

from dataclasses import dataclass
from typing import Literal

from capstan_local.server.decoding import Strictness
from capstan_local.server.errors import (
    ApiError,
    Cause,
    forbidden_value,
    invalid,
    method_not_allowed,
    not_supported,
    path_not_found,
)
from capstan_local.server.resources import Catalog, Resource
from capstan_local.server.writes import WriteOptions

Verb = Literal["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "connect"]

APPLY = "application/apply-patch+yaml"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"

_CONNECTED = ("exec", "attach", "portforward", "proxy")
_MANAGER_LENGTH = 128
_MODES: dict[str, Literal["Ignore", "Warn", "Strict"]] = {
    "": "Warn",
    "Ignore": "Ignore",
    "Strict": "Strict",
    "Warn": "Warn",
}


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """One request for a resource. `namespace` "" means all or none, `name` "" the collection."""

    resource: Resource
    verb: Verb
    namespace: str
    name: str
    subresource: str


def parse_path(catalog: Catalog, method: str, path: str, query: dict[str, str]) -> ResourceRequest:
    """Raises ApiError 404 for what is not served and 405 for what cannot be done with it."""
    parts = [part for part in path.split("/") if part]
    if len(parts) >= 3 and parts[0] == "api":
        group, version, rest = "", parts[1], parts[2:]
    elif len(parts) >= 4 and parts[0] == "apis":
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        raise path_not_found()
    legacy_watch = rest[0] == "watch" and len(rest) > 1
    if legacy_watch:
        rest = rest[1:]
    namespace = ""
    # /namespaces/N/pods is a path inside a namespace; /namespaces/N and /namespaces/N/status are the namespace itself.
    if rest[0] == "namespaces" and len(rest) > 2 and not (group == "" and rest[2] in ("status", "finalize")):
        namespace, rest = rest[1], rest[2:]
    resource = catalog.find(group, version, rest[0])
    if resource is None or len(rest) > 3:
        raise path_not_found()
    name = rest[1] if len(rest) > 1 else ""
    subresource = rest[2] if len(rest) > 2 else ""
    if subresource and subresource not in resource.subresources:
        raise path_not_found()
    if bool(namespace) and not resource.namespaced:
        raise path_not_found()
    if resource.namespaced and not namespace and name:
        raise path_not_found()
    if legacy_watch:
        query["watch"] = "true"
        if name:
            query["fieldSelector"] = f"metadata.name={name}"
            name = ""
    verb = _verb(method, name, subresource, query)
    if not subresource and verb not in resource.verbs:
        raise method_not_allowed()
    if resource.namespaced and not namespace and verb in ("create", "deletecollection"):
        raise method_not_allowed()
    return ResourceRequest(resource, verb, namespace, name, subresource)


def _verb(method: str, name: str, subresource: str, query: dict[str, str]) -> Verb:
    if subresource in _CONNECTED:
        return "connect"
    if method in ("GET", "HEAD"):
        if query.get("watch") in ("true", "1"):
            return "watch"
        return "get" if name else "list"
    if method == "POST" and (not name or subresource):
        return "create"
    if method == "PUT" and name:
        return "update"
    if method == "PATCH" and name:
        return "patch"
    if method == "DELETE":
        return "delete" if name else "deletecollection"
    raise method_not_allowed()


def write_options(
    query: dict[str, str], user_agent: str, *, content_type: str = "", verb: str = "Create"
) -> WriteOptions:
    """The options of a create, update or patch. Raises ApiError 422."""
    causes: list[Cause] = []
    dry_run = query.get("dryRun", "")
    if dry_run not in ("", "All"):
        causes.append(not_supported("dryRun", dry_run, ("All",)))
    manager = query.get("fieldManager", "")
    if len(manager) > _MANAGER_LENGTH:
        causes.append(
            Cause("FieldValueTooLong", f"Too long: may not be more than {_MANAGER_LENGTH} bytes", "fieldManager")
        )
    mode = _MODES.get(query.get("fieldValidation", ""))
    if mode is None:
        causes.append(not_supported("fieldValidation", query["fieldValidation"], ("Ignore", "Strict", "Warn")))
    applies = content_type == APPLY
    if applies and not manager:
        causes.append(Cause("FieldValueRequired", "Required value: is required for apply patch", "fieldManager"))
    if query.get("force") and not applies:
        causes.append(forbidden_value("force", "may not be specified for non-apply patch"))
    if causes:
        raise invalid(f"{verb}Options", "meta.k8s.io", "", causes)
    return WriteOptions(
        manager=manager or user_agent.split("/")[0][:_MANAGER_LENGTH] or "unknown",
        strictness=Strictness(mode or "Warn"),
        dry_run=dry_run == "All",
        force=query.get("force") in ("true", "1", "True"),
    )


def bearer_token(authorization: str) -> str:
    """The token of an Authorization header; "" when there is none."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def too_large(limit: int) -> ApiError:
    return ApiError(413, f"Request entity too large: limit is {limit}")
