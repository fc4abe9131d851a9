"""What is asked for: whether namespaces let our pods in and the operator to them, and how our objects are."""

from collections.abc import Callable, Iterable
from typing import Any

from capstan_operator.api.managed_by import is_ours
from capstan_operator.api.meta import LABEL_MANAGED_BY, MANAGED_BY
from capstan_operator.decide.times import seconds_since_1970
from capstan_operator.doctor.facts import Document, Facts, Seen, Unread, at, condition, name_of
from capstan_operator.doctor.finding import Area, Finding, listed
from capstan_runtime.contract.env import SERVE_PORT, SUPERVISOR_PORT

ENFORCE = "pod-security.kubernetes.io/enforce"
ALLOWS_HOST_PATH = "--allow-host-path"
UNSEEN_SECONDS = 60.0
"""An operator that leads writes the first status within a second or two, even of thousands of jobs."""


def check_namespaces(facts: Facts) -> list[Finding]:
    area = Area("Namespaces")
    _check_presence(area, facts)
    _check_pod_security(area, facts)
    _check_policies(area, facts)
    return area.findings


def _check_presence(area: Area, facts: Facts) -> None:
    if facts.namespace is None or isinstance(facts.namespaces, Unread):
        return
    if facts.namespace not in (one["metadata"]["name"] for one in facts.namespaces):
        area.fail(
            "presence",
            f"there is no namespace {facts.namespace}: nothing was looked at in it",
            "give --namespace one that kubectl get namespaces lists, or leave it out",
        )


def _check_pod_security(area: Area, facts: Facts) -> None:
    if isinstance(facts.namespaces, Unread):
        area.skip("pod security", facts.namespaces)
        return
    busy = facts.busy_namespaces()
    levels = {one["metadata"]["name"]: at(one, "metadata", "labels", ENFORCE, default="") for one in facts.namespaces}
    strict = [name for name in busy if levels.get(name) in ("baseline", "restricted")]
    refused = [
        name_of(one)
        for one in facts.objects()
        if one["metadata"]["namespace"] in strict and _has_host_path(one["spec"])
    ]
    if refused:
        area.fail(
            "pod security",
            f"{listed(refused)} keep{'s' if len(refused) == 1 else ''} data in a hostPath, which the namespace's level "
            f"{' or '.join(sorted({levels[name.split('/')[0]] for name in refused}))} refuses",
            "use checkpoint.store.claim or object",
        )
    elif strict:
        told = listed(f"{name} ({levels[name]})" for name in strict)
        area.ok("pod security", f"{told}: our pods are made for it, unless a podPatch is not")
    else:
        area.ok("pod security", "no level is enforced where our objects are")


def _has_host_path(node: Any) -> bool:
    if isinstance(node, list):
        return any(map(_has_host_path, node))
    if not isinstance(node, dict):
        return False
    return node.get("hostPath") is not None or any(map(_has_host_path, node.values()))


def _check_policies(area: Area, facts: Facts) -> None:
    if isinstance(facts.policies, Unread):
        area.skip("network policies", facts.policies)
        return
    if not facts.policies:
        area.ok("network policies", "none")
        return
    operator = _peer_of(facts)
    if operator is None or isinstance(facts.pods, Unread):
        area.skip("network policies", Unread("where the operator runs, or which pods are ours, cannot be told"))
        return
    shut = sorted(
        {
            f"{name_of(pod)} ({listed(name_of(one) for one in chosen)})"
            for pod in facts.pods
            if (chosen := _selecting(facts.policies, pod, "Ingress"))
            and not any(
                _admits(rule, operator, _port_of(pod)) for one in chosen for rule in one["spec"].get("ingress") or []
            )
        }
    )
    if shut:
        area.warn(
            "network policies",
            f"nothing lets the operator in to {listed(shut)}: it hears of them only when they end",
            f"allow TCP {SUPERVISOR_PORT} and {SERVE_PORT} from namespace {operator[0]} to pods labelled "
            f"{LABEL_MANAGED_BY}={MANAGED_BY}",
        )
    else:
        area.ok("network policies", f"{len(facts.policies)}; none keeps the operator from our pods")


def _peer_of(facts: Facts) -> tuple[str, dict[str, str], dict[str, str]] | None:
    """Namespace of the operator, labels of that, and labels of its pods."""
    if isinstance(facts.operator_pods, Unread) or isinstance(facts.namespaces, Unread) or not facts.operator_pods:
        return None
    metadata = facts.operator_pods[0]["metadata"]
    labels = {one["metadata"]["name"]: at(one, "metadata", "labels", default={}) for one in facts.namespaces}
    return metadata["namespace"], labels.get(metadata["namespace"], {}), metadata.get("labels", {})


def _port_of(pod: Document) -> int:
    return SERVE_PORT if at(pod, "metadata", "labels", "capstan.dev/service") else SUPERVISOR_PORT


def _selecting(policies: list[Document], pod: Document, kind: str) -> list[Document]:
    metadata = pod["metadata"]
    return [
        one
        for one in policies
        if one["metadata"]["namespace"] == metadata["namespace"]
        and kind in one["spec"].get("policyTypes", ["Ingress"])
        and selects(one["spec"].get("podSelector", {}), metadata.get("labels", {}))
    ]


def _admits(rule: Document, peer: tuple[str, dict[str, str], dict[str, str]], port: int) -> bool:
    ports = rule.get("ports") or []
    if ports and not any(_is_port(one, port) for one in ports):
        return False
    return not rule.get("from") or any(_is_peer(one, peer) for one in rule["from"])


