"""How the built-in types' lists and maps merge: facts of the Kubernetes API that the Python client does not carry.

Source: the `+listType`, `+listMapKey`, `+structType`, `+mapType` and `patchMergeKey` markers of the k8s.io/api types.
A type is named as in Go; (type, field) is unique across the groups served here. What is not listed follows the rule:
lists and sets of scalars are replaced whole, structs and maps merge field by field.
"""

from typing import Final

_BY_NAME = ("name",)
_BY_TYPE = ("type",)
_PORTS = ("containerPort", "protocol")

LIST_MAP_KEYS: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("ObjectMeta", "ownerReferences"): ("uid",),
    **{
        (container, field): keys
        for container in ("Container", "EphemeralContainer")
        for field, keys in {
            "env": _BY_NAME,
            "ports": _PORTS,
            "volumeMounts": ("mountPath",),
            "volumeDevices": ("devicePath",),
        }.items()
    },
    **{
        ("PodSpec", field): _BY_NAME
        for field in (
            "containers",
            "initContainers",
            "ephemeralContainers",
            "volumes",
            "imagePullSecrets",
            "schedulingGates",
            "resourceClaims",
        )
    },
    ("PodSpec", "hostAliases"): ("ip",),
    ("PodSpec", "topologySpreadConstraints"): ("topologyKey", "whenUnsatisfiable"),
    ("PodStatus", "podIPs"): ("ip",),
    ("PodStatus", "resourceClaimStatuses"): _BY_NAME,
    ("ContainerStatus", "volumeMounts"): ("mountPath",),
    ("ContainerStatus", "allocatedResourcesStatus"): _BY_NAME,
    ("ResourceStatus", "resources"): ("resourceID",),
    ("ResourceRequirements", "claims"): _BY_NAME,
    ("ServiceSpec", "ports"): ("port", "protocol"),
    ("ServiceAccount", "secrets"): _BY_NAME,
    ("NodeStatus", "addresses"): _BY_TYPE,
    ("CSINodeSpec", "drivers"): _BY_NAME,
    ("ValidatingWebhookConfiguration", "webhooks"): _BY_NAME,
    ("MutatingWebhookConfiguration", "webhooks"): _BY_NAME,
    ("ValidatingWebhook", "matchConditions"): _BY_NAME,
    ("MutatingWebhook", "matchConditions"): _BY_NAME,
    ("CustomResourceDefinitionStatus", "conditions"): _BY_TYPE,
    ("JSONSchemaProps", "x-kubernetes-validations"): ("rule",),
    ("APIServiceStatus", "conditions"): _BY_TYPE,
    ("CertificateSigningRequestStatus", "conditions"): _BY_TYPE,
    **{
        (f"{kind}Status", "conditions"): _BY_TYPE
        for kind in (
            "Pod",
            "Node",
            "Namespace",
            "Service",
            "PersistentVolumeClaim",
            "ReplicationController",
            "Deployment",
            "ReplicaSet",
            "StatefulSet",
            "DaemonSet",
            "HorizontalPodAutoscaler",
            "PodDisruptionBudget",
        )
    },
}
"""Lists whose items are told apart by these fields: (type, field) -> key fields."""

PATCH_MERGE_KEYS: Final[dict[tuple[str, str], str]] = {
    **{
        place: keys[0]
        for place, keys in LIST_MAP_KEYS.items()
        if place[0] not in ("ResourceRequirements", "ResourceStatus")
    },
    ("JobStatus", "conditions"): "type",
    ("PodStatus", "hostIPs"): "ip",
}
"""Key of a strategic merge of a list of objects. Mostly the first list-map key."""

for _place in (
    ("CustomResourceDefinitionStatus", "conditions"),
    ("JSONSchemaProps", "x-kubernetes-validations"),
    ("CertificateSigningRequestStatus", "conditions"),
):
    # List maps for apply, but without a patchMergeKey: a strategic merge replaces them.
    PATCH_MERGE_KEYS.pop(_place)

SETS: Final[frozenset[tuple[str, str]]] = frozenset(
    {
        ("ObjectMeta", "finalizers"),
        ("NodeSpec", "podCIDRs"),
        ("Endpoint", "addresses"),
        ("CSIDriverSpec", "volumeLifecycleModes"),
        ("UncountedTerminatedPods", "succeeded"),
        ("UncountedTerminatedPods", "failed"),
        ("PodFailurePolicyOnExitCodesRequirement", "values"),
    }
)
"""Lists of scalars in which each value may appear once."""

MERGED_SCALAR_LISTS: Final[frozenset[tuple[str, str]]] = frozenset(
    {("ObjectMeta", "finalizers"), ("NodeSpec", "podCIDRs")}
)
"""Lists of scalars that a strategic merge adds to instead of replacing."""

RETAIN_KEYS: Final[frozenset[tuple[str, str]]] = frozenset(
    {
        ("DeploymentSpec", "strategy"),
        ("PodSpec", "volumes"),
        ("PodSpec", "resourceClaims"),
        ("PodStatus", "resourceClaimStatuses"),
    }
)
"""Unions: a strategic merge patch names the fields to keep ($retainKeys)."""

REPLACED_STRUCTS: Final[frozenset[tuple[str, str]]] = frozenset({("PodDisruptionBudgetSpec", "selector")})
"""Structs that a strategic merge replaces as a whole."""

ATOMIC_STRUCTS: Final[frozenset[str]] = frozenset(
    {
        "ConfigMapKeySelector",
        "CrossVersionObjectReference",
        "EndpointAddress",
        "LabelSelector",
        "LocalObjectReference",
        "NodeSelector",
        "NodeSelectorTerm",
        "ObjectFieldSelector",
        "ObjectReference",
        "OwnerReference",
        "ResourceFieldSelector",
        "RoleRef",
        "ScopeSelector",
        "SecretKeySelector",
        "SecretReference",
        "ServiceBackendPort",
        "Subject",
        "TopologySelectorTerm",
        "TypedLocalObjectReference",
    }
)
"""Structs that one manager owns as a whole."""

GRANULAR_FIELDS: Final[frozenset[tuple[str, str]]] = frozenset({("PersistentVolumeSpec", "claimRef")})
"""Fields of an atomic struct type that merge field by field all the same."""

ATOMIC_FIELDS: Final[frozenset[tuple[str, str]]] = frozenset(
    {
        ("PodSpec", "nodeSelector"),
        ("ReplicationControllerSpec", "selector"),
        ("ServiceSpec", "selector"),
        ("Scheduling", "nodeSelector"),
    }
)
"""Maps that one manager owns as a whole."""

KEY_DEFAULTS: Final[dict[tuple[str, str], str]] = {
    ("ContainerPort", "protocol"): "TCP",
    ("LocalObjectReference", "name"): "",
    ("ServicePort", "protocol"): "TCP",
}
"""Key fields that may be left out of an applied item, and what they then mean."""
