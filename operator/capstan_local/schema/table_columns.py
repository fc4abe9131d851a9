"""kubectl's columns for the built-in kinds."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from capstan_local.schema import table_pods
from capstan_local.schema.durations import age, human_duration
from capstan_local.schema.jsonpath import find

Object = dict[str, Any]
Cell = Callable[[Object, datetime], Any]

_NONE: Final = "<none>"


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its definition, and how an object fills it. `priority` > 0 shows with `-o wide` only."""

    name: str
    cell: Cell
    kind: str = "string"
    format: str = ""
    priority: int = 0
    description: str = ""

    def definition(self) -> Object:
        """Its entry in columnDefinitions."""
        return {
            "name": self.name,
            "type": self.kind,
            "format": self.format,
            "description": self.description or self.name,
            "priority": self.priority,
        }


def find_columns(group: str, kind: str) -> tuple[Column, ...]:
    """The columns of a built-in kind; NAME and AGE for kinds without more."""
    return _COLUMNS.get((group, kind), (NAME, AGE))


def _at(path: str, default: Any = "") -> Cell:
    def cell(obj: Object, now: datetime) -> Any:
        found = find(path, obj)
        return found[0] if found and found[0] is not None else default

    return cell


def _wide(name: str, cell: Cell) -> Column:
    return Column(name, cell, priority=1)


def _count(path: str) -> Cell:
    return lambda obj, now: len((find(path, obj) or [None])[0] or ())


def _joined(values: Iterable[Any], default: str = _NONE) -> str:
    return ",".join(str(value) for value in values) or default


def _all(path: str, default: str = _NONE) -> Cell:
    return lambda obj, now: _joined(find(path, obj), default)


def _age_of(path: str) -> Cell:
    return lambda obj, now: age((find(path, obj) or [None])[0], now)


NAME: Final = Column("Name", _at(".metadata.name"), format="name", description="Name of the object in its namespace.")
AGE: Final = Column("Age", _age_of(".metadata.creationTimestamp"), description="Time since the object was created.")
_CREATED_AT: Final = Column("Created At", _at(".metadata.creationTimestamp"), kind="date")


def _labels(labels: Any) -> str:
    return _joined(f"{key}={value}" for key, value in sorted((labels or {}).items()))


def _selector(obj: Object, now: datetime) -> str:
    """A label selector as `kubectl get -l` would take it."""
    selector = obj.get("spec", {}).get("selector") or {}
    parts = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for rule in selector.get("matchExpressions") or []:
        values = f"({','.join(sorted(rule.get('values') or []))})"
        forms = {"In": f"{rule['key']} in {values}", "NotIn": f"{rule['key']} notin {values}", "Exists": rule["key"]}
        parts.append(forms.get(rule["operator"], f"!{rule['key']}"))
    return _joined(parts)


_TEMPLATE: Final = (
    _wide("Containers", _all(".spec.template.spec.containers[*].name")),
    _wide("Images", _all(".spec.template.spec.containers[*].image")),
)


# --- services --------------------------------------------------------------------------------------------------------


def _external_ip(obj: Object, now: datetime) -> str:
    spec = obj.get("spec", {})
    kind, external = spec.get("type", "ClusterIP"), spec.get("externalIPs") or []
    if kind == "ExternalName":
        return str(spec.get("externalName", ""))
    if kind == "LoadBalancer":
        ingress = find(".status.loadBalancer.ingress[*]", obj)
        addresses = [entry.get("ip") or entry.get("hostname", "") for entry in ingress] + external
        return _joined(addresses, "<pending>")
    return _joined(external)


def _service_ports(obj: Object, now: datetime) -> str:
    return _joined(
        f"{port['port']}{':' + str(port['nodePort']) if port.get('nodePort') else ''}/{port.get('protocol', 'TCP')}"
        for port in obj.get("spec", {}).get("ports") or []
    )


def _endpoints(obj: Object, now: datetime) -> str:
    shown: list[str] = []
    for subset in obj.get("subsets") or []:
        addresses = [address["ip"] for address in subset.get("addresses") or []]
        ports = subset.get("ports") or []
        shown += [f"{ip}:{port['port']}" for port in ports for ip in addresses] if ports else addresses
    more = f" + {len(shown) - 3} more..." if len(shown) > 3 else ""
    return _joined(shown[:3]) + more


