"""Where pods run and what they keep: nodes, GPUs, storage."""

from collections import Counter

from capstan_operator.build.pod_parts import GPU
from capstan_operator.doctor.facts import Document, Facts, Unread, at, is_met, name_of
from capstan_operator.doctor.finding import Area, Finding, count, listed

MIG = "nvidia.com/mig-"
GPU_PRESENT = "nvidia.com/gpu.present"
"""Label that NVIDIA's feature discovery puts on a node."""
IS_DEFAULT = "storageclass.kubernetes.io/is-default-class"
MANY = "ReadWriteMany"
SHARED_PROVISIONERS = (
    "efs.csi.aws.com",
    "fsx.csi.aws.com",
    "file.csi.azure.com",
    "filestore.csi.storage.gke.io",
    "nfs.csi.k8s.io",
    "cephfs.csi.ceph.com",
    "driver.longhorn.io",
    "csi.weka.io",
    "lustre.csi.storage.gke.io",
    "local-node/folder",
)
"""Whose own documents say that they give ReadWriteMany; a prefix such as rook-ceph. may stand before them."""


def check_nodes(facts: Facts) -> list[Finding]:
    area = Area("Nodes")
    if isinstance(facts.nodes, Unread):
        area.skip("nodes", facts.nodes)
        return area.findings
    ready = [one for one in facts.nodes if is_met(one, "Ready") and not at(one, "spec", "unschedulable", default=False)]
    others = [name_of(one) for one in facts.nodes if one not in ready]
    if not ready:
        area.fail("nodes", f"none of {count(len(facts.nodes), 'node')} takes pods", "kubectl describe nodes says why")
    elif others:
        area.warn(
            "nodes", f"{len(ready)} of {len(facts.nodes)} take pods; not {listed(others)}", "kubectl describe nodes"
        )
    else:
        area.ok("nodes", f"{count(len(ready), 'node')} ready")
    _check_gpus(area, facts, facts.nodes)
    return area.findings


def _check_gpus(area: Area, facts: Facts, nodes: list[Document]) -> None:
    offered = Counter[str]()
    for node in nodes:
        for name, amount in at(node, "status", "allocatable", default={}).items():
            if name == GPU or name.startswith(MIG):
                offered[name] += int(amount)
    silent = [
        name_of(node)
        for node in nodes
        if at(node, "metadata", "labels", GPU_PRESENT) == "true"
        and not any(name == GPU or name.startswith(MIG) for name in at(node, "status", "capacity", default={}))
    ]
    lost = [
        name_of(node)
        for node in nodes
        if int(at(node, "status", "allocatable", GPU, default=0)) < int(at(node, "status", "capacity", GPU, default=0))
    ]
    asking = [name_of(one) for one in facts.objects() if _gpus_of(one) and not _has_ended(one)]
    told = ", ".join(f"{amount} {name}" for name, amount in sorted(offered.items()) if amount)
    if silent:
        area.fail(
            "GPUs",
            f"of {listed(silent)} NVIDIA's feature discovery says that there are GPUs, and none is offered",
            "install NVIDIA's device plugin or GPU operator, and see its pods there",
        )
    elif lost:
        area.warn(
            "GPUs",
            f"{told}; {listed(lost)} offers fewer than it has",
            "see the log of the device plugin there: one is sick",
        )
    elif asking and not offered[GPU]:
        mig = "; MIG devices are asked for through podPatch" if told else ""
        area.fail(
            "GPUs",
            f"{listed(asking)} ask{'s' if len(asking) == 1 else ''} for {GPU}, and no node offers any{mig}",
            "add nodes with GPUs and NVIDIA's device plugin, or set gpus: 0",
        )
    else:
        area.ok("GPUs", f"{told} allocatable" if told else "none, and nothing asks for one")


def _gpus_of(document: Document) -> int:
    spec = document.get("spec", {})
    return int(
        at(spec, "gpus", default=0) or at(spec, "workers", "gpus", default=0) or at(spec, "pods", "gpus", default=0)
    )


def _has_ended(document: Document) -> bool:
    return at(document, "status", "phase", default="") in ("Succeeded", "Failed", "Invalid")


def check_storage(facts: Facts) -> list[Finding]:
    area = Area("Storage")
    _check_classes(area, facts)
    _check_claims(area, facts)
    return area.findings


def _check_classes(area: Area, facts: Facts) -> None:
    classes = facts.storage_classes
    if isinstance(classes, Unread):
        area.skip("StorageClasses", classes)
        return
    default = [name_of(one) for one in classes if at(one, "metadata", "annotations", IS_DEFAULT) == "true"]
    if not default:
        area.warn(
            "default",
            f"no StorageClass of {len(classes)} is the default: a claim that names none is bound to nothing",
            f"annotate one with {IS_DEFAULT}=true, or name one in each claim",
        )
    else:
        area.ok("default", f"StorageClass {listed(default)}")
    claims = [] if isinstance(facts.claims, Unread) else facts.claims
    proven = {
        at(one, "spec", "storageClassName", default="")
        for one in claims
        if MANY in at(one, "spec", "accessModes", default=[]) and at(one, "status", "phase") == "Bound"
    }
    known = {name_of(one) for one in classes if _is_shared(str(one.get("provisioner", "")))}
    if shared := sorted((proven | known) - {""}):
        area.ok(MANY, f"StorageClass {listed(shared)}")
    else:
        area.warn(
            MANY,
            "no StorageClass is known to give it, and jobs of several workers keep checkpoints on one claim",
            "use a class for shared file systems, or checkpoint.store.object: a bucket",
        )


def _is_shared(provisioner: str) -> bool:
    return any(provisioner == one or provisioner.endswith(f".{one}") for one in SHARED_PROVISIONERS)


def _check_claims(area: Area, facts: Facts) -> None:
    if isinstance(facts.claims, Unread):
        area.skip("claims", facts.claims)
        return
    known = {name_of(one): at(one, "status", "phase", default="Pending") for one in facts.claims}
    named = sorted(
        {(f"{one['metadata']['namespace']}/{claim}") for one in facts.objects() for claim in _claims_of(one)}
    )
    lacking = [name for name in named if name not in known]
    unbound = [f"{name} ({known[name]})" for name in named if known.get(name, "Bound") != "Bound"]
    if lacking:
        area.fail(
            "claims", f"{listed(lacking)} {'is' if len(lacking) == 1 else 'are'} named and not there", "create it"
        )
    if unbound:
        area.warn(
            "claims",
            f"{listed(unbound)} {'is' if len(unbound) == 1 else 'are'} not bound",
            "kubectl describe pvc says why",
        )
    if not lacking and not unbound:
        area.ok("claims", f"{count(len(named), 'claim')} named by our objects, all bound" if named else "none is named")


def _claims_of(document: Document) -> set[str]:
    """Of every store that the spec names, at whatever depth."""
    if _has_ended(document):
        return set()
    return set(_walk(document.get("spec", {})))


def _walk(node: object) -> list[str]:
    if isinstance(node, list):
        return [name for child in node for name in _walk(child)]
    if not isinstance(node, dict):
        return []
    own = [name] if isinstance(name := at(node, "store", "claim", "name"), str) else []
    return own + [name for child in node.values() for name in _walk(child)]
