"""What follows from what is known of a cluster: every rule, without a cluster."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from capstan_operator.crdgen import all_crds
from capstan_operator.doctor.command import as_json, as_text, examine
from capstan_operator.doctor.facts import Access, Account, Facts, Server, Unread
from capstan_operator.doctor.workload_checks import selects

NOW = 1_800_000_000.0
Document = dict[str, Any]


def moment(ago_seconds: float) -> str:
    return datetime.fromtimestamp(NOW - ago_seconds, UTC).isoformat().replace("+00:00", "Z")


def crd(document: Document) -> Document:
    told = [{"type": kind, "status": "True"} for kind in ("Established", "NamesAccepted")]
    return copy.deepcopy(document) | {"status": {"conditions": told}}


def lease(namespace: str = "capstan-system", ago_seconds: float = 2.0, holder: str = "one") -> Document:
    spec = {"holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": moment(ago_seconds)}
    return {"metadata": {"namespace": namespace, "name": "capstan-operator"}, "spec": spec}


def deployment(**status: int) -> Document:
    return {
        "metadata": {"namespace": "capstan-system", "name": "capstan"},
        "spec": {"replicas": 2},
        "status": {"readyReplicas": 2, "updatedReplicas": 2} | status,
    }


def operator_pod(image: str = "capstan/operator:0.2.0", *args: str) -> Document:
    labels = {"app.kubernetes.io/name": "capstan-operator"}
    metadata = {"namespace": "capstan-system", "name": "capstan-1", "labels": labels}
    return {"metadata": metadata, "spec": {"containers": [{"image": image, "args": list(args)}]}}


STARTED_WITH_COMMAND: Document = operator_pod() | {
    "spec": {"containers": [{"image": "capstan/operator:0.2.0", "command": ["operator", "run", "--allow-host-path"]}]}
}
"""As the embedded cluster does."""


def node(name: str = "a", *, ready: str = "True", labels: Document | None = None, **offered: str) -> Document:
    resources = {f"nvidia.com/{kind}".replace("_", "-"): number for kind, number in offered.items()}
    status = {"capacity": resources, "allocatable": resources, "conditions": [{"type": "Ready", "status": ready}]}
    return {"metadata": {"name": name, "labels": labels or {}}, "spec": {}, "status": status}


def storage_class(name: str, provisioner: str, *, is_default: bool = False) -> Document:
    annotations = {"storageclass.kubernetes.io/is-default-class": "true"} if is_default else {}
    return {"metadata": {"name": name, "annotations": annotations}, "provisioner": provisioner}


def ours(name: str, spec: Document | None = None, ago_seconds: float = 10.0, **status: Any) -> Document:
    metadata = {"namespace": "team", "name": name, "creationTimestamp": moment(ago_seconds)}
    return {"metadata": metadata, "spec": spec or {}, "status": {"observedGeneration": 1} | status}


IN_FOLDER: Document = {"checkpoint": {"store": {"hostPath": {"path": "/data"}}}}


def queued(name: str, phase: str = "Running") -> Document:
    job = ours(name, phase=phase)
    job["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "team-a"}
    return job


def said(kind: str, status: str) -> list[Document]:
    return [{"type": kind, "status": status}]


def pod(**labels: str) -> Document:
    found = {
        "app.kubernetes.io/managed-by": "capstan",
        **{f"capstan.dev/{key}": value for key, value in labels.items()},
    }
    return {"metadata": {"namespace": "team", "name": "train-worker-0", "labels": found}}


def policy(*ingress: Document, selector: Document | None = None) -> Document:
    spec = {"podSelector": selector or {}, "policyTypes": ["Ingress"], "ingress": list(ingress)}
    return {"metadata": {"namespace": "team", "name": "closed"}, "spec": spec}


def webhook(resource: str = "pods", policy: str = "Fail", group: str = "") -> Document:
    rule = {"apiGroups": [group], "resources": [resource], "operations": ["CREATE"]}
    service = {"namespace": "guard", "name": "guard"}
    hook = {"name": "guard.example.com", "failurePolicy": policy, "rules": [rule], "clientConfig": {"service": service}}
    return {"metadata": {"name": "guard"}, "webhooks": [hook]}


def slice_of(service: str, *, ready: bool) -> Document:
    labels = {"kubernetes.io/service-name": service}
    return {"metadata": {"namespace": "guard", "labels": labels}, "endpoints": [{"conditions": {"ready": ready}}]}


def claim(name: str, phase: str, modes: tuple[str, ...] = ("ReadWriteOnce",), of: str = "slow") -> Document:
    spec = {"accessModes": list(modes), "storageClassName": of}
    return {"metadata": {"namespace": "team", "name": name}, "spec": spec, "status": {"phase": phase}}


def namespace(name: str, **labels: str) -> Document:
    return {"metadata": {"name": name, "labels": labels}}


CRDS = {document["metadata"]["name"]: document for document in all_crds()}
STORE = {"checkpoint": {"store": {"claim": {"name": "kept"}}}}
HEALTHY = Facts(
    server=Server("https://api", "v1.34.1", 34, 0.0),
    now=NOW,
    namespace=None,
    client_version="0.2.0",
    crds={name: crd(document) for name, document in CRDS.items()},
    wanted_crds=CRDS,
    groups=frozenset({"ray.io/v1"}),
    accounts=[Account("system:serviceaccount:capstan-system:capstan", [Access("get", "pods", None, True, "Workers.")])],
    deployments=[deployment()],
    operator_pods=[operator_pod(), operator_pod()],
    leases=[lease()],
    nodes=[node(gpu="8")],
    storage_classes=[storage_class("fast", "nfs.csi.k8s.io", is_default=True)],
    claims=[claim("kept", "Bound")],
    webhooks=[],
    endpoint_slices=[],
    namespaces=[namespace("team"), namespace("capstan-system", **{"kubernetes.io/metadata.name": "capstan-system"})],
    policies=[],
    jobs=[ours("train", STORE, phase="Running")],
    services=[],
    benchmarks=[],
    pods=[pod(job="train")],
)


def lacking(name: str, field: str) -> dict[str, Document | None]:
    """The definitions, of which one is of before a field of spec."""
    found = {each: crd(document) for each, document in CRDS.items()}
    schema = found[name]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    del schema["properties"]["spec"]["properties"][field]
    return {**found}


def more_than(name: str, field: str) -> dict[str, Document | None]:
    found = {each: crd(document) for each, document in CRDS.items()}
    schema = found[name]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"]["properties"][field] = {"type": "string"}
    return {**found}


def test_of_a_healthy_cluster_everything_is_right() -> None:
    assert [one for one in examine(HEALTHY) if one.level != "OK"] == []


JOBS = "trainingjobs.capstan.dev"
OTHERS_ALONE = {"from": [{"podSelector": {}}]}
FROM_OPERATOR = {
    "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "capstan-system"}}}],
    "ports": [{"protocol": "TCP", "port": 8470}],
}
CASES: list[tuple[str, dict[str, Any], tuple[str, str], str]] = [
    ("an old server", {"server": Server("u", "v1.19.2", 19, 0.0)}, ("version", "FAIL"), "older than 1.20"),
    ("a server without CEL", {"server": Server("u", "v1.24.9", 24, 0.0)}, ("version", "WARN"), "has no CEL"),
    ("a fast clock", {"server": Server("u", "v1.34.1", 34, 42.0)}, ("clock", "WARN"), "42 s ahead of"),
    ("a slow clock", {"server": Server("u", "v1.34.1", 34, -42.0)}, ("clock", "WARN"), "42 s behind"),
    ("no time", {"server": Server("u", "v1.34.1", 34, None)}, ("clock", "SKIP"), "no Date"),
    ("no definition", {"crds": dict.fromkeys(CRDS)}, (JOBS, "FAIL"), "is not installed"),
    ("an unestablished one", {"crds": dict(CRDS)}, (JOBS, "FAIL"), "is not established"),
    ("an older definition", {"crds": lacking(JOBS, "recovery")}, (JOBS, "FAIL"), "it lacks spec.recovery"),
    ("a newer definition", {"crds": more_than(JOBS, "later")}, (JOBS, "WARN"), "it has spec.later"),
    ("no Deployment", {"deployments": []}, ("Deployment", "WARN"), "no Deployment"),
    ("no ready pod", {"deployments": [deployment(readyReplicas=0)]}, ("Deployment", "FAIL"), "no ready pod of 2"),
    ("one ready pod", {"deployments": [deployment(readyReplicas=1)]}, ("Deployment", "WARN"), "1 of 2 pods ready"),
    ("a rollout", {"deployments": [deployment(updatedReplicas=1)]}, ("Deployment", "WARN"), "1 of the newest template"),
    (
        "two versions",
        {"operator_pods": [operator_pod(), operator_pod("capstan/operator:0.1.0")]},
        ("versions", "WARN"),
        "run capstan/operator:0.1.0 and capstan/operator:0.2.0",
    ),
    (
        "another version than this",
        {"operator_pods": [operator_pod("registry:5000/capstan/operator:0.1.0@sha256:aa")]},
        ("versions", "WARN"),
        "the operator is 0.1.0, this command 0.2.0",
    ),
    ("no lease", {"leases": []}, ("leader", "FAIL"), "no operator has ever led"),
    ("a stale lease", {"leases": [lease(ago_seconds=60)]}, ("leader", "FAIL"), "last renewed 60 s ago by one"),
    ("a lease given back", {"leases": [lease(holder="")]}, ("leader", "FAIL"), "by nobody"),
    ("two leaders", {"leases": [lease(), lease("other")]}, ("leader", "WARN"), "2 operators lead"),
    (
        "a missing right",
        {"accounts": [Account("sa", [Access("create", "pods", None, False, "The workers.")])]},
        ("rights", "FAIL"),
        "sa may not create pods in all namespaces. The workers.",
    ),
    ("no node", {"nodes": [node(ready="False")]}, ("nodes", "FAIL"), "none of 1 node"),
    ("a broken node", {"nodes": [node(), node("b", ready="Unknown")]}, ("nodes", "WARN"), "1 of 2 take pods; not b"),
    (
        "GPUs that nobody offers",
        {"nodes": [node(labels={"nvidia.com/gpu.present": "true"})]},
        ("GPUs", "FAIL"),
        "of a NVIDIA's feature discovery says",
    ),
    (
        "a job without a GPU",
        {"nodes": [node()], "jobs": [ours("train", STORE | {"workers": {"gpus": 4}}, phase="Pending")]},
        ("GPUs", "FAIL"),
        "team/train asks for nvidia.com/gpu",
    ),
    (
        "MIG devices alone",
        {"nodes": [node(mig_1g_10gb="7")], "jobs": [ours("train", STORE | {"workers": {"gpus": 1}})]},
        ("GPUs", "FAIL"),
        "MIG devices are asked for through podPatch",
    ),
    ("MIG devices", {"nodes": [node(mig_1g_10gb="7")]}, ("GPUs", "OK"), "7 nvidia.com/mig-1g-10gb allocatable"),
    ("no default class", {"storage_classes": [storage_class("a", "nfs.csi.k8s.io")]}, ("default", "WARN"), "of 1"),
    (
        "no shared class",
        {"storage_classes": [storage_class("a", "ebs.csi.aws.com", is_default=True)]},
        ("ReadWriteMany", "WARN"),
        "no StorageClass is known",
    ),
    (
        "a class that has proven itself",
        {
            "storage_classes": [storage_class("odd", "example.com/odd", is_default=True)],
            "claims": [claim("kept", "Bound", ("ReadWriteMany",), of="odd")],
        },
        ("ReadWriteMany", "OK"),
        "odd",
    ),
    ("a missing claim", {"claims": []}, ("claims", "FAIL"), "team/kept is named and not there"),
    ("a pending claim", {"claims": [claim("kept", "Pending")]}, ("claims", "WARN"), "team/kept (Pending) is not bound"),
    ("a dark webhook", {"webhooks": [webhook()]}, ("webhooks", "FAIL"), "guard (guard/guard) must be asked"),
    (
        "a webhook whose pods are not ready",
        {
            "webhooks": [webhook("trainingjobs", group="capstan.dev")],
            "endpoint_slices": [slice_of("guard", ready=False)],
        },
        ("webhooks", "FAIL"),
        "nobody answers",
    ),
    (
        "a webhook that answers",
        {"webhooks": [webhook()], "endpoint_slices": [slice_of("guard", ready=True)]},
        ("webhooks", "OK"),
        "1 webhook",
    ),
    ("a webhook that fails open", {"webhooks": [webhook(policy="Ignore")]}, ("webhooks", "OK"), "none that matches"),
    ("a webhook of others", {"webhooks": [webhook("ingresses")]}, ("webhooks", "OK"), "none that matches"),
    (
        "a hostPath where none may be",
        {
            "namespaces": [namespace("team", **{"pod-security.kubernetes.io/enforce": "restricted"})],
            "jobs": [ours("train", IN_FOLDER)],
        },
        ("pod security", "FAIL"),
        "team/train keeps data in a hostPath",
    ),
    (
        "a restricted namespace",
        {"namespaces": [namespace("team", **{"pod-security.kubernetes.io/enforce": "restricted"})]},
        ("pod security", "OK"),
        "team (restricted)",
    ),
    ("a closed namespace", {"policies": [policy()]}, ("network policies", "WARN"), "team/train-worker-0 (team/closed)"),
    ("neighbours alone", {"policies": [policy(OTHERS_ALONE)]}, ("network policies", "WARN"), "hears of them only"),
    ("a way in", {"policies": [policy(OTHERS_ALONE, FROM_OPERATOR)]}, ("network policies", "OK"), "none keeps"),
    (
        "a way in to another port",
        {"policies": [policy(FROM_OPERATOR | {"ports": [{"port": 80}]})]},
        ("network policies", "WARN"),
        "allow TCP",
    ),
    (
        "a policy of other pods",
        {"policies": [policy(selector={"matchLabels": {"app": "web"}})]},
        ("network policies", "OK"),
        "none keeps",
    ),
    (
        "a folder of the nodes as a store",
        {"jobs": [ours("train", IN_FOLDER)]},
        ("hostPath", "WARN"),
        "team/train names folders of the nodes, which the operator does not allow: what has begun goes on",
    ),
    (
        "a folder of the nodes in a podPatch",
        {
            "services": [
                ours("digits", {"podPatch": {"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/v"}}]}}})
            ]
        },
        ("hostPath", "WARN"),
        "team/digits names folders of the nodes",
    ),
    (
        "a job in a queue of a Kueue that is not there",
        {"jobs": [queued("train")]},
        ("optional kinds", "WARN"),
        "team/train is labelled kueue.x-k8s.io/queue-name, and there is no Kueue to heed it",
    ),
    (
        "a job in a queue of a Kueue of a later version",
        {"jobs": [queued("train")], "groups": frozenset({"kueue.x-k8s.io/v1beta2"})},
        ("optional kinds", "OK"),
        "Kueue",
    ),
    (
        "a job that is over, and needs no Kueue",
        {"jobs": [queued("train", phase="Succeeded")]},
        ("optional kinds", "OK"),
        "KubeRay, for backend RayService",
    ),
    (
        "a gang without its scheduler",
        {"jobs": [ours("train", {"workers": {"gang": {"volcano": {}}}}, phase="Pending")]},
        ("optional kinds", "WARN"),
        "team/train waits for PodGroups of scheduling.volcano.sh/v1beta1, which are not served",
    ),
    ("a namespace that is not there", {"namespace": "nope"}, ("presence", "FAIL"), "there is no namespace nope"),
    ("a failed job", {"jobs": [ours("train", phase="Failed")]}, ("TrainingJobs", "WARN"), "1 Failed: team/train, of 1"),
    (
        "a job that stands still",
        {"jobs": [ours("train", phase="Pending", conditions=said("Progressing", "False"))]},
        ("TrainingJobs", "WARN"),
        "1 Stalled: team/train",
    ),
    (
        "a job that rests",
        {"jobs": [ours("train", phase="Suspended", conditions=said("Progressing", "False"))]},
        ("TrainingJobs", "OK"),
        "1: 1 Suspended",
    ),
    (
        "a job that nobody sees",
        {"jobs": [ours("train", ago_seconds=90, observedGeneration=None)]},
        ("TrainingJobs", "FAIL"),
        "team/train has waited for the operator for over 60 s",
    ),
    (
        "a job of another controller",
        {"jobs": [ours("train", {"managedBy": "kueue.x-k8s.io/multikueue"}, 90, observedGeneration=None)]},
        ("TrainingJobs", "OK"),
        "1",
    ),
    (
        "a dark service",
        {"services": [ours("digits", conditions=said("Serving", "False"))]},
        ("InferenceServices", "WARN"),
        "1 not Serving: team/digits",
    ),
    ("an invalid benchmark", {"benchmarks": [ours("b", phase="Invalid")]}, ("Benchmarks", "WARN"), "1 Invalid: team/b"),
]


@pytest.mark.parametrize(
    ("changes", "expected", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_what_is_wrong_is_found_and_how_to_mend_it_said(
    changes: dict[str, Any], expected: tuple[str, str], words: str
) -> None:
    findings = examine(replace(HEALTHY, **changes))
    (found,) = [one for one in findings if one.check == expected[0]]
    assert (found.level, found.message if words in found.message or words in (found.fix or "") else words) == (
        expected[1],
        found.message,
    )
    assert (found.fix is not None) == (found.level in ("WARN", "FAIL"))


@pytest.mark.parametrize(
    "changes",
    [
        {"operator_pods": [operator_pod("capstan/operator:0.2.0", "--allow-host-path")]},
        {"operator_pods": [STARTED_WITH_COMMAND]},
        {"jobs": [ours("train", IN_FOLDER, finishedAt=moment(5))]},
    ],
    ids=["where they are allowed", "where the command allows them", "of what has ended"],
)
def test_folders_of_the_nodes_are_nothing_to_tell(changes: dict[str, Any]) -> None:
    seen = {"jobs": [ours("train", IN_FOLDER)]} | changes
    assert [one.check for one in examine(replace(HEALTHY, **seen)) if one.check == "hostPath"] == []


def test_what_may_not_be_read_is_skipped_with_the_right_that_it_needs_and_fails_nothing() -> None:
    unread = Unread("needs the right to look")
    blind = replace(
        HEALTHY,
        **{
            field: unread
            for field in Facts.__dataclass_fields__
            if field not in ("server", "now", "namespace", "client_version", "wanted_crds")
        },
    )
    findings = examine(blind)
    assert {one.level for one in findings} == {"OK", "SKIP"}
    assert {one.message for one in findings if one.level == "SKIP"} == {unread.why}
    assert [one.check for one in findings if one.level == "OK"] == ["version", "clock"]


def test_every_line_fits_a_terminal_and_every_fix_stands_below_its_finding() -> None:
    lines = list(as_text(examine(replace(HEALTHY, leases=[], nodes=[], claims=[], crds=lacking(JOBS, "recovery")))))
    assert max(map(len, lines)) <= 120
    at = next(index for index, line in enumerate(lines) if "FAIL  leader" in line)
    assert lines[at + 1].strip() == "-> helm install the chart"
    assert lines[-1] == "17 OK, 0 WARN, 4 FAIL, 0 SKIP"


def test_machines_read_the_same() -> None:
    findings = examine(replace(HEALTHY, leases=[]))
    read = json.loads(as_json(findings))
    assert read["counts"] == {"OK": 20, "WARN": 0, "FAIL": 1, "SKIP": 0}
    assert [one["check"] for one in read["findings"]] == [one.check for one in findings]
    assert set(read["findings"][0]) == {"area", "check", "level", "message", "fix"}


@pytest.mark.parametrize(
    ("selector", "is_selected"),
    [
        ({}, True),
        ({"matchLabels": {"a": "1"}}, True),
        ({"matchLabels": {"a": "2"}}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, True),
        ({"matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["1"]}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, False),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, False),
        ({"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "Exists"}]}, False),
    ],
    ids=str,
)
def test_a_selector_chooses_as_kubernetes_says(selector: Document, is_selected: bool) -> None:
    assert selects(selector, {"a": "1"}) is is_selected