# --- workloads -------------------------------------------------------------------------------------------------------


def _ready_of(obj: Object, now: datetime) -> str:
    return f"{obj.get('status', {}).get('readyReplicas') or 0}/{obj.get('spec', {}).get('replicas') or 0}"


def _job_status(obj: Object, now: datetime) -> str:
    status = obj.get("status", {})
    true = {item["type"] for item in status.get("conditions") or [] if item.get("status") == "True"}
    for condition, text in (("Complete", "Complete"), ("Failed", "Failed")):
        if condition in true:
            return text
    if "deletionTimestamp" in obj["metadata"]:
        return "Terminating"
    for condition, text in (("Suspended", "Suspended"), ("FailureTarget", "FailureTarget")):
        if condition in true:
            return text
    return "SuccessCriteriaMet" if "SuccessCriteriaMet" in true else "Running"


def _job_completions(obj: Object, now: datetime) -> str:
    spec, succeeded = obj.get("spec", {}), obj.get("status", {}).get("succeeded") or 0
    if spec.get("completions") is not None:
        return f"{succeeded}/{spec['completions']}"
    parallelism = spec.get("parallelism") or 0
    return f"{succeeded}/1 of {parallelism}" if parallelism > 1 else f"{succeeded}/1"


def _job_duration(obj: Object, now: datetime) -> str:
    status = obj.get("status", {})
    if not status.get("startTime"):
        return ""
    start = datetime.fromisoformat(status["startTime"])
    end = datetime.fromisoformat(status["completionTime"]) if status.get("completionTime") else now
    return human_duration((end - start).total_seconds())


# --- nodes -----------------------------------------------------------------------------------------------------------

_ROLE: Final = "node-role.kubernetes.io/"


def _node_status(obj: Object, now: datetime) -> str:
    conditions = {item["type"]: item.get("status") for item in obj.get("status", {}).get("conditions") or []}
    ready = "Unknown" if "Ready" not in conditions else "Ready" if conditions["Ready"] == "True" else "NotReady"
    return f"{ready},SchedulingDisabled" if obj.get("spec", {}).get("unschedulable") else ready


def _node_roles(obj: Object, now: datetime) -> str:
    labels = obj["metadata"].get("labels") or {}
    roles = {label.removeprefix(_ROLE) for label in labels if label.startswith(_ROLE) and label != _ROLE}
    if labels.get("kubernetes.io/role"):
        roles.add(labels["kubernetes.io/role"])
    return _joined(sorted(roles))


def _node_address(kind: str) -> Cell:
    return _at(f'.status.addresses[?(@.type=="{kind}")].address', _NONE)


def _node_info(name: str) -> Cell:
    return lambda obj, now: obj.get("status", {}).get("nodeInfo", {}).get(name) or "<unknown>"


# --- events ----------------------------------------------------------------------------------------------------------


def _event_last_seen(obj: Object, now: datetime) -> str:
    series = obj.get("series") or {}
    last = series.get("lastObservedTime") or obj.get("lastTimestamp") or obj.get("deprecatedLastTimestamp")
    return age(last or obj.get("eventTime") or obj.get("firstTimestamp"), now)


def _event_object(obj: Object, now: datetime) -> str:
    about = obj.get("involvedObject") or obj.get("regarding") or {}
    return f"{about.get('kind', '').lower()}/{about.get('name', '')}"


def _event_source(obj: Object, now: datetime) -> str:
    source = obj.get("source") or obj.get("deprecatedSource") or {}
    component = source.get("component") or obj.get("reportingComponent") or obj.get("reportingController", "")
    host = source.get("host") or obj.get("reportingInstance", "")
    return f"{component}, {host}" if host else str(component)


def _event_count(obj: Object, now: datetime) -> str:
    series = obj.get("series") or {}
    return str(series.get("count") or obj.get("count") or obj.get("deprecatedCount") or 1)


_EVENT: Final = (
    Column("Last Seen", _event_last_seen),
    Column("Type", _at(".type")),
    Column("Reason", _at(".reason")),
    Column("Object", _event_object),
    _wide("Subobject", lambda obj, now: (obj.get("involvedObject") or obj.get("regarding") or {}).get("fieldPath", "")),
    _wide("Source", _event_source),
    Column("Message", lambda obj, now: (obj.get("message") or obj.get("note") or "").strip()),
    _wide("First Seen", lambda obj, now: age(obj.get("firstTimestamp") or obj.get("eventTime"), now)),
    _wide("Count", _event_count),
    Column("Name", _at(".metadata.name"), format="name", priority=1),
)


