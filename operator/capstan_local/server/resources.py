"""What is served: the resources, their names, their subresources, and where each is stored."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from capstan_local.schema.structural import Structural, compile_schema
from capstan_local.schema.type_schema import TypeSchema, for_builtin, from_crd

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True, slots=True)
class ScalePaths:
    """Where the scale subresource of a custom resource lives, as JSON paths (.spec.replicas)."""

    spec_replicas: str
    status_replicas: str
    label_selector: str | None


@dataclass(frozen=True, eq=False)
class Custom:
    """What only custom resources have. The schema is compiled when it is first needed."""

    crd_uid: str
    schema: dict[str, Any]  # openAPIV3Schema of this version
    schema_rv: int  # objects written before this resource version may lack defaults of the present schema
    selectable_fields: tuple[str, ...]
    scale: ScalePaths | None

    def is_like(self, other: "Custom") -> bool:
        """True when both treat objects alike, whenever they came to be."""
        mine = (self.crd_uid, self.schema, self.selectable_fields, self.scale)
        return mine == (other.crd_uid, other.schema, other.selectable_fields, other.scale)

    @cached_property
    def structural(self) -> Structural:
        return compile_schema(self.schema)

    @cached_property
    def types(self) -> TypeSchema:
        return from_crd(self.schema)


@dataclass(frozen=True, slots=True, eq=False)
class Resource:
    """One resource in one version."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool
    singular: str = ""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL_VERBS
    subresources: tuple[str, ...] = ()
    stored_version: str = ""  # "" means `version`
    stored_as: str = ""  # storage key of another resource of which this one is a view (events.k8s.io); "": its own
    has_generation: bool = False
    list_kind: str = ""
    printer_columns: list[dict[str, Any]] | None = None
    deprecation: str = ""  # the warning that clients of this version get
    custom: Custom | None = None

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def kind_key(self) -> str:
        """`v1/Pod`, `apps/v1/Deployment`."""
        return f"{self.api_version}/{self.kind}"

    @property
    def storage_key(self) -> str:
        """`pods`, `jobs.batch`: the same for all versions."""
        if self.stored_as:
            return self.stored_as
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def stored_api_version(self) -> str:
        if self.stored_as:
            return "v1"  # the only views there are show core/v1 events
        version = self.stored_version or self.version
        return f"{self.group}/{version}" if self.group else version

    @property
    def list_name(self) -> str:
        return self.list_kind or f"{self.kind}List"

    @property
    def has_status(self) -> bool:
        return "status" in self.subresources

    @property
    def is_event(self) -> bool:
        return self.kind == "Event" and self.group in ("", "events.k8s.io")

    @property
    def types(self) -> TypeSchema:
        """How objects of this resource merge."""
        return self.custom.types if self.custom else for_builtin(self.kind_key)

    @property
    def singular_name(self) -> str:
        return self.singular or self.kind.lower()


def _core(plural: str, kind: str, short: str = "", *, cluster: bool = False, **more: Any) -> Resource:
    return _in("", "v1", plural, kind, short, cluster=cluster, **more)


def _in(
    group: str, version: str, plural: str, kind: str, short: str = "", *, cluster: bool = False, **more: Any
) -> Resource:
    return Resource(group, version, plural, kind, namespaced=not cluster, short_names=tuple(short.split()), **more)


_ALL = ("all",)
_STATUS = ("status",)
_SCALED = ("status", "scale")
_POD_PARTS = ("status", "binding", "eviction", "ephemeralcontainers", "log", "exec", "attach", "portforward")
_CREATE = ("create",)
_EXTENSIONS = ("api-extensions",)

