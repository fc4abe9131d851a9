"""The look at an InferenceService, arranged by revision."""

from dataclasses import dataclass, replace
from math import ceil
from typing import Self

from capstan_operator.api.inference_service import InferenceServiceSpec
from capstan_operator.api.inference_service_status import InferenceServiceStatus, RevisionStatus, RolloutStatus
from capstan_operator.api.meta import InferenceServiceCondition
from capstan_operator.api.rollout import Canary
from capstan_operator.build.serving_revision import Revision
from capstan_operator.decide.conditions import find
from capstan_operator.decide.serving.reasons import ServingReason
from capstan_operator.decide.times import rfc3339_millis, seconds_after
from capstan_operator.observe_serving import ObservedDeployment, ObservedReplica, ObservedServing

DARK_SECONDS = 60.0
"""Nothing was served for so long: a revision that can serve then does, whatever its rollout asks for."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """One look, and the status it is judged with."""

    seen: ObservedServing
    spec: InferenceServiceSpec
    wanted: Revision | None
    """What spec and model ask for; None: there is no model yet."""
    status: InferenceServiceStatus
    now: float

    def after(self, status: InferenceServiceStatus) -> Self:
        return replace(self, status=status)

    @property
    def size(self) -> int:
        """Pods that shall serve: on record where autoscaling decides it, else as the spec says."""
        return self.status.replicas or self.spec.replicas or 1

    @property
    def canary(self) -> Canary | None:
        return self.spec.rollout.strategy.canary

    @property
    def compares(self) -> bool:
        """Whether a canary's answers are compared with the proven revision's."""
        return self.canary is not None and self.canary.gates.min_agreement is not None

    @property
    def rollout(self) -> RolloutStatus | None:
        return self.status.rollout

    @property
    def moment(self) -> str:
        return rfc3339_millis(self.now)

    def deployment(self, revision: str | None) -> ObservedDeployment | None:
        return next((one for one in self.seen.deployments if one.name == revision), None)

    def replicas_wanted(self, revision: str | None) -> int:
        """As many as its Deployment was last told to have."""
        deployment = self.deployment(revision)
        return deployment.replicas if deployment else 0

    def pods(self, revision: str | None) -> list[ObservedReplica]:
        return [pod for pod in self.seen.replicas if pod.revision == revision]

    def ready(self, revision: str | None) -> int:
        """Pods of this revision that can take requests."""
        return sum(pod.is_ready and not pod.is_deleting for pod in self.pods(revision))

    def others(self) -> list[ObservedDeployment]:
        """Revisions that have no business here any more: neither proven nor on their way."""
        kept = {self.status.stable, self.rollout.candidate if self.rollout else None}
        return [one for one in self.seen.deployments if one.name not in kept]

    def behind(self) -> dict[str, int]:
        """Ready pods behind the stable address, by revision; none with zero."""
        route = self.seen.route
        if route is None:
            return {}
        names = {pod.revision for pod in self.seen.replicas} if route.revision is None else {route.revision}
        counts = {name: self.ready(name) for name in names}
        return {name: count for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if count}

    def is_settled(self) -> bool:
        """The proven revision alone has traffic and pods, so that another can be compared with it."""
        route = self.seen.route
        alone = {self.status.stable}
        return (
            route is not None
            and route.revision == self.status.stable
            and not self.is_divided()
            and {one.name for one in self.seen.deployments} <= alone
            and {pod.revision for pod in self.seen.replicas if not pod.is_deleting} <= alone
        )

    def is_divided_by_gateway(self) -> bool:
        """A canary gets its share from Gateways."""
        return self.spec.gateway is not None and self.canary is not None

    def is_divided(self) -> bool:
        """Gateways lead elsewhere than to the stable Service, or may not have heard yet that they should not."""
        seen = self.seen.gateway_route
        if seen is None:
            return False
        return seen.weights.keys() != {self.seen.service.name} or (seen.accepted is True and not seen.is_current)

    def is_dark(self) -> bool:
        """There is a proven revision, but for a minute nobody was served."""
        return self.ready(self.status.stable) == 0 and self.is_long_dark()

    def is_long_dark(self) -> bool:
        """For a minute nobody was served, as far as was seen."""
        serving = find(self.status, InferenceServiceCondition.SERVING)
        return (
            serving is not None
            and serving.status == "False"
            and seconds_after(serving.last_transition_time, self.now) >= DARK_SECONDS
        )

    def canary_weight(self) -> int:
        """Percent of the traffic that the candidate shall have in its step; after the last one until it has all."""
        assert self.canary is not None
        steps, rollout = self.canary.steps, self.rollout
        if rollout is not None and rollout.phase in ("Shifting", "Holding"):
            return steps[-1].weight
        return steps[min(rollout.step or 0 if rollout else 0, len(steps) - 1)].weight

    def canary_size(self) -> int:
        """Pods that the candidate needs for that weight while the proven revision keeps all of its own; at least one.
        Where Gateways divide, as many of `size` as of the traffic; else as many as make that share of all pods."""
        weight = self.canary_weight()
        if self.is_divided_by_gateway():
            return max(1, ceil(self.size * weight / 100))
        return max(1, round(self.size * weight / (100 - weight)))


def known_revision(status: InferenceServiceStatus, name: str | None) -> RevisionStatus | None:
    """What status says of a revision; None: nothing."""
    return next((one for one in status.revisions if one.name == name), None)


def is_given_up(status: InferenceServiceStatus, name: str | None) -> bool:
    """Whether a revision failed, and was not tried again since."""
    known = known_revision(status, name)
    return known is not None and known.failure is not None


def answers_badly(status: InferenceServiceStatus, name: str | None) -> bool:
    """Whether a revision was given up for its answers."""
    known = known_revision(status, name)
    return known is not None and known.failure is not None and known.failure.reason == ServingReason.GATE_FAILED


def with_revision(status: InferenceServiceStatus, revision: RevisionStatus) -> InferenceServiceStatus:
    """`status` with what is known of one revision replaced; the others keep their order."""
    others = [one for one in status.revisions if one.name != revision.name]
    if len(others) == len(status.revisions):
        return status.model_copy(update={"revisions": [*others, revision]})
    revisions = [revision if one.name == revision.name else one for one in status.revisions]
    return status.model_copy(update={"revisions": revisions})
