"""The API server, our definitions, and who stands between it and us."""

from collections.abc import Iterator
from typing import Any

from capstan_operator.api.meta import GROUP, VERSION
from capstan_operator.api.queueing import LABEL_QUEUE
from capstan_operator.build.gang import POD_GROUP_APIS
from capstan_operator.doctor.facts import Document, Facts, Unread, at, is_met, name_of
from capstan_operator.doctor.finding import Area, Finding, count, listed

OLDEST_MINOR, CEL_MINOR = 20, 25
"""The first that it is tested with, and the first that checks rules across fields (CEL)."""
SKEW_SECONDS = 5.0
"""A lease lasts 15 s, and certificates and tokens begin at a second; that far off nothing breaks yet."""
KUEUE = "kueue.x-k8s.io/"
"""Of any version: what Kueue is told, it reads from labels of pods."""
OPTIONAL_GROUPS = {
    "gateway.networking.k8s.io/v1": "Gateway API, for spec.gateway",
    "ray.io/v1": "KubeRay, for backend RayService",
    "monitoring.coreos.com/v1": "Prometheus Operator, for the chart's monitors and alerts",
    KUEUE: "Kueue",
    "scheduling.x-k8s.io/v1alpha1": "PodGroups of scheduler-plugins",
    "scheduling.volcano.sh/v1beta1": "PodGroups of Volcano",
}
_OURS = {"pods", "trainingjobs", "inferenceservices", "benchmarks", "deployments", "services", "secrets"}


def check_api(facts: Facts) -> list[Finding]:
    area = Area("API server")
    server = facts.server
    if server.minor < OLDEST_MINOR:
        area.fail(
            "version",
            f"{server.version} at {server.url} is older than 1.{OLDEST_MINOR}, the oldest that is tested",
            f"upgrade the cluster to 1.{OLDEST_MINOR} or newer",
        )
    elif server.minor < CEL_MINOR:
        area.warn(
            "version",
            f"{server.version} at {server.url} has no CEL: what contradicts itself in a spec is told on its status "
            "instead of being refused",
            f"upgrade the cluster to 1.{CEL_MINOR} or newer; apply the definitions with --validate=false until then",
        )
    else:
        area.ok("version", f"{server.version} at {server.url}, with CEL")
    if server.late_after_seconds is not None:
        area.fail(
            "answers",
            f"not all was answered within {server.late_after_seconds:g} s",
            "raise --timeout, or see what keeps the API server busy",
        )
    _check_clock(area, server.ahead_seconds)
    _check_optional(area, facts)
    _check_webhooks(area, facts)
    return area.findings


def _check_clock(area: Area, ahead_seconds: float | None) -> None:
    if ahead_seconds is None:
        area.skip("clock", Unread("the API server's answers have no Date"))
    elif abs(ahead_seconds) > SKEW_SECONDS:
        side = "ahead of" if ahead_seconds > 0 else "behind"
        area.warn(
            "clock",
            f"its clock is {abs(ahead_seconds):.0f} s {side} this machine's",
            "synchronise clocks (NTP) here and on the nodes: what began when, and which token is valid, is told by "
            "them",
        )
    else:
        area.ok("clock", f"agrees with this machine's within {SKEW_SECONDS:.0f} s")


def _check_optional(area: Area, facts: Facts) -> None:
    groups = facts.groups
    if isinstance(groups, Unread):
        area.skip("optional kinds", groups)
        return
    there = [what for prefix, what in OPTIONAL_GROUPS.items() if any(group.startswith(prefix) for group in groups)]
    seen = [] if isinstance(facts.jobs, Unread) else facts.jobs
    jobs = [one for one in seen if at(one, "status", "phase") not in ("Succeeded", "Failed")]
    queued = [name_of(one) for one in jobs if at(one, "metadata", "labels", LABEL_QUEUE)]
    troubled = False
    if queued and OPTIONAL_GROUPS[KUEUE] not in there:
        troubled = True
        area.warn(
            "optional kinds",
            f"{listed(queued)} {'is' if len(queued) == 1 else 'are'} labelled {LABEL_QUEUE}, and there is no Kueue to "
            "heed it: pods start at once, whatever the quota",
            f"install Kueue, or remove the label {LABEL_QUEUE}",
        )
    for kind, api in POD_GROUP_APIS.items():
        waiting = [name_of(one) for one in jobs if at(one, "spec", "workers", "gang", kind) is not None]
        if waiting and api not in groups:
            troubled = True
            area.warn(
                "optional kinds",
                f"{listed(waiting)} {'waits' if len(waiting) == 1 else 'wait'} for PodGroups of {api}, which are not "
                "served",
                f"install that scheduler, or remove spec.workers.gang.{kind}",
            )
    if not troubled:
        area.ok("optional kinds", "; ".join(there) if there else "none of those that Capstan can use, and needs none")


