"""How a type merges: which of its fields are atomic, sets, keyed lists or granular maps. One tree per kind."""

from collections.abc import Callable
from functools import cache
from typing import Any, Final, Literal, Protocol

from capstan_local.schema import builtin_schemas
from capstan_local.schema.merge_facts import (
    ATOMIC_FIELDS,
    ATOMIC_STRUCTS,
    GRANULAR_FIELDS,
    KEY_DEFAULTS,
    LIST_MAP_KEYS,
    SETS,
)

Shape = Literal["scalar", "struct", "map", "atomic", "set", "list_map", "deduced"]
"""struct: declared fields. map: any keys of one type. atomic: a list or map that is owned and replaced whole.
set: a list of unique scalars. list_map: a list of objects told apart by `keys`. deduced: maps granular, lists
atomic, as the value has it."""


class TypeSchema(Protocol):
    """One node of the tree."""

    @property
    def shape(self) -> Shape: ...

    @property
    def keys(self) -> tuple[str, ...]:
        """Key fields of a list_map's items, sorted."""
        ...

    @property
    def key_defaults(self) -> dict[str, Any]:
        """What a key field means that an item leaves out."""
        ...

    @property
    def item(self) -> "TypeSchema":
        """The type of a list's items or a map's values."""
        ...

    @property
    def skeleton(self) -> dict[str, Any]:
        """The JSON of an empty object of this kind: the structs that are always there. Only the root has one."""
        ...

    def field(self, name: str) -> "TypeSchema":
        """The type of a struct's or map's field; `DEDUCED` for one that is not declared."""
        ...

    def declares(self, name: str) -> bool:
        """Whether `name` is a declared field of this struct, as opposed to a key of a map."""
        ...


class Node:
    """The one implementation of TypeSchema. Fields are resolved when first asked for, so a kind costs what is used."""

    __slots__ = ("_fields", "_item", "_resolve", "key_defaults", "keys", "shape", "skeleton")

    def __init__(
        self,
        shape: Shape,
        *,
        keys: tuple[str, ...] = (),
        key_defaults: dict[str, Any] | None = None,
        item: "Node | None" = None,
        resolve: dict[str, Callable[[], "Node"]] | None = None,
        skeleton: dict[str, Any] | None = None,
    ) -> None:
        self.shape: Shape = shape
        self.keys = tuple(sorted(keys))
        self.key_defaults = key_defaults or {}
        self.skeleton = skeleton or {}
        self._item = item
        self._resolve = resolve or {}
        self._fields: dict[str, Node] = {}

    @property
    def item(self) -> "Node":
        return self._item or DEDUCED

    def field(self, name: str) -> "Node":
        known = self._fields.get(name)
        if known is not None:
            return known
        resolve = self._resolve.get(name)
        if resolve is None:
            return self._item or DEDUCED
        node = self._fields[name] = resolve()
        return node

    def declares(self, name: str) -> bool:
        return name in self._resolve


SCALAR: Final = Node("scalar")
DEDUCED: Final = Node("deduced")
_ATOMIC: Final = Node("atomic")


# --- custom resources ------------------------------------------------------------------------------------------------


def from_crd(open_api_schema: dict[str, Any]) -> Node:
    """The tree of a custom resource's openAPIV3Schema."""
    return _crd_object(open_api_schema, is_resource=True)


def _crd_object(schema: dict[str, Any], *, is_resource: bool) -> Node:
    resolve: dict[str, Callable[[], Node]] = {
        name: _later(_crd_node, child) for name, child in (schema.get("properties") or {}).items()
    }
    if is_resource:
        resolve |= {"apiVersion": lambda: SCALAR, "kind": lambda: SCALAR, "metadata": _object_meta}
    additional = schema.get("additionalProperties")
    if isinstance(additional, dict):
        return Node("map", item=_crd_node(additional), resolve=resolve)
    return Node("struct", resolve=resolve)


def _crd_node(schema: dict[str, Any]) -> Node:
    kind = schema.get("type")
    if kind == "object":
        if schema.get("x-kubernetes-map-type") == "atomic":
            return _ATOMIC
        return _crd_object(schema, is_resource=bool(schema.get("x-kubernetes-embedded-resource")))
    if kind == "array":
        return _crd_list(schema)
    return SCALAR if kind or schema.get("x-kubernetes-int-or-string") else DEDUCED


def _crd_list(schema: dict[str, Any]) -> Node:
    list_type = schema.get("x-kubernetes-list-type")
    items = schema.get("items") or {}
    if list_type == "set":
        return Node("set", item=SCALAR)
    if list_type == "map":
        properties = items.get("properties") or {}
        keys = tuple(schema.get("x-kubernetes-list-map-keys") or ())
        defaults = {key: properties[key]["default"] for key in keys if "default" in properties.get(key, {})}
        return Node("list_map", keys=keys, key_defaults=defaults, item=_crd_node(items))
    return _ATOMIC


def _later(build: Callable[[Any], Node], argument: Any) -> Callable[[], Node]:
    return lambda: build(argument)


# --- built-in kinds --------------------------------------------------------------------------------------------------

_EMPTY_TEMPLATE: Final = {"metadata": {"creationTimestamp": None}, "spec": {"containers": None}}
_EMPTY_WORKLOAD: Final = {"selector": None, "template": _EMPTY_TEMPLATE}