BUILTIN: tuple[Resource, ...] = (
    _core("bindings", "Binding", verbs=_CREATE),
    _core("configmaps", "ConfigMap", "cm"),
    _core("endpoints", "Endpoints", "ep", singular="endpoints"),
    _core("events", "Event", "ev"),
    _core("limitranges", "LimitRange", "limits"),
    _core(
        "namespaces",
        "Namespace",
        "ns",
        cluster=True,
        verbs=("create", "delete", "get", "list", "patch", "update", "watch"),
        subresources=("status", "finalize"),
    ),
    _core("nodes", "Node", "no", cluster=True, subresources=_STATUS),
    _core("persistentvolumeclaims", "PersistentVolumeClaim", "pvc", subresources=_STATUS),
    _core("persistentvolumes", "PersistentVolume", "pv", cluster=True, subresources=_STATUS),
    _core("pods", "Pod", "po", categories=_ALL, subresources=_POD_PARTS),
    _core("podtemplates", "PodTemplate"),
    _core(
        "replicationcontrollers",
        "ReplicationController",
        "rc",
        categories=_ALL,
        subresources=_SCALED,
        has_generation=True,
    ),
    _core("resourcequotas", "ResourceQuota", "quota", subresources=_STATUS),
    _core("secrets", "Secret"),
    _core("serviceaccounts", "ServiceAccount", "sa", subresources=("token",)),
    _core("services", "Service", "svc", categories=_ALL, subresources=_STATUS),
    _in("apps", "v1", "controllerrevisions", "ControllerRevision"),
    _in("apps", "v1", "daemonsets", "DaemonSet", "ds", categories=_ALL, subresources=_STATUS, has_generation=True),
    _in(
        "apps", "v1", "deployments", "Deployment", "deploy", categories=_ALL, subresources=_SCALED, has_generation=True
    ),
    _in("apps", "v1", "replicasets", "ReplicaSet", "rs", categories=_ALL, subresources=_SCALED, has_generation=True),
    _in("apps", "v1", "statefulsets", "StatefulSet", "sts", categories=_ALL, subresources=_SCALED, has_generation=True),
    _in("batch", "v1", "cronjobs", "CronJob", "cj", categories=_ALL, subresources=_STATUS, has_generation=True),
    _in("batch", "v1", "jobs", "Job", categories=_ALL, subresources=_STATUS, has_generation=True),
    _in(
        "autoscaling",
        "v2",
        "horizontalpodautoscalers",
        "HorizontalPodAutoscaler",
        "hpa",
        categories=_ALL,
        subresources=_STATUS,
    ),
    _in(
        "policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", "pdb", subresources=_STATUS, has_generation=True
    ),
    _in("networking.k8s.io", "v1", "ingresses", "Ingress", "ing", subresources=_STATUS, has_generation=True),
    _in("networking.k8s.io", "v1", "ingressclasses", "IngressClass", cluster=True, has_generation=True),
    _in("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", "netpol", has_generation=True),
    _in("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", cluster=True),
    _in("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", cluster=True),
    _in("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding"),
    _in("rbac.authorization.k8s.io", "v1", "roles", "Role"),
    _in("storage.k8s.io", "v1", "storageclasses", "StorageClass", "sc", cluster=True),
    _in("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", "pc", cluster=True, has_generation=True),
    _in("coordination.k8s.io", "v1", "leases", "Lease"),
    _in("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", has_generation=True),
    _in("events.k8s.io", "v1", "events", "Event", "ev", stored_as="events"),
    _in(
        "apiextensions.k8s.io",
        "v1",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        "crd crds",
        cluster=True,
        categories=_EXTENSIONS,
        subresources=_STATUS,
        has_generation=True,
    ),
    _in("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", cluster=True, verbs=_CREATE),
    _in("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview", cluster=True, verbs=_CREATE),
    _in("authorization.k8s.io", "v1", "localsubjectaccessreviews", "LocalSubjectAccessReview", verbs=_CREATE),
    _in(
        "authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", cluster=True, verbs=_CREATE
    ),
    _in("authorization.k8s.io", "v1", "selfsubjectrulesreviews", "SelfSubjectRulesReview", cluster=True, verbs=_CREATE),
    _in("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", cluster=True, verbs=_CREATE),
)

# Groups in the order in which a client should prefer them when a resource name is ambiguous (kubectl takes the first).
_GROUP_ORDER = {group: at for at, group in enumerate(dict.fromkeys(resource.group for resource in BUILTIN))}


class Catalog:
    """The resources being served right now: built-in ones and those of established CRDs."""

    def __init__(self) -> None:
        self._by_path: dict[tuple[str, str, str], Resource] = {}
        self._by_kind: dict[tuple[str, str, str], Resource] = {}
        self.generation = 0  # grows with every change, so that what is derived from the catalog can be cached
        self._stored: dict[str, Resource] = {}
        self._stored_generation = -1
        for resource in BUILTIN:
            self._add(resource)

    def _add(self, resource: Resource) -> None:
        self._by_path[resource.group, resource.version, resource.plural] = resource
        self._by_kind[resource.group, resource.version, resource.kind] = resource

    def replace_custom(self, group: str, plural: str, resources: Iterable[Resource]) -> None:
        """Serve these versions of a custom resource and no other ones."""
        for resource in list(self._by_path.values()):
            if resource.custom and (resource.group, resource.plural) == (group, plural):
                del self._by_path[resource.group, resource.version, resource.plural]
                del self._by_kind[resource.group, resource.version, resource.kind]
        for resource in resources:
            self._add(resource)
        self.generation += 1

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        return self._by_path.get((group, version, plural))

    def of_kind(self, api_version: str, kind: str) -> Resource | None:
        group, _, version = api_version.rpartition("/")
        return self._by_kind.get((group, version, kind))

    def __iter__(self) -> Iterator[Resource]:
        return iter(self._by_path.values())

    def groups(self) -> list[str]:
        """Named groups, built-in ones first, custom ones by name."""
        names = {resource.group for resource in self if resource.group}
        return sorted(names, key=lambda name: (_GROUP_ORDER.get(name, len(_GROUP_ORDER)), name))

    def versions(self, group: str) -> list[str]:
        """Versions of a group, the preferred one first (Kubernetes' version priority)."""
        names = {resource.version for resource in self if resource.group == group}
        return sorted(names, key=version_priority, reverse=True)

    def in_version(self, group: str, version: str) -> list[Resource]:
        return [resource for resource in self if (resource.group, resource.version) == (group, version)]

    def stored(self) -> dict[str, Resource]:
        """Storage key -> a resource whose objects are stored under it (any version)."""
        if self._stored_generation != self.generation:
            self._stored = {}
            for resource in self:
                if "list" in resource.verbs and not resource.stored_as:
                    self._stored.setdefault(resource.storage_key, resource)
            self._stored_generation = self.generation
        return self._stored


def version_priority(version: str) -> tuple[int, int, int, str]:
    """Sort key of Kubernetes' version order: v2 > v1 > v1beta2 > v1beta1 > v1alpha1 > anything else."""
    match = re.fullmatch(r"v(\d+)(?:(alpha|beta)(\d+))?", version)
    if not match:
        return (0, 0, 0, version)
    major, stage, minor = match.groups()
    return ({"alpha": 1, "beta": 2, None: 3}[stage], int(major), int(minor or 0), "")