def _is_port(entry: Document, port: int) -> bool:
    if entry.get("protocol", "TCP") != "TCP":
        return False
    first = entry.get("port")
    # A name is that of a port of the pod: ours have the two we mean.
    return not isinstance(first, int) or first <= port <= entry.get("endPort", first)


def _is_peer(entry: Document, peer: tuple[str, dict[str, str], dict[str, str]]) -> bool:
    _, namespace_labels, pod_labels = peer
    if "ipBlock" in entry:
        return True  # an address says nothing of who has it: taken for enough
    if "namespaceSelector" not in entry:
        return False  # pods of the same namespace alone
    return selects(entry["namespaceSelector"], namespace_labels) and selects(entry.get("podSelector") or {}, pod_labels)


def selects(selector: Document, labels: dict[str, str]) -> bool:
    """Whether a label selector of Kubernetes chooses something with `labels`; an empty one chooses everything."""
    tests: dict[str, Callable[[str, list[str]], bool]] = {
        "In": lambda key, values: labels.get(key) in values,
        "NotIn": lambda key, values: labels.get(key) not in values,
        "Exists": lambda key, _: key in labels,
        "DoesNotExist": lambda key, _: key not in labels,
    }
    wanted = selector.get("matchLabels") or {}
    expressions = selector.get("matchExpressions") or []
    return wanted.items() <= labels.items() and all(
        tests[one["operator"]](one["key"], one.get("values") or []) for one in expressions
    )


def check_objects(facts: Facts) -> list[Finding]:
    area = Area("Objects")
    _check_kind(area, facts, "TrainingJobs", facts.jobs, _job_trouble)
    _check_kind(area, facts, "InferenceServices", facts.services, _service_trouble)
    _check_kind(area, facts, "Benchmarks", facts.benchmarks, _benchmark_trouble)
    _check_host_paths(area, facts)
    return area.findings


def _check_host_paths(area: Area, facts: Facts) -> None:
    """Nothing is said where the operator allows them, or nobody has one: that is how it should be."""
    if isinstance(facts.operator_pods, Unread) or not facts.operator_pods:
        return
    container = at(facts.operator_pods[0], "spec", "containers", 0)
    if any(ALLOWS_HOST_PATH in at(container, field, default=[]) for field in ("command", "args")):
        return
    named = [
        name_of(one) for one in facts.objects() if not at(one, "status", "finishedAt") and _has_host_path(one["spec"])
    ]
    if named:
        area.warn(
            "hostPath",
            f"{listed(named)} name{'s' if len(named) == 1 else ''} folders of the nodes, which the operator does not "
            "allow: what has begun goes on, new ones are refused",
            "use a claim or a bucket, or set operator.allowHostPath",
        )


def _check_kind(area: Area, facts: Facts, kind: str, seen: Seen, trouble: Callable[[Document], str | None]) -> None:
    if isinstance(seen, Unread):
        area.skip(kind, seen)
        return
    unseen = [name_of(one) for one in seen if _is_unseen(one, facts.now)]
    if unseen:
        area.fail(
            kind,
            f"{listed(unseen)} {'has' if len(unseen) == 1 else 'have'} waited for the operator for over "
            f"{UNSEEN_SECONDS:.0f} s",
            "see whether it leads and watches that namespace",
        )
    troubled = [(name_of(one), said) for one in seen if (said := trouble(one))]
    if troubled:
        by_trouble = {said: [name for name, other in troubled if other == said] for _, said in troubled}
        told = "; ".join(f"{len(names)} {said}: {listed(names)}" for said, names in sorted(by_trouble.items()))
        area.warn(kind, f"{told}, of {len(seen)}", "kubectl describe says why, and docs/troubleshooting.md what to do")
    elif not unseen:
        area.ok(kind, f"{len(seen)}{_phases(seen)}")


def _phases(seen: Iterable[Document]) -> str:
    found = [str(phase) for one in seen if (phase := at(one, "status", "phase"))]
    told = ", ".join(f"{found.count(phase)} {phase}" for phase in sorted(set(found)))
    return f": {told}" if told else ""


def _is_unseen(document: Document, now: float) -> bool:
    metadata = document["metadata"]
    if not is_ours(at(document, "spec", "managedBy")) or "deletionTimestamp" in metadata:
        return False
    age = now - seconds_since_1970(metadata["creationTimestamp"])
    return age > UNSEEN_SECONDS and at(document, "status", "observedGeneration") is None


def _job_trouble(job: Document) -> str | None:
    phase = at(job, "status", "phase", default="")
    if phase in ("Failed", "Invalid"):
        return str(phase)
    stands = condition(job, "Progressing")
    is_at_rest = phase in ("", "Succeeded", "Suspended")
    return "Stalled" if stands is not None and stands.get("status") == "False" and not is_at_rest else None


def _service_trouble(service: Document) -> str | None:
    for kind, said in (("Accepted", "Invalid"), ("Serving", "not Serving")):
        found = condition(service, kind)
        if found is not None and found.get("status") == "False":
            return said
    rolled = condition(service, "RolledBack")
    return "RolledBack" if rolled is not None and rolled.get("status") == "True" else None


def _benchmark_trouble(benchmark: Document) -> str | None:
    phase = at(benchmark, "status", "phase", default="")
    return str(phase) if phase in ("Failed", "Invalid") else None
