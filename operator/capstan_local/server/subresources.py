"""Subresources that are not simply a part of the object: scale, binding, eviction, service account tokens."""

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from capstan_local.server.codec import dumps
from capstan_local.server.collection import Entry
from capstan_local.server.decoding import require_decodable
from capstan_local.server.deletion import DeleteOptions, Deleter, parse_options, too_many_disruptions
from capstan_local.server.errors import ApiError, bad_request, conflict, invalid, invalid_value, not_found, required
from capstan_local.server.identity import ISSUER, Authenticator
from capstan_local.server.metadata import now_rfc3339
from capstan_local.server.resources import Resource
from capstan_local.server.storage import Store
from capstan_local.server.writes import WriteOptions, Writer

Object = dict[str, Any]

_BUILTIN_SCALE = (".spec.replicas", ".status.replicas", None)
_SHORTEST_TOKEN_SECONDS = 600
_LONGEST_TOKEN_SECONDS = 1 << 32
_DEFAULT_TOKEN_SECONDS = 3600


def _at_path(obj: Mapping[str, Any], path: str | None) -> Any:
    value: Any = obj
    for step in (path or "").strip(".").split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def _set_at_path(obj: Object, path: str, value: Any) -> None:
    *parents, last = path.strip(".").split(".")
    for step in parents:
        obj = obj.setdefault(step, {})
    obj[last] = value


def _paths(resource: Resource) -> tuple[str, str, str | None]:
    scale = resource.custom.scale if resource.custom else None
    if scale is None:
        return _BUILTIN_SCALE
    return (scale.spec_replicas, scale.status_replicas, scale.label_selector)


def scale_of(resource: Resource, obj: Object) -> Object:
    """The autoscaling/v1 Scale of an object."""
    spec_path, status_path, selector_path = _paths(resource)
    meta = obj["metadata"]
    shown = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    wanted = _at_path(obj, spec_path)
    status: Object = {"replicas": _at_path(obj, status_path) or 0}
    if resource.custom:
        selector = _at_path(obj, selector_path) if selector_path else None
    else:
        selector = _selector_text(_at_path(obj, ".spec.selector"))
    if selector:
        status["selector"] = selector
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {field: meta[field] for field in shown if field in meta},
        "spec": {"replicas": wanted} if wanted else {},  # Go leaves a zero out
        "status": status,
    }


def _selector_text(selector: Any) -> str:
    """A label selector object (or a plain map) in its string form."""
    if not isinstance(selector, Mapping):
        return ""
    if "matchLabels" not in selector and "matchExpressions" not in selector:
        return ",".join(f"{key}={value}" for key, value in sorted(selector.items()))
    parts = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for expression in selector.get("matchExpressions") or ():
        key, operator = expression["key"], expression["operator"]
        if operator in ("In", "NotIn"):
            values = ",".join(sorted(expression.get("values") or ()))
            parts.append(f"{key} {operator.lower()} ({values})")
        else:
            parts.append(key if operator == "Exists" else f"!{key}")
    return ",".join(parts)


def with_scale(resource: Resource, change: Callable[[Object], Object]) -> Callable[[Object], Object]:
    """A transform of the object that carries out `change` of its Scale."""

    def transform(obj: Object) -> Object:
        before = scale_of(resource, obj)
        scale = change(orjson.loads(dumps(before)))
        require_decodable("autoscaling/v1/Scale", scale)
        meta = scale.get("metadata") or {}
        name = obj["metadata"]["name"]
        if meta.get("resourceVersion") not in (None, "", obj["metadata"]["resourceVersion"]):
            raise conflict(resource.plural, resource.group, name)
        replicas = (scale.get("spec") or {}).get("replicas", 0)
        if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 0:
            cause = invalid_value("spec.replicas", replicas, "must be greater than or equal to 0")
            raise invalid("Scale", "autoscaling", name, [cause])
        _set_at_path(obj, _paths(resource)[0], replicas)
        return obj

    return transform


