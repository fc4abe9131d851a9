"""HTTPRoutes of the Gateway API, from the wire to the few facts a decision needs."""

from collections.abc import Iterable

import msgspec
from pydantic import ValidationError

from capstan_operator.api.gateway import Gateway
from capstan_operator.cluster.pods import Metadata
from capstan_operator.observe_serving import ObservedGatewayRoute

MAX_MESSAGE = 300


class ParentRef(msgspec.Struct, gc=False, rename="camel"):
    name: str
    namespace: str | None = None
    section_name: str | None = None


class BackendRef(msgspec.Struct, gc=False):
    name: str
    weight: int = 1


class Timeouts(msgspec.Struct, gc=False):
    request: str | None = None


class RouteRule(msgspec.Struct, gc=False, rename="camel"):
    backend_refs: list[BackendRef] | None = None
    timeouts: Timeouts | None = None


class RouteSpec(msgspec.Struct, gc=False, rename="camel"):
    parent_refs: list[ParentRef] | None = None
    hostnames: list[str] | None = None
    rules: list[RouteRule] | None = None


class ParentCondition(msgspec.Struct, gc=False, rename="camel"):
    type: str
    status: str = ""
    reason: str = ""
    message: str = ""
    observed_generation: int | None = None


class RouteParent(msgspec.Struct, gc=False):
    conditions: list[ParentCondition] | None = None


class RouteStatus(msgspec.Struct, gc=False):
    parents: list[RouteParent] | None = None


class HttpRoute(msgspec.Struct, gc=False):
    """What is decoded of an HTTPRoute."""

    metadata: Metadata
    spec: RouteSpec = msgspec.field(default_factory=RouteSpec)
    status: RouteStatus = msgspec.field(default_factory=RouteStatus)


decode_http_route = msgspec.json.Decoder(HttpRoute).decode


def observe_gateway_route(route: HttpRoute) -> ObservedGatewayRoute:
    """The facts about one HTTPRoute. What a Gateway has refused, or leads to what it cannot find, is not accepted."""
    spoken = [parent.conditions or [] for parent in route.status.parents or ()]
    verdicts = [_verdict(conditions) for conditions in spoken]
    content = [conditions for conditions, is_content in zip(spoken, verdicts, strict=True) if is_content]
    rules = route.spec.rules or [RouteRule()]
    timeouts = rules[0].timeouts
    return ObservedGatewayRoute(
        uid=route.metadata.uid,
        gateway=_gateway(route.spec),
        timeout=timeouts.request if timeouts else None,
        weights={ref.name: ref.weight for rule in rules for ref in rule.backend_refs or () if ref.weight},
        accepted=True if content else False if verdicts and None not in verdicts else None,
        is_current=bool(content) and all(_has_seen(conditions, route.metadata.generation) for conditions in content),
        problem=next((problem for conditions in spoken for problem in _problems(conditions)), None),
    )


def _gateway(spec: RouteSpec) -> Gateway | None:
    parents = [msgspec.to_builtins(parent) for parent in spec.parent_refs or ()]
    try:
        return Gateway.parse({"parentRefs": parents, "hostnames": spec.hostnames or []})
    except ValidationError:
        return None


def _verdict(conditions: list[ParentCondition]) -> bool | None:
    """Whether a Gateway takes the route and finds all it leads to; None: it has not made up its mind."""
    said = {condition.type: condition.status for condition in conditions}
    if "False" in (said.get("Accepted"), said.get("ResolvedRefs")):
        return False
    return True if said.get("Accepted") == "True" else None


def _has_seen(conditions: Iterable[ParentCondition], generation: int) -> bool:
    """Controllers that do not say which generation they speak of are believed to speak of the newest."""
    return all(
        condition.observed_generation is None or condition.observed_generation >= generation
        for condition in conditions
        if condition.type in ("Accepted", "ResolvedRefs")
    )


def _problems(conditions: Iterable[ParentCondition]) -> list[str]:
    return [
        f"{condition.reason}: {condition.message}"[:MAX_MESSAGE]
        for condition in conditions
        if condition.type in ("Accepted", "ResolvedRefs") and condition.status == "False"
    ]
