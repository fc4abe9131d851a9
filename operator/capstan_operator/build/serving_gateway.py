"""The HTTPRoute of an InferenceService: by it Gateways lead to the service, and divide a canary's traffic."""

from collections.abc import Mapping
from typing import Any

from capstan_operator.api.gateway import Gateway
from capstan_operator.build.children import Owner
from capstan_operator.build.serving_children import metadata
from capstan_runtime.contract import env

GATEWAY_API = "gateway.networking.k8s.io/v1"


def build_gateway_route(
    owner: Owner, gateway: Gateway, timeout_seconds: float | None, weights: Mapping[str, int]
) -> dict[str, Any]:
    """HTTPRoute `<name>` to the Services that `weights` names, each with its share of the sum of the weights.
    `timeout_seconds` None: answers are streams, which the Gateway must not cut."""
    parents = [parent.document() for parent in gateway.parent_refs]
    return {
        "apiVersion": GATEWAY_API,
        "kind": "HTTPRoute",
        "metadata": metadata(owner, owner.name),
        "spec": {
            "parentRefs": parents,
            **({"hostnames": gateway.hostnames} if gateway.hostnames else {}),
            "rules": [
                {
                    "backendRefs": [
                        {"name": service, "port": env.SERVE_PORT, "weight": weight}
                        for service, weight in weights.items()
                    ],
                    "timeouts": {"request": request_timeout(timeout_seconds)},
                }
            ],
        },
    }


def request_timeout(seconds: float | None) -> str:
    """`seconds` as a duration of the Gateway API (GEP-2257), to the millisecond: it knows no fractions, and numbers of
    at most five digits. Zero, which switches the timeout off, only for None: to leave it out would leave it to each
    Gateway, and Envoy's own is 15 s."""
    if seconds is None:
        return "0s"
    whole, milliseconds = divmod(max(1, round(seconds * 1000)), 1000)
    return (f"{whole}s" if whole else "") + (f"{milliseconds}ms" if milliseconds else "")