# What encoding/json writes for an empty Go struct of the kind: struct fields that are no pointers, and lists and maps
# without omitempty. Creating an object does not claim these, since they are there before.
_SKELETON_SPECS: Final[dict[str, dict[str, Any]]] = {
    "v1/Pod": {"containers": None},
    "v1/ReplicationController": {},
    "v1/PodTemplate": {},
    "v1/PersistentVolumeClaim": {"resources": {}},
    "apps/v1/Deployment": {**_EMPTY_WORKLOAD, "strategy": {}},
    "apps/v1/ReplicaSet": _EMPTY_WORKLOAD,
    "apps/v1/StatefulSet": {**_EMPTY_WORKLOAD, "serviceName": "", "updateStrategy": {}},
    "apps/v1/DaemonSet": {**_EMPTY_WORKLOAD, "updateStrategy": {}},
    "batch/v1/Job": {"template": _EMPTY_TEMPLATE},
    "batch/v1/CronJob": {
        "schedule": "",
        "jobTemplate": {"metadata": {"creationTimestamp": None}, "spec": {"template": _EMPTY_TEMPLATE}},
    },
    "apiextensions.k8s.io/v1/CustomResourceDefinition": {
        "group": "",
        "names": {"plural": "", "kind": ""},
        "scope": "",
        "versions": None,
    },
}
_SKELETON_STATUSES: Final[dict[str, dict[str, Any]]] = {
    "v1/Service": {"loadBalancer": {}},
    "v1/Node": {
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
        "nodeInfo": dict.fromkeys(
            (
                *("architecture", "bootID", "containerRuntimeVersion", "kernelVersion", "kubeProxyVersion"),
                *("kubeletVersion", "machineID", "operatingSystem", "osImage", "systemUUID"),
            ),
            "",
        ),
    },
    "apps/v1/ReplicaSet": {"replicas": 0},
    "apps/v1/StatefulSet": {"replicas": 0},
    "apps/v1/DaemonSet": dict.fromkeys(
        ("currentNumberScheduled", "desiredNumberScheduled", "numberMisscheduled", "numberReady"), 0
    ),
    "apiextensions.k8s.io/v1/CustomResourceDefinition": {
        "conditions": None,
        "acceptedNames": {"plural": "", "kind": ""},
        "storedVersions": None,
    },
    "networking.k8s.io/v1/Ingress": {"loadBalancer": {}},
}
_SKELETON_TOPS: Final[dict[str, dict[str, Any]]] = {
    "rbac.authorization.k8s.io/v1/Role": {"rules": None},
    "rbac.authorization.k8s.io/v1/ClusterRole": {"rules": None},
    "rbac.authorization.k8s.io/v1/RoleBinding": {"roleRef": {}},
    "rbac.authorization.k8s.io/v1/ClusterRoleBinding": {"roleRef": {}},
    "v1/Event": {
        "involvedObject": {},
        "source": {},
        "eventTime": None,
        "reportingComponent": "",
        "reportingInstance": "",
    },
    "events.k8s.io/v1/Event": {"regarding": {}, "eventTime": None},
    "v1/PodTemplate": {"template": _EMPTY_TEMPLATE},
    "storage.k8s.io/v1/StorageClass": {"provisioner": ""},
    "discovery.k8s.io/v1/EndpointSlice": {"addressType": "", "endpoints": None, "ports": None},
}


@cache
def for_builtin(kind_key: str) -> Node:
    """The tree of a built-in kind such as v1/Pod. Raises KeyError for kinds that are not built in."""
    kind = builtin_schemas.builtin_type(kind_key)
    skeleton: dict[str, Any] = {"metadata": {"creationTimestamp": None}, **_SKELETON_TOPS.get(kind_key, {})}
    if "spec" in kind.fields:
        skeleton["spec"] = _SKELETON_SPECS.get(kind_key, {})
    if "status" in kind.fields:
        skeleton["status"] = _SKELETON_STATUSES.get(kind_key, {})
    return Node("struct", resolve=_struct_fields(kind), skeleton=skeleton)


@cache
def _object_meta() -> Node:
    return _struct("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")


@cache
def _struct(type_name: str) -> Node:
    return Node("struct", resolve=_struct_fields(builtin_schemas.type_by_name(type_name)))


def _struct_fields(kind: builtin_schemas.BuiltinType) -> dict[str, Callable[[], Node]]:
    return {name: _later(_field_node, (kind.short_name, name, value)) for name, value in kind.fields.items()}


def _field_node(place_and_kind: tuple[str, str, str]) -> Node:
    struct, name, kind = place_and_kind
    place = (struct, name)
    if place in ATOMIC_FIELDS:
        return _ATOMIC
    if kind.startswith("[]"):
        return _builtin_list(place, kind[2:])
    if place in GRANULAR_FIELDS:
        return _struct(kind[1:])
    return _builtin_node(kind)


def _builtin_list(place: tuple[str, str], item_kind: str) -> Node:
    if place in SETS:
        return Node("set", item=SCALAR)
    if place in LIST_MAP_KEYS:
        # Items merge field by field even where their type is atomic elsewhere, except references such as
        # imagePullSecrets, whose one field is the key.
        short = item_kind.rpartition(".")[2]
        keys = LIST_MAP_KEYS[place]
        defaults = {key: KEY_DEFAULTS[short, key] for key in keys if (short, key) in KEY_DEFAULTS}
        return Node("list_map", keys=keys, key_defaults=defaults, item=_builtin_node(item_kind))
    return _ATOMIC


def _builtin_node(kind: str) -> Node:
    if kind.startswith("#"):
        return _ATOMIC if kind.rpartition(".")[2] in ATOMIC_STRUCTS else _struct(kind[1:])
    if kind.startswith("{}"):
        return Node("map", item=_builtin_node(kind[2:]))
    if kind.startswith("[]"):
        return _ATOMIC
    return DEDUCED if kind == "any" else SCALAR