def check_definitions(facts: Facts) -> list[Finding]:
    area = Area("Definitions")
    if isinstance(facts.crds, Unread):
        area.skip("CustomResourceDefinitions", facts.crds)
        return area.findings
    for name, wanted in facts.wanted_crds.items():
        _check_definition(area, name, facts.crds.get(name), wanted)
    return area.findings


def _check_definition(area: Area, name: str, found: Document | None, wanted: Document) -> None:
    apply = "helm upgrade the chart of this version, or kubectl apply --server-side -f crds/"
    if found is None:
        area.fail(name, "is not installed", apply)
        return
    if not (is_met(found, "Established") and is_met(found, "NamesAccepted")):
        said = [one.get("message", "") for one in at(found, "status", "conditions", default=[])]
        area.fail(
            name, f"is not established: {listed(filter(None, said)) or 'nothing is said of it'}", "see its status"
        )
        return
    served = next((one for one in found["spec"]["versions"] if one["name"] == VERSION and one.get("served")), None)
    if served is None:
        area.fail(name, f"does not serve {GROUP}/{VERSION}", apply)
        return
    here, there = (
        _fields(at(one, "schema", "openAPIV3Schema", default={})) for one in (wanted["spec"]["versions"][0], served)
    )
    if missing := sorted(here - there):
        area.fail(
            name,
            f"is of another version: it lacks {listed(missing)}, so the API server drops what is written there",
            f"definitions first, then the operator: {apply}",
        )
    elif more := sorted(there - here):
        area.warn(
            name, f"is newer than this command: it has {listed(more)}", "use the capstan of the cluster's version"
        )
    else:
        area.ok(name, f"serves {VERSION}, with the fields of this version")


def _fields(schema: Document, path: str = "") -> set[str]:
    """Paths of all fields. Rules are left out: servers without CEL keep none."""
    found = set()
    for name, child in schema.get("properties", {}).items():
        below = f"{path}.{name}".lstrip(".")
        found |= {below} | _fields(child, below)
    for key, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if isinstance(schema.get(key), dict):
            found |= _fields(schema[key], path + mark)
    return found


def _check_webhooks(area: Area, facts: Facts) -> None:
    if isinstance(facts.webhooks, Unread):
        area.skip("webhooks", facts.webhooks)
        return
    closed = [(config, hook) for config in facts.webhooks for hook in _closed(config)]
    if not closed:
        area.ok("webhooks", "none that matches our kinds, or pods, fails closed")
        return
    if isinstance(facts.endpoint_slices, Unread):
        area.skip("webhooks", facts.endpoint_slices)
        return
    dark = {
        f"{name_of(config)} ({at(hook, 'clientConfig', 'service', 'namespace')}/{name})"
        for config, hook in closed
        if (name := at(hook, "clientConfig", "service", "name")) and not _answers(hook, facts.endpoint_slices)
    }
    if dark:
        area.fail(
            "webhooks",
            f"{listed(sorted(dark))} must be asked about our kinds, or pods, and nobody answers: what it matches is "
            "refused",
            "bring the webhook's pods up, or remove its configuration",
        )
    else:
        area.ok("webhooks", f"{count(len(closed), 'webhook')} that must be asked about what we make can answer")


def _closed(config: Document) -> Iterator[Document]:
    for hook in config.get("webhooks", []):
        if hook.get("failurePolicy", "Fail") == "Fail" and any(_matches(rule) for rule in hook.get("rules", [])):
            yield hook


def _matches(rule: dict[str, Any]) -> bool:
    groups, resources = rule.get("apiGroups", []), {name.partition("/")[0] for name in rule.get("resources", [])}
    if not {"CREATE", "UPDATE", "*"} & set(rule.get("operations", [])):
        return False
    if not ({"*", "", "apps", GROUP} & set(groups)):
        return False
    return bool(resources & (_OURS | {"*"}))


def _answers(hook: Document, slices: list[Document]) -> bool:
    service = hook["clientConfig"]["service"]
    return any(
        at(endpoint, "conditions", "ready", default=True)
        for one in slices
        if one["metadata"].get("namespace") == service.get("namespace")
        and at(one, "metadata", "labels", "kubernetes.io/service-name") == service.get("name")
        for endpoint in one.get("endpoints") or []
    )
