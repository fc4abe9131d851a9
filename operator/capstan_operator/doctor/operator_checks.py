"""The operator: whether it runs, leads, may do what it must, and is of one version."""

from capstan_operator.cluster.kinds import LEASE_NAME
from capstan_operator.decide.times import seconds_since_1970
from capstan_operator.doctor.facts import Account, Document, Facts, Unread, at, name_of
from capstan_operator.doctor.finding import Area, Finding, count, listed

NAME = "capstan-operator"
"""Value of app.kubernetes.io/name on its Deployment's pods, and of the container's name but for that."""


def check_operator(facts: Facts) -> list[Finding]:
    area = Area("Operator")
    _check_deployment(area, facts)
    _check_versions(area, facts)
    _check_lease(area, facts)
    _check_rights(area, facts)
    return area.findings


def _check_deployment(area: Area, facts: Facts) -> None:
    found = facts.deployments
    if isinstance(found, Unread):
        area.skip("Deployment", found)
    elif not found:
        area.warn(
            "Deployment",
            f"no Deployment has pods labelled app.kubernetes.io/name={NAME}",
            "helm install the chart; if the operator runs outside of the cluster, this is as it should be",
        )
    else:
        for one in found:
            _check_replicas(area, one)


def _check_replicas(area: Area, deployment: Document) -> None:
    name, wanted = name_of(deployment), at(deployment, "spec", "replicas", default=1)
    ready, updated = (at(deployment, "status", field, default=0) for field in ("readyReplicas", "updatedReplicas"))
    if wanted == 0:
        area.fail("Deployment", f"{name} is scaled to 0", f"kubectl -n {_namespace(deployment)} scale --replicas=2")
    elif ready == 0:
        area.fail(
            "Deployment",
            f"{name} has no ready pod of {wanted}",
            f"kubectl -n {_namespace(deployment)} describe pods; its /readyz says what it waits for",
        )
    elif ready < wanted or updated < wanted:
        area.warn(
            "Deployment",
            f"{name} has {ready} of {count(wanted, 'pod')} ready, {updated} of the newest template",
            f"kubectl -n {_namespace(deployment)} rollout status deployment {deployment['metadata']['name']}",
        )
    else:
        area.ok("Deployment", f"{name} has {ready} of {count(wanted, 'pod')} ready")


def _namespace(document: Document) -> str:
    return str(document["metadata"]["namespace"])


def _check_versions(area: Area, facts: Facts) -> None:
    if isinstance(facts.operator_pods, Unread):
        area.skip("versions", facts.operator_pods)
        return
    images = sorted({at(pod, "spec", "containers", 0, "image", default="?") for pod in facts.operator_pods})
    if not images:
        return  # said by the Deployment
    if len(images) > 1:
        area.warn(
            "versions",
            f"replicas run {' and '.join(images)}: whichever leads decides",
            "wait for the rollout to end; if it stands still, see why its pods do not get ready",
        )
        return
    version = images[0].partition("@")[0].rpartition(":")[2]
    if version != facts.client_version and version[:1].isdigit():
        area.warn(
            "versions",
            f"the operator is {version}, this command {facts.client_version}: it looks for what its own version needs",
            f"use capstan {version} for this cluster",
        )
    else:
        area.ok("versions", f"{count(len(facts.operator_pods), 'replica')} of {images[0]}")


def _check_lease(area: Area, facts: Facts) -> None:
    if isinstance(facts.leases, Unread):
        area.skip("leader", facts.leases)
        return
    fresh = [one for one in facts.leases if _is_fresh(one, facts.now)]
    if len(fresh) > 1:
        area.warn(
            "leader",
            f"{count(len(fresh), 'operator')} lead: {listed(f'{_holder(one)} in {_namespace(one)}' for one in fresh)}",
            "unless each has its own watchNamespace, remove all but one: they undo each other's work",
        )
    elif fresh:
        seconds = max(0.0, facts.now - seconds_since_1970(fresh[0]["spec"]["renewTime"]))
        area.ok(
            "leader", f"{_holder(fresh[0])} leads; it renewed its lease in {_namespace(fresh[0])} {seconds:.0f} s ago"
        )
    elif facts.leases:
        one = facts.leases[0]
        since = at(one, "spec", "renewTime", default="")
        told = f"last renewed {facts.now - seconds_since_1970(since):.0f} s ago" if since else "never renewed"
        area.fail(
            "leader",
            f"nobody leads: lease {name_of(one)} was {told} by {_holder(one) or 'nobody'}",
            "see the logs of the operator's pods: they say why none takes it",
        )
    else:
        area.fail("leader", f"there is no lease {LEASE_NAME}: no operator has ever led", "helm install the chart")


def _holder(lease: Document) -> str:
    return str(at(lease, "spec", "holderIdentity", default=""))


def _is_fresh(lease: Document, now: float) -> bool:
    renewed, duration = at(lease, "spec", "renewTime"), at(lease, "spec", "leaseDurationSeconds", default=15)
    return bool(_holder(lease) and renewed) and now - seconds_since_1970(renewed) <= duration


def _check_rights(area: Area, facts: Facts) -> None:
    if isinstance(facts.accounts, Unread):
        area.skip("rights", facts.accounts)
        return
    for account in facts.accounts:
        _check_account(area, account)


def _check_account(area: Area, account: Account) -> None:
    if isinstance(account.access, Unread):
        area.skip("rights", account.access)
        return
    missing = [one for one in account.access if not one.is_allowed]
    if not missing:
        area.ok("rights", f"{account.name} may do all {len(account.access)} things that the operator does")
        return
    for one in missing:
        where = f"in namespace {one.namespace}" if one.namespace else "in all namespaces"
        area.fail(
            "rights",
            f"{account.name} may not {one.verb} {one.resource} {where}. {one.why}",
            "helm upgrade the chart of this version, with rbac.create; its files/rights.yaml has the rules",
        )
