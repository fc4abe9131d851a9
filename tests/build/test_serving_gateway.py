"""HTTPRoutes: what a spec.gateway turns into, and that it is read back as it was meant."""

from __future__ import annotations

import re
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_operator.api.gateway import Gateway
from capstan_operator.api.inference_service import InferenceServiceSpec
from capstan_operator.build.serving_gateway import build_gateway_route, request_timeout
from capstan_operator.cluster.gateway_routes import decode_http_route, observe_gateway_route
from capstan_operator.observe_serving import ObservedGatewayRoute
from tests.support.looks import make_job

OWNER = make_job(name="mnist", uid="51ab")
GATEWAY = Gateway.parse(
    {
        "parentRefs": [{"name": "public", "namespace": "edge", "sectionName": "https"}, {"name": "inner"}],
        "hostnames": ["mnist.example.com", "*.mnist.example.com"],
    }
)
WEIGHTS = {"mnist-0badcafe": 90, "mnist-5eed5eed": 10}


def test_an_http_route_is_this_and_nothing_else() -> None:
    assert build_gateway_route(OWNER, GATEWAY, 2.5, WEIGHTS) == {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {
            "name": "mnist",
            "namespace": "default",
            "labels": {"app.kubernetes.io/managed-by": "capstan", "capstan.dev/service": "mnist"},
            "ownerReferences": [
                {
                    "apiVersion": "capstan.dev/v1alpha1",
                    "kind": "InferenceService",
                    "name": "mnist",
                    "uid": "51ab",
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "spec": {
            "parentRefs": [{"name": "public", "namespace": "edge", "sectionName": "https"}, {"name": "inner"}],
            "hostnames": ["mnist.example.com", "*.mnist.example.com"],
            "rules": [
                {
                    "backendRefs": [
                        {"name": "mnist-0badcafe", "port": 8480, "weight": 90},
                        {"name": "mnist-5eed5eed", "port": 8480, "weight": 10},
                    ],
                    "timeouts": {"request": "2s500ms"},
                }
            ],
        },
    }


def test_without_host_names_those_of_the_listeners_count() -> None:
    route = build_gateway_route(OWNER, Gateway.parse({"parentRefs": [{"name": "public"}]}), 30.0, {"mnist": 1})
    assert "hostnames" not in route["spec"]


def milliseconds(duration: str) -> int:
    """What a duration of GEP-2257 means; AssertionError if it is none."""
    assert re.fullmatch(r"([0-9]{1,5}(h|m|s|ms)){1,4}", duration), duration
    units = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"([0-9]+)(ms|h|m|s)", duration))


@given(st.floats(min_value=0.0, max_value=86400.0, exclude_min=True))
def test_any_timeout_is_a_duration_of_the_gateway_api(seconds: float) -> None:
    meant = milliseconds(request_timeout(seconds))
    assert meant == max(1, round(seconds * 1000))


@pytest.mark.parametrize(("protocols", "request_timeout"), [(["OpenInference"], "2s500ms"), (["OpenAI"], "0s")])
def test_a_gateway_cuts_no_stream(protocols: list[str], request_timeout: str) -> None:
    document = {"modelRef": {"trainingJob": {"name": "a"}}, "protocols": protocols, "timeoutSeconds": 2.5}
    spec = InferenceServiceSpec.parse(document)
    route = build_gateway_route(OWNER, GATEWAY, spec.request_seconds, WEIGHTS)
    assert route["spec"]["rules"][0]["timeouts"] == {"request": request_timeout}


def served(manifest: dict[str, Any], *, parents: list[dict[str, Any]] | None = None) -> ObservedGatewayRoute:
    """What is seen of `manifest` once an API server has filled in its defaults, and Gateways have spoken."""
    rules = [
        {**rule, "matches": [{"path": {"type": "PathPrefix", "value": "/"}}]} for rule in manifest["spec"]["rules"]
    ]
    for rule in rules:
        rule["backendRefs"] = [{"group": "", "kind": "Service", **ref} for ref in rule["backendRefs"]]
    refs = [{"group": "gateway.networking.k8s.io", "kind": "Gateway", **ref} for ref in manifest["spec"]["parentRefs"]]
    document = {
        **manifest,
        "metadata": manifest["metadata"] | {"uid": "9f", "generation": 3},
        "spec": manifest["spec"] | {"rules": rules, "parentRefs": refs},
        "status": {"parents": parents or []},
    }
    return observe_gateway_route(decode_http_route(orjson.dumps(document)))


def condition(kind: str, status: str, generation: int | None = 3) -> dict[str, Any]:
    said = {"type": kind, "status": status, "reason": f"{kind}Is{status}", "message": "so it is"}
    return said | ({"observedGeneration": generation} if generation else {})


def test_it_is_read_back_as_it_was_meant() -> None:
    assert served(build_gateway_route(OWNER, GATEWAY, 2.5, WEIGHTS)) == ObservedGatewayRoute(
        uid="9f", gateway=GATEWAY, timeout="2s500ms", weights=WEIGHTS
    )


def test_what_somebody_made_of_it_by_hand_is_read_as_it_is() -> None:
    manifest = build_gateway_route(OWNER, GATEWAY, 2.5, {"mnist": 0, "other": 7})
    manifest["spec"]["parentRefs"] = []
    del manifest["spec"]["rules"][0]["timeouts"]
    seen = served(manifest)
    assert (seen.gateway, seen.timeout, seen.weights) == (None, None, {"other": 7})


ACCEPTED, RESOLVED = condition("Accepted", "True"), condition("ResolvedRefs", "True")
SAID: dict[str, tuple[list[list[dict[str, Any]]], tuple[bool | None, bool, str | None]]] = {
    "nobody spoke": ([], (None, False, None)),
    "one takes it": ([[ACCEPTED, RESOLVED]], (True, True, None)),
    "one takes it and says no more": ([[ACCEPTED]], (True, True, None)),
    "one has seen an older one": (
        [[condition("Accepted", "True", 2), condition("ResolvedRefs", "True", 2)]],
        (True, False, None),
    ),
    "one does not say which": ([[condition("Accepted", "True", None)]], (True, True, None)),
    "one has not made up its mind": ([[condition("Accepted", "Unknown")]], (None, False, None)),
    "one refuses it": ([[condition("Accepted", "False"), RESOLVED]], (False, False, "AcceptedIsFalse: so it is")),
    "one does not find the Services": (
        [[ACCEPTED, condition("ResolvedRefs", "False")]],
        (False, False, "ResolvedRefsIsFalse: so it is"),
    ),
    "one of two refuses it": (
        [[condition("Accepted", "False")], [ACCEPTED, RESOLVED]],
        (True, True, "AcceptedIsFalse: so it is"),
    ),
    "one refuses it and one thinks": (
        [[condition("Accepted", "False")], [condition("Accepted", "Unknown")]],
        (None, False, "AcceptedIsFalse: so it is"),
    ),
}


@pytest.mark.parametrize("what", SAID)
def test_what_gateways_say_is_summed_up(what: str) -> None:
    conditions, expected = SAID[what]
    parents = [{"parentRef": {"name": "public"}, "controllerName": "a/b", "conditions": own} for own in conditions]
    seen = served(build_gateway_route(OWNER, GATEWAY, 2.5, WEIGHTS), parents=parents)
    assert (seen.accepted, seen.is_current, seen.problem) == expected
