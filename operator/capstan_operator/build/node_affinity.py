"""Keeping pods away from nodes, whatever affinity the user's podPatch asks for besides."""

from collections.abc import Iterable
from typing import Any

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
HIGHEST_WEIGHT = 100


def keep_away(template: dict[str, Any], *, never: Iterable[str], rather_not: Iterable[str]) -> dict[str, Any]:
    """A copy of the pod `template` that is put on none of the nodes `never`, and on one of `rather_not` only if no
    other takes it. `template` is not changed. Nodes go by their names, as pods tell them: the label
    kubernetes.io/hostname may be another."""
    spec: dict[str, Any] = template["spec"]
    affinity: dict[str, Any] = dict(spec.get("affinity") or {})
    of_nodes: dict[str, Any] = dict(affinity.get("nodeAffinity") or {})
    if forbidden := _not_on(never):
        # Terms are alternatives, so each of them must say it.
        terms = (of_nodes.get(REQUIRED) or {}).get("nodeSelectorTerms") or [{}]
        with_names = [term | {"matchFields": [*(term.get("matchFields") or []), *forbidden]} for term in terms]
        of_nodes[REQUIRED] = {"nodeSelectorTerms": with_names}
    if unwanted := _not_on(rather_not):
        wish = {"weight": HIGHEST_WEIGHT, "preference": {"matchFields": unwanted}}
        of_nodes[PREFERRED] = [*(of_nodes.get(PREFERRED) or []), wish]
    return template | {"spec": spec | {"affinity": affinity | {"nodeAffinity": of_nodes}}}


def _not_on(nodes: Iterable[str]) -> list[dict[str, Any]]:
    # A requirement on a field takes exactly one value.
    return [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]
