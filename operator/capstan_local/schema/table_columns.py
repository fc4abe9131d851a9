"""kubectl's columns for the built-in kinds."""

from datetime import datetime
from typing import Final

from capstan_local.schema import table_pods
from capstan_local.schema.durations import age, human_duration
from capstan_local.schema.jsonpath import find
from capstan_local.schema.table_cells import (
    NONE,
    Cell,
    Column,
    Object,
    age_at,
    all_at,
    at,
    count,
    joined,
    labels_text,
    selector,
    wide,
)


def find_columns(group: str, kind: str) -> tuple[Column, ...]:
    """The columns of a built-in kind; NAME and AGE for kinds without more."""
    return _COLUMNS.get((group, kind), (NAME, AGE))


NAME: Final = Column("Name", at(".metadata.name"), format="name", description="Name of the object in its namespace.")
AGE: Final = Column("Age", age_at(".metadata.creationTimestamp"), description="Time since the object was created.")
_CREATED_AT: Final = Column("Created At", at(".metadata.creationTimestamp"), kind="date")


_TEMPLATE: Final = (
    wide("Containers", all_at(".spec.template.spec.containers[*].name")),
    wide("Images", all_at(".spec.template.spec.containers[*].image")),
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
        return joined(addresses, "<pending>")
    return joined(external)


def _service_ports(obj: Object, now: datetime) -> str:
    return joined(
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
    return joined(shown[:3]) + more


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
    return joined(sorted(roles))


def _node_address(kind: str) -> Cell:
    return at(f'.status.addresses[?(@.type=="{kind}")].address', NONE)


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
    Column("Type", at(".type")),
    Column("Reason", at(".reason")),
    Column("Object", _event_object),
    wide("Subobject", lambda obj, now: (obj.get("involvedObject") or obj.get("regarding") or {}).get("fieldPath", "")),
    wide("Source", _event_source),
    Column("Message", lambda obj, now: (obj.get("message") or obj.get("note") or "").strip()),
    wide("First Seen", lambda obj, now: age(obj.get("firstTimestamp") or obj.get("eventTime"), now)),
    wide("Count", _event_count),
    Column("Name", at(".metadata.name"), format="name", priority=1),
)


# --- storage and access ----------------------------------------------------------------------------------------------

_MODES: Final = {
    "ReadWriteOnce": "RWO",
    "ReadOnlyMany": "ROX",
    "ReadWriteMany": "RWX",
    "ReadWriteOncePod": "RWOP",
}


def _access_modes(path: str) -> Cell:
    return lambda obj, now: joined((short for mode, short in _MODES.items() if mode in find(path, obj)), "")


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
    wide("Users", _subjects("User")),
    wide("Groups", _subjects("Group")),
    wide("ServiceAccounts", _subjects("ServiceAccount")),
)
_CLASS_ANNOTATION: Final = r".metadata.annotations['volume.beta.kubernetes.io/storage-class']"

