"""Request bodies to objects: the right kind, the right types, and what to say about fields nobody knows."""

import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
import yaml

from capstan_local.schema import builtin_schemas
from capstan_local.server import protobuf
from capstan_local.server.errors import bad_request, invalid, invalid_value, unsupported_media_type
from capstan_local.server.resources import Resource

Object = dict[str, Any]

JSON = "application/json"
YAML = "application/yaml"
ACCEPTED = (JSON, YAML)
# ObjectMeta is the same in every kind; the metadata of a custom resource is checked as that of a ConfigMap.
_ANY_METADATA = "v1/ConfigMap"
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


@dataclass(slots=True)
class Strictness:
    """fieldValidation of a request, and the warnings that its response will carry."""

    mode: Literal["Ignore", "Warn", "Strict"] = "Warn"
    warnings: list[str] = field(default_factory=list)


def parse_body(content_type: str, body: bytes, strictness: Strictness) -> Object:
    """The object in a request's body. Raises ApiError 415 for other media types and 400 for bad syntax."""
    media_type = content_type.partition(";")[0].strip().lower() or JSON
    if media_type == JSON:
        parsed = _parse_json(body, strictness)
    elif media_type == YAML:
        parsed = parse_yaml(body)
    elif media_type == protobuf.MEDIA_TYPE:
        parsed = protobuf.decode(body)
    else:
        raise unsupported_media_type(media_type, ACCEPTED)
    if not isinstance(parsed, dict):
        raise bad_request("the body of the request must be an object with kind and apiVersion")
    return parsed


def _parse_json(body: bytes, strictness: Strictness) -> Any:
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"the body of the request is not valid JSON: {error}") from None
    if strictness.mode == "Strict":
        duplicates = _duplicate_keys(body)
        if duplicates:
            raise bad_request("strict decoding error: " + ", ".join(duplicates))
    return parsed


def _duplicate_keys(body: bytes) -> list[str]:
    found: list[str] = []

    def check(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                found.append(f'duplicate field "{key}"')
            seen.add(key)

    json.loads(body, object_pairs_hook=check)
    return found


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as Kubernetes reads it: dates stay strings."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}

# PyYAML wants a dot in a float; Go's YAML, like JSON, reads 1e-08 as a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def parse_yaml(body: bytes) -> Any:
    """Raises ApiError 400."""
    try:
        return yaml.load(body, Loader=_Loader)  # nosec B506  # a SafeLoader
    except Exception as error:  # PyYAML lets through what its constructors stumble over, of any type
        line = " ".join(str(error).split())
        raise bad_request(f"error converting YAML to JSON: {line}") from None


def check_kind(resource: Resource, obj: Object) -> None:
    """Fill in kind and apiVersion, or raise ApiError 400 or 422 when they are another's."""
    if resource.custom and not obj.get("kind"):
        raise bad_request(f"Object 'Kind' is missing in '{json.dumps(obj)}'")
    api_version = obj.get("apiVersion") or resource.api_version
    kind = obj.get("kind") or resource.kind
    if api_version != resource.api_version:
        raise bad_request(
            f"the API version in the data ({api_version}) does not match the expected API version"
            f" ({resource.api_version})"
        )
    if kind != resource.kind and resource.custom:
        name = (obj.get("metadata") or {}).get("name") or ""
        raise invalid(kind, resource.group, name, [invalid_value("kind", kind, f"must be {resource.kind}")])
    if kind != resource.kind:
        raise bad_request(
            f'{kind} in version "{resource.version}" cannot be handled as a {resource.kind}: '
            f'no kind "{kind}" is registered for {resource.plural}'
        )
    obj["apiVersion"], obj["kind"] = api_version, kind
    metadata = obj.get("metadata")
    if metadata is None:
        obj["metadata"] = {}
    elif not isinstance(metadata, dict):
        raise bad_request(f"metadata: expected an object, got {type(metadata).__name__}")


def require_decodable(kind_key: str, obj: Any) -> None:
    """Raises ApiError 400 unless `obj` has the types of a built-in kind's fields."""
    problem = builtin_schemas.decoding_error(kind_key, obj) if isinstance(obj, dict) else "it must be an object"
    if problem:
        raise bad_request(problem)


def decode(resource: Resource, obj: Object, strictness: Strictness) -> Object:
    """`obj` with the right kind and types and without unknown fields. Raises ApiError 400."""
    check_kind(resource, obj)
    checked_as, part = resource.kind_key, obj
    if resource.custom:
        checked_as, part = _ANY_METADATA, {"metadata": obj["metadata"]}
    problem = builtin_schemas.decoding_error(checked_as, part)
    if problem:
        raise bad_request(
            f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: {problem}'
        )
    builtin_schemas.fill_null_items(checked_as, part)
    unknown = builtin_schemas.unknown_fields(checked_as, part)
    for complaint in unknown:
        _remove_path(obj, complaint.split('"')[1])
    if resource.custom:
        obj, pruned = resource.custom.structural.prune(obj)
        unknown = [*unknown, *(f'unknown field "{path}"' for path in pruned)]
    _report(resource, unknown, strictness)
    return obj


def _report(resource: Resource, unknown: list[str], strictness: Strictness) -> None:
    if not unknown or strictness.mode == "Ignore":
        return
    if strictness.mode == "Warn":
        strictness.warnings += [warning for warning in unknown if warning not in strictness.warnings]
        return
    raise bad_request(
        f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: '
        f"strict decoding error: {', '.join(unknown)}"
    )


def _remove_path(obj: Any, path: str) -> None:
    """Delete the field that a complaint names, as decoding into a Go struct would."""
    steps: list[str | int] = [int(index) if index else name for name, index in _STEP.findall(path)]
    for step in steps[:-1]:
        try:
            obj = obj[step]
        except (KeyError, IndexError, TypeError):
            return  # a parent was unknown too and is gone already
    if isinstance(obj, dict) and steps:
        obj.pop(steps[-1], None)
