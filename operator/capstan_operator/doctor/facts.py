"""All that is known of a cluster when its findings are made: read once, by `read.py`, and never changed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Unread:
    """What could not be read, and why."""

    why: str


Seen = list[Document] | Unread
"""The objects of one kind, as the API server shows them."""


@dataclass(frozen=True, slots=True)
class Access:
    """Whether somebody may do one thing."""

    verb: str
    resource: str
    """`<plural>[/<subresource>].<group>`, as kubectl says it."""
    namespace: str | None
    """None: in all namespaces."""
    is_allowed: bool
    why: str
    """What it is needed for."""


@dataclass(frozen=True, slots=True)
class Account:
    """Whose rights were looked at."""

    name: str
    """`system:serviceaccount:<namespace>:<name>`, or `you`."""
    access: list[Access] | Unread


@dataclass(frozen=True, slots=True)
class Server:
    """The API server itself."""

    url: str
    version: str
    """As it says: v1.34.1."""
    minor: int
    """34, whatever a distribution puts behind it."""
    ahead_seconds: float | None
    """By how much its clock is ahead of this machine's, within half a second and the time of a call; None: it tells no
    time."""
    late_after_seconds: float | None = None
    """How long was waited for what it did not answer; None: it answered everything."""


@dataclass(frozen=True, slots=True)
class Facts:
    """One look at a cluster."""

    server: Server
    now: float
    """Seconds since 1970, by the API server's clock if it tells the time."""
    namespace: str | None
    """Only objects of this one were looked at; None: of all."""
    client_version: str
    """Of this command."""
    crds: Mapping[str, Document | None] | Unread
    """By name; None: there is none."""
    wanted_crds: Mapping[str, Document]
    """As this version has them."""
    groups: frozenset[str] | Unread
    """`<group>/<version>` of all that is served."""
    accounts: list[Account] | Unread
    """Of each operator that there is."""
    deployments: Seen
    """The operator's, as all that follow up to `leases`."""
    operator_pods: Seen
    leases: Seen
    nodes: Seen
    storage_classes: Seen
    claims: Seen
    webhooks: Seen
    """Configurations of both kinds."""
    endpoint_slices: Seen
    """Of the Services that webhooks name."""
    namespaces: Seen
    policies: Seen
    """NetworkPolicies."""
    jobs: Seen
    services: Seen
    benchmarks: Seen
    pods: Seen = field(default_factory=list)
    """Those that Capstan made."""

    def objects(self) -> list[Document]:
        """All of ours that could be read."""
        seen = (self.jobs, self.services, self.benchmarks)
        return [one for kind in seen if not isinstance(kind, Unread) for one in kind]

    def busy_namespaces(self) -> list[str]:
        """Where there is anything of ours, or where it was asked for; sorted."""
        found = {one["metadata"]["namespace"] for one in self.objects()}
        return sorted(found | ({self.namespace} if self.namespace else set()))


def at(document: Any, *path: str | int, default: Any = None) -> Any:
    """What stands at `path`, `default` where there is nothing."""
    for key in path:
        try:
            document = document[key]
        except (KeyError, IndexError, TypeError):
            return default
    return default if document is None else document


def name_of(document: Document) -> str:
    """`<namespace>/<name>`, or the name alone."""
    metadata = document["metadata"]
    return "/".join(part for part in (metadata.get("namespace"), metadata["name"]) if part)


def condition(document: Document, kind: str) -> Document | None:
    """One of the conditions on its status; None: nothing is said."""
    return next((one for one in at(document, "status", "conditions", default=[]) if one.get("type") == kind), None)


def is_met(document: Document, kind: str) -> bool:
    found = condition(document, kind)
    return found is not None and found.get("status") == "True"