_COLUMNS: Final[dict[tuple[str, str], tuple[Column, ...]]] = {
    ("", "Pod"): (
        NAME,
        Column("Ready", lambda obj, now: table_pods.ready(obj)),
        Column("Status", lambda obj, now: table_pods.status(obj)),
        Column("Restarts", table_pods.restarts),
        AGE,
        wide("IP", at(".status.podIP", NONE)),
        wide("Node", at(".spec.nodeName", NONE)),
        wide("Nominated Node", at(".status.nominatedNodeName", NONE)),
        wide("Readiness Gates", lambda obj, now: table_pods.readiness_gates(obj)),
    ),
    ("", "Service"): (
        NAME,
        Column("Type", at(".spec.type", "ClusterIP")),
        Column("Cluster-IP", at(".spec.clusterIP", NONE)),
        Column("External-IP", _external_ip),
        Column("Port(s)", _service_ports),
        AGE,
        wide("Selector", lambda obj, now: labels_text(obj.get("spec", {}).get("selector"))),
    ),
    ("", "Endpoints"): (NAME, Column("Endpoints", _endpoints), AGE),
    ("", "Secret"): (NAME, Column("Type", at(".type")), Column("Data", count(".data"), "integer"), AGE),
    ("", "ConfigMap"): (
        NAME,
        Column("Data", lambda obj, now: len(obj.get("data") or ()) + len(obj.get("binaryData") or ()), "integer"),
        AGE,
    ),
    ("", "Namespace"): (NAME, Column("Status", at(".status.phase")), AGE),
    ("", "ServiceAccount"): (NAME, Column("Secrets", count(".secrets"), "integer"), AGE),
    ("", "Node"): (
        NAME,
        Column("Status", _node_status),
        Column("Roles", _node_roles),
        AGE,
        Column("Version", at(".status.nodeInfo.kubeletVersion")),
        wide("Internal-IP", _node_address("InternalIP")),
        wide("External-IP", _node_address("ExternalIP")),
        wide("OS-Image", _node_info("osImage")),
        wide("Kernel-Version", _node_info("kernelVersion")),
        wide("Container-Runtime", _node_info("containerRuntimeVersion")),
    ),
    ("", "Event"): _EVENT,
    ("events.k8s.io", "Event"): _EVENT,
    ("", "PersistentVolumeClaim"): (
        NAME,
        Column("Status", _claim_status),
        Column("Volume", at(".spec.volumeName")),
        Column("Capacity", at(".status.capacity.storage")),
        Column("Access Modes", _access_modes(".status.accessModes[*]")),
        Column(
            "StorageClass",
            lambda obj, now: (find(_CLASS_ANNOTATION, obj) or find(".spec.storageClassName", obj) or [""])[0],
        ),
        Column("VolumeAttributesClass", at(".spec.volumeAttributesClassName", "<unset>")),
        AGE,
        wide("VolumeMode", at(".spec.volumeMode", "<unset>")),
    ),
    ("", "PersistentVolume"): (
        NAME,
        Column("Capacity", at(".spec.capacity.storage")),
        Column("Access Modes", _access_modes(".spec.accessModes[*]")),
        Column("Reclaim Policy", at(".spec.persistentVolumeReclaimPolicy")),
        Column("Status", _claim_status),
        Column("Claim", _claim_of),
        Column("StorageClass", at(".spec.storageClassName")),
        Column("VolumeAttributesClass", at(".spec.volumeAttributesClassName", "<unset>")),
        Column("Reason", at(".status.reason")),
        AGE,
        wide("VolumeMode", at(".spec.volumeMode", "<unset>")),
    ),
    ("apps", "Deployment"): (
        NAME,
        Column("Ready", _ready_of),
        Column("Up-to-date", at(".status.updatedReplicas", 0), "integer"),
        Column("Available", at(".status.availableReplicas", 0), "integer"),
        AGE,
        *_TEMPLATE,
        wide("Selector", selector),
    ),
    ("apps", "ReplicaSet"): (
        NAME,
        Column("Desired", at(".spec.replicas", 0), "integer"),
        Column("Current", at(".status.replicas", 0), "integer"),
        Column("Ready", at(".status.readyReplicas", 0), "integer"),
        AGE,
        *_TEMPLATE,
        wide("Selector", selector),
    ),
    ("apps", "StatefulSet"): (NAME, Column("Ready", _ready_of), AGE, *_TEMPLATE),
    ("apps", "DaemonSet"): (
        NAME,
        Column("Desired", at(".status.desiredNumberScheduled", 0), "integer"),
        Column("Current", at(".status.currentNumberScheduled", 0), "integer"),
        Column("Ready", at(".status.numberReady", 0), "integer"),
        Column("Up-to-date", at(".status.updatedNumberScheduled", 0), "integer"),
        Column("Available", at(".status.numberAvailable", 0), "integer"),
        Column(
            "Node Selector", lambda obj, now: labels_text((find(".spec.template.spec.nodeSelector", obj) or [{}])[0])
        ),
        AGE,
        *_TEMPLATE,
        wide("Selector", selector),
    ),
    ("batch", "Job"): (
        NAME,
        Column("Status", _job_status),
        Column("Completions", _job_completions),
        Column("Duration", _job_duration),
        AGE,
        *_TEMPLATE,
        wide("Selector", selector),
    ),
    ("coordination.k8s.io", "Lease"): (NAME, Column("Holder", at(".spec.holderIdentity")), AGE),
    ("apiextensions.k8s.io", "CustomResourceDefinition"): (NAME, _CREATED_AT),
    ("rbac.authorization.k8s.io", "Role"): (NAME, _CREATED_AT),
    ("rbac.authorization.k8s.io", "ClusterRole"): (NAME, _CREATED_AT),
    ("rbac.authorization.k8s.io", "RoleBinding"): _BINDING,
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): _BINDING,
    ("scheduling.k8s.io", "PriorityClass"): (
        NAME,
        Column("Value", at(".value", 0), "integer"),
        Column("Global-Default", at(".globalDefault", False), "boolean"),
        AGE,
        Column("PreemptionPolicy", at(".preemptionPolicy")),
    ),
    ("storage.k8s.io", "StorageClass"): (
        NAME,
        Column("Provisioner", at(".provisioner")),
        Column("ReclaimPolicy", at(".reclaimPolicy", "Delete")),
        Column("VolumeBindingMode", at(".volumeBindingMode", "Immediate")),
        Column("AllowVolumeExpansion", at(".allowVolumeExpansion", False), "boolean"),
        AGE,
    ),
}