# --- storage and access ----------------------------------------------------------------------------------------------

_MODES: Final = {
    "ReadWriteOnce": "RWO",
    "ReadOnlyMany": "ROX",
    "ReadWriteMany": "RWX",
    "ReadWriteOncePod": "RWOP",
}


def _access_modes(path: str) -> Cell:
    return lambda obj, now: _joined((short for mode, short in _MODES.items() if mode in find(path, obj)), "")


def _claim_status(obj: Object, now: datetime) -> str:
    return "Terminating" if "deletionTimestamp" in obj["metadata"] else str(obj.get("status", {}).get("phase", ""))


def _claim_of(obj: Object, now: datetime) -> str:
    claim = obj.get("spec", {}).get("claimRef")
    return f"{claim.get('namespace', '')}/{claim.get('name', '')}" if claim else ""


def _subjects(kind: str) -> Cell:
    def cell(obj: Object, now: datetime) -> str:
        subjects = [subject for subject in obj.get("subjects") or [] if subject["kind"] == kind]
        names = [
            f"{subject['namespace']}/{subject['name']}" if kind == "ServiceAccount" else subject["name"]
            for subject in subjects
        ]
        return ", ".join(names)

    return cell


_BINDING: Final = (
    NAME,
    Column("Role", lambda obj, now: f"{obj['roleRef']['kind']}/{obj['roleRef']['name']}"),
    AGE,
    _wide("Users", _subjects("User")),
    _wide("Groups", _subjects("Group")),
    _wide("ServiceAccounts", _subjects("ServiceAccount")),
)
_CLASS_ANNOTATION: Final = r".metadata.annotations['volume.beta.kubernetes.io/storage-class']"

