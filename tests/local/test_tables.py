# ruff: noqa: E501 - a message or a row is one line
"""What `kubectl get` prints: cells as a kube-apiserver fills them."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from capstan_local.schema.durations import age, human_duration
from capstan_local.schema.jsonpath import find
from capstan_local.schema.tables import to_table

Object = dict[str, Any]
NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
META = {"name": "x", "namespace": "d", "creationTimestamp": "2026-01-01T11:54:57Z"}


def cells(kind: str, obj: Object, group: str = "", columns: list[Object] | None = None) -> Object:
    resource = SimpleNamespace(group=group, kind=kind, printer_columns=columns)
    table = to_table(resource, [{"metadata": META, **obj}], NOW)
    names = [column["name"] for column in table["columnDefinitions"]]
    return dict(zip(names, table["rows"][0]["cells"], strict=True))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "<invalid>"),
        (-1, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (303, "5m3s"),
        (599, "9m59s"),
        (600, "10m"),
        (10799, "179m"),
        (10800, "3h"),
        (3 * 3600 + 60, "3h1m"),
        (8 * 3600, "8h"),
        (47 * 3600, "47h"),
        (48 * 3600, "2d"),
        (52 * 3600, "2d4h"),
        (200 * 3600, "8d"),
        (800 * 86400, "2y70d"),
        (3000 * 86400, "8y"),
    ],
)
def test_durations_get_coarser_as_they_grow(seconds: int, text: str) -> None:
    assert human_duration(seconds) == text


def test_an_age_that_cannot_be_known_says_so() -> None:
    assert [age(text, NOW) for text in (None, "", "yesterday", "2026-01-01T11:59:00Z")] == [
        "<unknown>",
        "<unknown>",
        "<invalid>",
        "60s",
    ]


def container(state: Object, **more: Any) -> Object:
    return {"name": "c", "ready": False, "restartCount": 0, "state": state, **more}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"phase": "Pending"}, "Pending"),
        ({"phase": "Failed", "reason": "Evicted"}, "Evicted"),
        ({"phase": "Running", "containerStatuses": [container({"running": {}}, ready=True)]}, "Running"),
        ({"phase": "Pending", "containerStatuses": [container({"waiting": {"reason": "CrashLoopBackOff"}})]}, "CrashLoopBackOff"),
        ({"phase": "Failed", "containerStatuses": [container({"terminated": {"exitCode": 3}})]}, "ExitCode:3"),
        ({"phase": "Failed", "containerStatuses": [container({"terminated": {"exitCode": 137, "signal": 9}})]}, "Signal:9"),
        ({"phase": "Succeeded", "containerStatuses": [container({"terminated": {"exitCode": 0, "reason": "Completed"}})]}, "Completed"),
        ({"phase": "Pending", "initContainerStatuses": [container({"running": {}}, name="i")]}, "Init:0/2"),
        ({"phase": "Pending", "initContainerStatuses": [container({"terminated": {"exitCode": 2, "reason": "Error"}}, name="i")]}, "Init:Error"),
        ({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}, "SchedulingGated"),
    ],
)  # fmt: skip
def test_the_status_of_a_pod_is_its_most_telling_word(status: Object, expected: str) -> None:
    spec = {"containers": [{"name": "c"}], "initContainers": [{"name": "i"}, {"name": "j"}]}
    assert cells("Pod", {"spec": spec, "status": status})["Status"] == expected


def test_a_pod_being_deleted_is_terminating() -> None:
    pod = {"metadata": {**META, "deletionTimestamp": "x"}, "spec": {}, "status": {"phase": "Running"}}
    assert cells("Pod", pod)["Status"] == "Terminating"


def test_a_pod_row_is_complete() -> None:
    restarted = {"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T11:57:00Z"}}
    statuses = [container({"running": {}}, ready=True, restartCount=2, lastState=restarted)]
    pod = {
        "spec": {"containers": [{"name": "c"}, {"name": "d"}], "nodeName": "n"},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": statuses},
    }
    assert cells("Pod", pod) == {
        "Name": "x",
        "Ready": "1/2",
        "Status": "Running",
        "Restarts": "2 (3m ago)",
        "Age": "5m3s",
        "IP": "10.0.0.1",
        "Node": "n",
        "Nominated Node": "<none>",
        "Readiness Gates": "<none>",
    }


@pytest.mark.parametrize(
    ("group", "kind", "obj", "expected"),
    [
        ("", "Service", {"spec": {"type": "NodePort", "clusterIP": "10.0.0.1", "ports": [{"port": 80, "nodePort": 3}], "selector": {"a": "b"}}},
         {"Name": "x", "Type": "NodePort", "Cluster-IP": "10.0.0.1", "External-IP": "<none>", "Port(s)": "80:3/TCP", "Age": "5m3s", "Selector": "a=b"}),
        ("", "Secret", {"type": "Opaque", "data": {"a": "", "b": ""}}, {"Name": "x", "Type": "Opaque", "Data": 2, "Age": "5m3s"}),
        ("", "ConfigMap", {"data": {"a": ""}, "binaryData": {"b": ""}}, {"Name": "x", "Data": 2, "Age": "5m3s"}),
        ("", "Namespace", {"status": {"phase": "Active"}}, {"Name": "x", "Status": "Active", "Age": "5m3s"}),
        ("", "Endpoints", {"subsets": [{"addresses": [{"ip": str(i)} for i in range(5)], "ports": [{"port": 1}]}]},
         {"Name": "x", "Endpoints": "0:1,1:1,2:1 + 2 more...", "Age": "5m3s"}),
        ("coordination.k8s.io", "Lease", {"spec": {"holderIdentity": "me"}}, {"Name": "x", "Holder": "me", "Age": "5m3s"}),
        ("", "Event", {"type": "Normal", "reason": "R", "involvedObject": {"kind": "Pod", "name": "p"}, "message": "m\n", "lastTimestamp": "2026-01-01T11:59:30Z", "firstTimestamp": "2026-01-01T11:59:00Z", "count": 3, "source": {"component": "c", "host": "h"}},
         {"Last Seen": "30s", "Type": "Normal", "Reason": "R", "Object": "pod/p", "Subobject": "", "Source": "c, h", "Message": "m", "First Seen": "60s", "Count": "3", "Name": "x"}),
        ("batch", "Job", {"spec": {"completions": 3}, "status": {"succeeded": 1, "startTime": "2026-01-01T11:55:00Z", "conditions": [{"type": "Suspended", "status": "True"}]}},
         {"Name": "x", "Status": "Suspended", "Completions": "1/3", "Duration": "5m", "Age": "5m3s", "Containers": "<none>", "Images": "<none>", "Selector": "<none>"}),
        ("apps", "Deployment", {"spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "k", "operator": "In", "values": ["2", "1"]}]}, "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}, "status": {"readyReplicas": 1, "updatedReplicas": 2}},
         {"Name": "x", "Ready": "1/2", "Up-to-date": 2, "Available": 0, "Age": "5m3s", "Containers": "c", "Images": "i", "Selector": "a=b,k in (1,2)"}),
        ("", "PersistentVolumeClaim", {"spec": {"volumeName": "v", "storageClassName": "s", "volumeMode": "Filesystem"}, "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"]}},
         {"Name": "x", "Status": "Bound", "Volume": "v", "Capacity": "1Gi", "Access Modes": "RWO,RWX", "StorageClass": "s", "VolumeAttributesClass": "<unset>", "Age": "5m3s", "VolumeMode": "Filesystem"}),
        ("", "ResourceQuota", {}, {"Name": "x", "Age": "5m3s"}),
    ],
)  # fmt: skip
def test_built_in_kinds_have_kubectls_columns(group: str, kind: str, obj: Object, expected: Object) -> None:
    assert cells(kind, obj, group) == expected


def test_a_custom_resource_has_the_columns_of_its_crd() -> None:
    columns = [
        {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
        {"name": "Step", "type": "integer", "jsonPath": ".status.step"},
        {"name": "Loss", "type": "number", "jsonPath": ".status.loss", "format": "float"},
        {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status', "priority": 1},
        {"name": "Since", "type": "date", "jsonPath": ".status.since"},
        {"name": "Done", "type": "boolean", "jsonPath": ".status.done"},
        {"name": "Missing", "type": "string", "jsonPath": ".status.nothing.here"},
    ]
    status = {
        "phase": "Running",
        "step": 3.0,
        "loss": 1,
        "since": "2026-01-01T11:59:00Z",
        "done": False,
        "conditions": [{"type": "Other", "status": "False"}, {"type": "Ready", "status": "True"}],
    }
    assert cells("Thing", {"status": status}, "x.dev", columns) == {
        "Name": "x",
        "Phase": "Running",
        "Step": 3,
        "Loss": 1.0,
        "Ready": "True",
        "Since": "60s",
        "Done": False,
        "Missing": None,
    }
    assert cells("Thing", {}, "x.dev", []) == {"Name": "x", "Age": "5m3s"}


def test_a_row_carries_what_of_its_object_was_asked_for() -> None:
    resource = SimpleNamespace(group="", kind="ResourceQuota", printer_columns=None)
    obj = {"metadata": META, "spec": {"hard": {}}}
    attached = {
        include: to_table(resource, [obj], NOW, include_object=include)["rows"][0].get("object")
        for include in ("Metadata", "Object", "None")
    }
    assert attached == {
        "Metadata": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": META},
        "Object": obj,
        "None": None,
    }


DOC = {"a": {"b.c": [1, 2, 3]}, "l": [{"t": "x", "n": 1, "v": "one"}, {"t": "y", "n": 2, "v": "two"}]}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (".a['b.c'][0]", [1]),
        (r".a.b\.c[-1]", [3]),
        (".a['b.c'][1:]", [2, 3]),
        ("{.l[*].v}", ["one", "two"]),
        (".l[?(@.t=='y')].v", ["two"]),
        ('.l[?(@.n > 1)].v', ["two"]),
        (".l[?(@.missing)].v", []),
        ("..v", ["one", "two"]),
        ("$.a.nothing", []),
        (".l[9].v", []),
    ],
)  # fmt: skip
def test_json_paths_lead_to_values(path: str, found: list[Any]) -> None:
    assert find(path, DOC) == found


def test_a_json_path_outside_of_the_subset_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot read"):
        find(".a[b", DOC)