async def bind(
    writer: Writer, pods: Resource, namespace: str, name: str, binding: Object, options: WriteOptions
) -> bytes:
    """Assign a pod to a node. Raises ApiError 409 when it has one."""
    target, metadata = binding.get("target") or {}, binding.get("metadata") or {}
    if not target.get("name"):
        raise invalid("Binding", "", name, [required("target.name")])
    if target.get("kind") not in (None, "", "Node"):
        raise invalid("Binding", "", name, [invalid_value("target.kind", target["kind"], 'must be "Node"')])

    def assign(pod: Object) -> Object:
        spec, node = pod["spec"], pod["spec"].get("nodeName")
        if pod["metadata"].get("deletionTimestamp"):
            raise conflict("pods/binding", "", name, f"pod {name} is being deleted, cannot be assigned to a host")
        if node:
            raise conflict("pods/binding", "", name, f'pod {name} is already assigned to node "{node}"')
        spec["nodeName"] = target["name"]
        for field in ("labels", "annotations"):
            extra = metadata.get(field)
            if extra:
                pod["metadata"][field] = {**(pod["metadata"].get(field) or {}), **extra}
        conditions = pod.setdefault("status", {}).setdefault("conditions", [])
        conditions[:] = [condition for condition in conditions if condition["type"] != "PodScheduled"]
        scheduled = {"type": "PodScheduled", "status": "True", "lastProbeTime": None}
        conditions.append({**scheduled, "lastTransitionTime": now_rfc3339()})
        return pod

    await writer.mutate(pods, namespace, name, "binding", assign, options)
    return success()


def success() -> bytes:
    return dumps({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})


async def evict(
    store: Store, deleter: Deleter, pods: Resource, namespace: str, name: str, eviction: Object, query: dict[str, str]
) -> bytes:
    """Delete a pod unless a PodDisruptionBudget forbids it: ApiError 429."""
    entry = store.get("pods", namespace, name)
    if entry is None:
        raise not_found("pods", "", name)
    options = parse_options(eviction.get("deleteOptions") or {}, query)
    finished = (entry.load().get("status") or {}).get("phase") in ("Succeeded", "Failed", "Pending")
    if (
        not finished
        and not entry.deleting
        and not all(_allows_disruption(store, budget) for budget in _budgets(store, entry))
    ):
        raise too_many_disruptions()
    await deleter.delete(pods, namespace, name, options or DeleteOptions())
    return success()


def _budgets(store: Store, pod: Entry) -> list[Object]:
    found = [entry.load() for entry in store.scan("poddisruptionbudgets.policy", pod.namespace)]
    return [budget for budget in found if _selects(_at_path(budget, ".spec.selector"), pod.labels)]


def _selects(selector: Any, labels: Mapping[str, str]) -> bool:
    """Whether a LabelSelector object matches; an empty one matches everything, an absent one nothing."""
    if not isinstance(selector, Mapping):
        return False
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for expression in selector.get("matchExpressions") or ():
        key, values = expression["key"], expression.get("values") or ()
        holds = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[expression["operator"]]
        if not holds:
            return False
    return True


def _allows_disruption(store: Store, budget: Object) -> bool:
    spec = budget["spec"]
    matching = [
        entry.load()
        for entry in store.scan("pods", budget["metadata"]["namespace"])
        if _selects(spec.get("selector"), entry.labels)
    ]
    healthy = sum(1 for pod in matching if _is_ready(pod))
    if spec.get("maxUnavailable") is not None:
        needed = len(matching) - _share(spec["maxUnavailable"], len(matching))
    else:
        needed = _share(spec.get("minAvailable", 1), len(matching))
    return healthy - 1 >= needed


def _share(amount: int | str, total: int) -> int:
    if isinstance(amount, str) and amount.endswith("%"):
        return math.ceil(int(amount[:-1]) * total / 100)
    return int(amount)


def _is_ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def issue_token(store: Store, authenticator: Authenticator, namespace: str, name: str, request: Object) -> Object:
    """The TokenRequest with its token. Raises ApiError."""
    entry = store.get("serviceaccounts", namespace, name)
    if entry is None:
        raise not_found("serviceaccounts", "", name)
    spec = request.get("spec") or {}
    seconds = spec.get("expirationSeconds", _DEFAULT_TOKEN_SECONDS)
    if not isinstance(seconds, int):
        raise bad_request("spec.expirationSeconds: expected an integer")
    if not _SHORTEST_TOKEN_SECONDS <= seconds <= _LONGEST_TOKEN_SECONDS:
        is_short = seconds < _SHORTEST_TOKEN_SECONDS
        why = f"may not specify a duration {'less than 10 minutes' if is_short else 'larger than 2^32 seconds'}"
        cause = invalid_value("spec.expirationSeconds", seconds, why)
        raise invalid("TokenRequest", "authentication.k8s.io", name, [cause])
    audiences = spec.get("audiences") or [ISSUER]
    expires = (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": now_rfc3339()},
        "spec": {**spec, "audiences": audiences, "expirationSeconds": seconds},
        "status": {
            "token": authenticator.issue(namespace, name, entry.uid, audiences, seconds),
            "expirationTimestamp": expires,
        },
    }


def check_eviction(eviction: Object, name: str) -> None:
    """The Eviction must be for the pod in the URL. Raises ApiError 400."""
    named = (eviction.get("metadata") or {}).get("name")
    if named and named != name:
        raise ApiError(400, f"name in URL does not match name in Eviction object: {named}")
