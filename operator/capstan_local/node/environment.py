"""The environment of a container: literal values, references, $(VAR) expansion. Pure: what is needed is passed in."""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from capstan_local.quantity import divide_rounding_up

_REFERENCE = re.compile(r"\$(\$|\(([A-Za-z_.-][A-Za-z0-9_.-]*)\))")
_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")
VALID_NAME = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")


class ConfigError(Exception):
    """The container asks for something that is not there (yet); the message names it."""

    def __init__(self, message: str, reason: str = "CreateContainerConfigError") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class PodFacts:
    """What the downward API may tell a container."""

    pod: Mapping[str, Any]
    pod_ip: str
    host_ip: str
    allocatable: Mapping[str, str]
    """Of the node: stands in for limits that are not set."""


Configs = Mapping[tuple[str, str], Mapping[str, bytes] | None]
"""(kind `ConfigMap` or `Secret`, name) -> its data; None when there is no such object."""


def config_data(kind: str, obj: Mapping[str, Any]) -> dict[str, bytes]:
    """The content of a ConfigMap or Secret as bytes."""
    if kind == "Secret":
        return {name: base64.b64decode(value) for name, value in (obj.get("data") or {}).items()}
    text = {name: value.encode() for name, value in (obj.get("data") or {}).items()}
    binary = {name: base64.b64decode(value) for name, value in (obj.get("binaryData") or {}).items()}
    return {**binary, **text}


def expand(text: str, variables: Mapping[str, str]) -> str:
    """`$(NAME)` replaced where NAME is known, left as it is where not; `$$` stands for `$`."""

    def value(match: re.Match[str]) -> str:
        if match[1] == "$":
            return "$"
        return variables.get(match[2], match[0])

    return _REFERENCE.sub(value, text)


def referenced_configs(container: Mapping[str, Any]) -> set[tuple[str, str]]:
    """(kind, name) of each ConfigMap and Secret that the variables of a container refer to."""
    names = {
        "configMapRef": "ConfigMap",
        "secretRef": "Secret",
        "configMapKeyRef": "ConfigMap",
        "secretKeyRef": "Secret",
    }
    sources = [
        *(container.get("envFrom") or []),
        *(entry.get("valueFrom") or {} for entry in container.get("env") or []),
    ]
    return {(kind, source[ref]["name"]) for source in sources for ref, kind in names.items() if ref in source}


def build_environment(
    container: Mapping[str, Any], facts: PodFacts, configs: Configs, given: Mapping[str, str]
) -> dict[str, str]:
    """The variables a container declares, in order, `env` over `envFrom`. Raises ConfigError.

    `given` are variables that it has anyway and may refer to.
    """
    variables: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        variables.update(_from_source(source, configs))
    for entry in container.get("env") or []:
        if "valueFrom" in entry:
            value = _referenced(entry["valueFrom"], container, facts, configs)
            if value is None:
                continue  # an optional reference to nothing
        else:
            value = expand(entry.get("value") or "", {**given, **variables})
        variables[entry["name"]] = value
    return variables


def _from_source(source: Mapping[str, Any], configs: Configs) -> dict[str, str]:
    prefix = source.get("prefix", "")
    kind, ref = ("ConfigMap", source["configMapRef"]) if "configMapRef" in source else ("Secret", source["secretRef"])
    data = configs[kind, ref["name"]]
    if data is None:
        if ref.get("optional"):
            return {}
        raise ConfigError(f'{kind.lower()} "{ref["name"]}" not found')
    return {prefix + name: text(value) for name, value in data.items() if VALID_NAME.fullmatch(prefix + name)}


def _referenced(
    source: Mapping[str, Any], container: Mapping[str, Any], facts: PodFacts, configs: Configs
) -> str | None:
    if "fieldRef" in source:
        return field_value(source["fieldRef"]["fieldPath"], facts)
    if "resourceFieldRef" in source:
        return resource_value(source["resourceFieldRef"], container, facts)
    kind, ref = (
        ("ConfigMap", source["configMapKeyRef"]) if "configMapKeyRef" in source else ("Secret", source["secretKeyRef"])
    )
    data = configs[kind, ref["name"]]
    if data is not None and ref["key"] in data:
        return text(data[ref["key"]])
    if ref.get("optional"):
        return None
    if data is None:
        raise ConfigError(f'{kind.lower()} "{ref["name"]}" not found')
    raise ConfigError(f"couldn't find key {ref['key']} in {kind} {facts.pod['metadata']['namespace']}/{ref['name']}")


def text(value: bytes) -> str:
    return value.decode(errors="surrogateescape")


def field_value(path: str, facts: PodFacts) -> str:
    """The downward API's value of `path`. Raises ConfigError for a path it does not offer."""
    metadata, spec = facts.pod["metadata"], facts.pod["spec"]
    subscript = _SUBSCRIPT.fullmatch(path)
    if subscript:
        return str((metadata.get(subscript[1]) or {}).get(subscript[2], ""))
    match path:
        case "metadata.name" | "metadata.namespace" | "metadata.uid":
            return str(metadata[path.removeprefix("metadata.")])
        case "metadata.labels" | "metadata.annotations":
            entries = metadata.get(path.removeprefix("metadata.")) or {}
            return "\n".join(f'{name}="{_escaped(value)}"' for name, value in sorted(entries.items()))
        case "spec.nodeName":
            return str(spec["nodeName"])
        case "spec.serviceAccountName":
            return str(spec.get("serviceAccountName", ""))
        case "status.podIP" | "status.podIPs":
            return facts.pod_ip
        case "status.hostIP" | "status.hostIPs":
            return facts.host_ip
    raise ConfigError(f"unsupported fieldPath: {path}")


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def resource_value(ref: Mapping[str, Any], container: Mapping[str, Any], facts: PodFacts) -> str:
    """A container's own limit or request, in units of the divisor. `ref` may name another container (in volumes)."""
    name = ref.get("containerName")
    if name:
        every = [*facts.pod["spec"]["containers"], *(facts.pod["spec"].get("initContainers") or [])]
        container = next((other for other in every if other["name"] == name), {})
        if not container:
            raise ConfigError(f'container "{name}" not found')
    section, _, resource = str(ref["resource"]).partition(".")
    amounts = (container.get("resources") or {}).get(section) or {}
    amount = amounts.get(resource) or (facts.allocatable.get(resource, "0") if section == "limits" else "0")
    return str(divide_rounding_up(str(amount), str(ref.get("divisor", "1"))))
