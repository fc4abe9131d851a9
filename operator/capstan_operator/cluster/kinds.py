"""The resources the operator talks to, and every right it needs: the ClusterRole is generated from `RULES`."""

from dataclasses import dataclass
from typing import Literal

from capstan_operator.api.meta import GROUP, VERSION


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource of the Kubernetes API."""

    group: str
    """Empty for the core group."""
    version: str
    plural: str
    kind: str

    @property
    def group_version(self) -> str:
        """The apiVersion of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def group_path(self) -> str:
        """`/api/v1` or `/apis/<group>/<version>`."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path of the collection, of one object, or of its subresource. `namespace` None: all namespaces.

        Raises ValueError for a name that would be more than one part of a path, or lead to another: with `..` in it,
        the operator would fetch what the one who wrote it may not see. The rule is Kubernetes' own for such names.
        """
        for part in (namespace, name):
            if part is not None and (part in ("", ".", "..") or "/" in part or "%" in part):
                raise ValueError(f"{self.kind}: {part!r} is no name: it is empty, a path, or part of one")
        parts = [self.group_path]
        if namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part is not None]
        return "/".join(parts)


TRAINING_JOBS = Resource(GROUP, VERSION, "trainingjobs", "TrainingJob")
INFERENCE_SERVICES = Resource(GROUP, VERSION, "inferenceservices", "InferenceService")
BENCHMARKS = Resource(GROUP, VERSION, "benchmarks", "Benchmark")
OWN_KINDS = (TRAINING_JOBS, INFERENCE_SERVICES, BENCHMARKS)
PODS = Resource("", "v1", "pods", "Pod")
SECRETS = Resource("", "v1", "secrets", "Secret")
SERVICES = Resource("", "v1", "services", "Service")
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
HTTP_ROUTES = Resource("gateway.networking.k8s.io", "v1", "httproutes", "HTTPRoute")
"""Of the Gateway API, which not every cluster has."""
DISRUPTION_BUDGETS = (
    Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget"),
    Resource("policy", "v1beta1", "poddisruptionbudgets", "PodDisruptionBudget"),
)
"""Kubernetes serves the first from 1.21 on, the second up to 1.24."""
RAY_SERVICES = Resource("ray.io", "v1", "rayservices", "RayService")
"""Of KubeRay, which not every cluster has."""
POD_GROUPS = {
    "volcano": Resource("scheduling.volcano.sh", "v1beta1", "podgroups", "PodGroup"),
    "schedulerPlugins": Resource("scheduling.x-k8s.io", "v1alpha1", "podgroups", "PodGroup"),
}
"""Of schedulers that not every cluster has, by their keys in workers.gang."""
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
EVENTS = Resource("", "v1", "events", "Event")
NAMESPACES = Resource("", "v1", "namespaces", "Namespace")
"""Cluster-scoped, so always with `namespace` None."""
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")

APPLICABLE: dict[tuple[str, str], Resource] = {
    ("v1", "Secret"): SECRETS,
    ("v1", "Service"): SERVICES,
    ("apps/v1", "Deployment"): DEPLOYMENTS,
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): HTTP_ROUTES,
    **{(one.group_version, one.kind): one for one in DISRUPTION_BUDGETS},
    ("ray.io/v1", "RayService"): RAY_SERVICES,
    **{(one.group_version, one.kind): one for one in POD_GROUPS.values()},
}
"""The kinds a decision may ask to be server-side applied, by (apiVersion, kind)."""

CREATABLE: dict[tuple[str, str], Resource] = {
    (one.group_version, one.kind): one for one in (PODS, TRAINING_JOBS, INFERENCE_SERVICES)
}
"""The kinds a decision may ask to be created, by (apiVersion, kind)."""

LEASE_NAME = "capstan-operator"
KEY_SECRET_NAME = "capstan-operator-key"  # nosec B105  # a name


