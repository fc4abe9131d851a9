"""spec.backend: who keeps the processes of an InferenceService alive, and what cannot be asked of KubeRay."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

if TYPE_CHECKING:
    from capstan_operator.api.inference_service import InferenceServiceSpec

Backend = Annotated[
    Literal["Auto", "Standalone", "RayService"],
    Field(
        description="What keeps the replicas. Standalone: a Deployment for each revision, each pod whole by itself. "
        "RayService: a RayService of KubeRay, which must be installed: each revision is a Ray cluster of its own, "
        "replicas are its workers, and requests pass Ray Serve's proxies, which costs many times the CPU. It goes with "
        "rollout.strategy.blueGreen alone: KubeRay moves all traffic once the new cluster works; there is no way back, "
        "and the old cluster is deleted after holdSeconds. Another number of replicas is another cluster, too. Cannot "
        "change while something serves. Auto: Standalone, since nothing that a spec can ask for needs more than one "
        "node."
    ),
]

DEADLINE_SECONDS, DRAIN_SECONDS = 600, 10
"""The defaults of rollout.progressDeadlineSeconds and drainSeconds, which the API server fills in."""

_OTHERWISE = "or set backend Standalone"
_REFUSED = (
    ("has(self.gateway)", f"gateway: backend RayService has no HTTPRoute; remove gateway, {_OTHERWISE}"),
    ("has(self.tls)", f"tls: backend RayService speaks plain HTTP; remove tls, {_OTHERWISE}"),
    (
        "has(self.autoscaling)",
        f"autoscaling: backend RayService has as many replicas as it is told; set replicas instead, {_OTHERWISE}",
    ),
    (
        "!has(self.rollout.strategy.blueGreen)",
        "rollout.strategy: backend RayService moves all traffic at once, to a whole new cluster; set blueGreen, "
        + _OTHERWISE,
    ),
    (
        f"self.rollout.progressDeadlineSeconds != {DEADLINE_SECONDS}",
        "rollout.progressDeadlineSeconds: backend RayService waits for a new cluster without end, while the old one "
        f"serves; leave it out, {_OTHERWISE}",
    ),
    (
        f"self.drainSeconds != {DRAIN_SECONDS}",
        "drainSeconds: backend RayService leaves to Ray when a pod that goes takes no new request; leave it out, "
        + _OTHERWISE,
    ),
)
RAY_SERVICE_RULES = tuple(
    (f"self.backend != 'RayService' || !({is_there})", f"'{message}'") for is_there, message in _REFUSED
)
"""CEL, as `ray_service_problem` says it."""


def ray_service_problem(spec: "InferenceServiceSpec") -> str | None:
    """The first thing an InferenceServiceSpec asks for that KubeRay cannot do; None: there is none."""
    asks = (
        spec.gateway is not None,
        spec.tls is not None,
        spec.autoscaling is not None,
        spec.rollout.strategy.blue_green is None,
        spec.rollout.progress_deadline_seconds != DEADLINE_SECONDS,
        spec.drain_seconds != DRAIN_SECONDS,
    )
    return next((message for is_asked, (_, message) in zip(asks, _REFUSED, strict=True) if is_asked), None)