_COLUMNS: Final[dict[tuple[str, str], tuple[Column, ...]]] = {
    ("", "Pod"): (
        NAME,
        Column("Ready", lambda obj, now: table_pods.ready(obj)),
        Column("Status", lambda obj, now: table_pods.status(obj)),
        Column("Restarts", table_pods.restarts),
        AGE,
        _wide("IP", _at(".status.podIP", _NONE)),
        _wide("Node", _at(".spec.nodeName", _NONE)),
        _wide("Nominated Node", _at(".status.nominatedNodeName", _NONE)),
        _wide("Readiness Gates", lambda obj, now: table_pods.readiness_gates(obj)),
    ),
    ("", "Service"): (
        NAME,
        Column("Type", _at(".spec.type", "ClusterIP")),
        Column("Cluster-IP", _at(".spec.clusterIP", _NONE)),
        Column("External-IP", _external_ip),
        Column("Port(s)", _service_ports),
        AGE,
        _wide("Selector", lambda obj, now: _labels(obj.get("spec", {}).get("selector"))),
    ),
    ("", "Endpoints"): (NAME, Column("Endpoints", _endpoints), AGE),
    ("", "Secret"): (NAME, Column("Type", _at(".type")), Column("Data", _count(".data"), "integer"), AGE),
    ("", "ConfigMap"): (
        NAME,
        Column("Data", lambda obj, now: len(obj.get("data") or ()) + len(obj.get("binaryData") or ()), "integer"),
        AGE,
    ),
    ("", "Namespace"): (NAME, Column("Status", _at(".status.phase")), AGE),
    ("", "ServiceAccount"): (NAME, Column("Secrets", _count(".secrets"), "integer"), AGE),
    ("", "Node"): (
        NAME,
        Column("Status", _node_status),
        Column("Roles", _node_roles),
        AGE,
        Column("Version", _at(".status.nodeInfo.kubeletVersion")),
        _wide("Internal-IP", _node_address("InternalIP")),
        _wide("External-IP", _node_address("ExternalIP")),
        _wide("OS-Image", _node_info("osImage")),
        _wide("Kernel-Version", _node_info("kernelVersion")),
        _wide("Container-Runtime", _node_info("containerRuntimeVersion")),
    ),
    ("", "Event"): _EVENT,
    ("events.k8s.io", "Event"): _EVENT,
    ("", "PersistentVolumeClaim"): (
        NAME,
        Column("Status", _claim_status),
        Column("Volume", _at(".spec.volumeName")),
        Column("Capacity", _at(".status.capacity.storage")),
        Column("Access Modes", _access_modes(".status.accessModes[*]")),
        Column(
            "StorageClass",
            lambda obj, now: (find(_CLASS_ANNOTATION, obj) or find(".spec.storageClassName", obj) or [""])[0],
        ),
        Column("VolumeAttributesClass", _at(".spec.volumeAttributesClassName", "<unset>")),
        AGE,
        _wide("VolumeMode", _at(".spec.volumeMode", "<unset>")),
    ),
    ("", "PersistentVolume"): (
        NAME,
        Column("Capacity", _at(".spec.capacity.storage")),
        Column("Access Modes", _access_modes(".spec.accessModes[*]")),
        Column("Reclaim Policy", _at(".spec.persistentVolumeReclaimPolicy")),
        Column("Status", _claim_status),
        Column("Claim", _claim_of),
        Column("StorageClass", _at(".spec.storageClassName")),
        Column("VolumeAttributesClass", _at(".spec.volumeAttributesClassName", "<unset>")),
        Column("Reason", _at(".status.reason")),
        AGE,
        _wide("VolumeMode", _at(".spec.volumeMode", "<unset>")),
    ),
    ("apps", "Deployment"): (
        NAME,
        Column("Ready", _ready_of),
        Column("Up-to-date", _at(".status.updatedReplicas", 0), "integer"),
        Column("Available", _at(".status.availableReplicas", 0), "integer"),
        AGE,
        *_TEMPLATE,
        _wide("Selector", _selector),
    ),
    ("apps", "ReplicaSet"): (
        NAME,
        Column("Desired", _at(".spec.replicas", 0), "integer"),
        Column("Current", _at(".status.replicas", 0), "integer"),
        Column("Ready", _at(".status.readyReplicas", 0), "integer"),
        AGE,
        *_TEMPLATE,
        _wide("Selector", _selector),
    ),
    ("apps", "StatefulSet"): (NAME, Column("Ready", _ready_of), AGE, *_TEMPLATE),
    ("apps", "DaemonSet"): (
        NAME,
        Column("Desired", _at(".status.desiredNumberScheduled", 0), "integer"),
        Column("Current", _at(".status.currentNumberScheduled", 0), "integer"),
        Column("Ready", _at(".status.numberReady", 0), "integer"),
        Column("Up-to-date", _at(".status.updatedNumberScheduled", 0), "integer"),
        Column("Available", _at(".status.numberAvailable", 0), "integer"),
        Column("Node Selector", lambda obj, now: _labels((find(".spec.template.spec.nodeSelector", obj) or [{}])[0])),
        AGE,
        *_TEMPLATE,
        _wide("Selector", _selector),
    ),
    ("batch", "Job"): (
        NAME,
        Column("Status", _job_status),
        Column("Completions", _job_completions),
        Column("Duration", _job_duration),
        AGE,
        *_TEMPLATE,
        _wide("Selector", _selector),
    ),
    ("coordination.k8s.io", "Lease"): (NAME, Column("Holder", _at(".spec.holderIdentity")), AGE),
    ("apiextensions.k8s.io", "CustomResourceDefinition"): (NAME, _CREATED_AT),
    ("rbac.authorization.k8s.io", "Role"): (NAME, _CREATED_AT),
    ("rbac.authorization.k8s.io", "ClusterRole"): (NAME, _CREATED_AT),
    ("rbac.authorization.k8s.io", "RoleBinding"): _BINDING,
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): _BINDING,
    ("scheduling.k8s.io", "PriorityClass"): (
        NAME,
        Column("Value", _at(".value", 0), "integer"),
        Column("Global-Default", _at(".globalDefault", False), "boolean"),
        AGE,
        Column("PreemptionPolicy", _at(".preemptionPolicy")),
    ),
    ("storage.k8s.io", "StorageClass"): (
        NAME,
        Column("Provisioner", _at(".provisioner")),
        Column("ReclaimPolicy", _at(".reclaimPolicy", "Delete")),
        Column("VolumeBindingMode", _at(".volumeBindingMode", "Immediate")),
        Column("AllowVolumeExpansion", _at(".allowVolumeExpansion", False), "boolean"),
        AGE,
    ),
}