@dataclass(frozen=True, slots=True)
class Rule:
    """One right the operator uses."""

    group: str
    resource: str
    """Plural, with `/subresource` where that alone is meant."""
    verbs: tuple[str, ...]
    scope: Literal["watched", "own"]
    """`watched`: where our objects live; `own`: only the operator's own namespace."""
    why: str
    name: str | None = None
    """The only object meant; None: all. Kubernetes cannot restrict `create` by name."""


RULES: tuple[Rule, ...] = (
    Rule(
        GROUP,
        "trainingjobs",
        ("get", "list", "watch", "create", "delete"),
        "watched",
        "The jobs to run; Benchmarks make some of their own.",
    ),
    Rule(GROUP, "trainingjobs/status", ("patch",), "watched", "The operator is the only writer of status."),
    Rule(GROUP, "trainingjobs/finalizers", ("update",), "watched", "Owner references with blockOwnerDeletion need it."),
    Rule(
        GROUP,
        "inferenceservices",
        ("get", "list", "watch", "create", "delete"),
        "watched",
        "The models to serve; Benchmarks make some of their own.",
    ),
    Rule(GROUP, "inferenceservices/status", ("patch",), "watched", "The operator is the only writer of status."),
    Rule(
        GROUP,
        "inferenceservices/finalizers",
        ("update",),
        "watched",
        "Owner references with blockOwnerDeletion need it.",
    ),
    Rule(GROUP, "benchmarks", ("get", "list", "watch"), "watched", "What to measure."),
    Rule(GROUP, "benchmarks/status", ("patch",), "watched", "The operator is the only writer of status."),
    Rule(GROUP, "benchmarks/finalizers", ("update",), "watched", "Owner references with blockOwnerDeletion need it."),
    Rule(
        "",
        "pods",
        ("get", "list", "watch", "create", "patch", "delete"),
        "watched",
        "The workers, replicas' states, what asks a model registry, and what Benchmarks measure with; patched is what "
        "tells Kueue that a pod group is over.",
    ),
    Rule(
        "",
        "secrets",
        ("create", "patch", "delete"),
        "watched",
        "Run configuration and token of each job, deleted after the TTL; configuration of each revision. As wide as "
        "get: a patch, even an empty one that is only tried, is answered with the whole Secret.",
    ),
    Rule(
        "apps",
        "deployments",
        ("list", "watch", "create", "patch", "delete"),
        "watched",
        "One for each revision of an InferenceService.",
    ),
    Rule(
        "",
        "services",
        ("list", "watch", "create", "patch", "delete"),
        "watched",
        "The stable address of an InferenceService, and one for each revision.",
    ),
    Rule(
        "gateway.networking.k8s.io",
        "httproutes",
        ("list", "watch", "create", "patch", "delete"),
        "watched",
        "The way from Gateways to an InferenceService with spec.gateway.",
    ),
    Rule(
        "policy",
        "poddisruptionbudgets",
        ("list", "watch", "create", "patch", "delete"),
        "watched",
        "A drain takes the replicas of an InferenceService one by one.",
    ),
    Rule(
        "ray.io",
        "rayservices",
        ("list", "watch", "create", "patch"),
        "watched",
        "What KubeRay keeps of an InferenceService with backend RayService; it goes with its owner.",
    ),
    *(
        Rule(
            one.group,
            one.plural,
            ("create", "patch"),
            "watched",
            "The pods of a TrainingJob with workers.gang are placed together; it goes with its owner.",
        )
        for one in POD_GROUPS.values()
    ),
    Rule(
        "",
        "configmaps",
        ("get",),
        "watched",
        "The kept result that a Benchmark names as its baseline, looked at before its first run.",
    ),
    Rule("", "events", ("create", "patch"), "watched", "What happened to our objects."),
    Rule("", "namespaces", ("list", "watch"), "watched", "Only with --allow-chaos: which namespaces allow faults."),
    Rule("coordination.k8s.io", "leases", ("create",), "own", "Leader election."),
    Rule("coordination.k8s.io", "leases", ("get", "update"), "own", "Leader election.", LEASE_NAME),
    Rule("", "secrets", ("create",), "own", "The operator's key, made at the first start."),
    Rule("", "secrets", ("get",), "own", "The operator's key.", KEY_SECRET_NAME),
)
