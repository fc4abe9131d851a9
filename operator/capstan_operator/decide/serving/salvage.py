"""What a service goes on with while its spec cannot be acted on: with what it asks for all the same.

Such a spec asks for no revision that could be made, so none is on its way any more: all traffic goes back to the proven
one, which is kept at its size and told of as ever.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from capstan_operator.api.inference_service import InferenceServiceSpec
from capstan_operator.api.inference_service_status import InferenceServiceStatus
from capstan_operator.decide.serving.reasons import ServingReason
from capstan_operator.observe_serving import ObservedServing

_SOME_MODEL = {"trainingJob": {"name": "unknown"}}
"""Stands for a modelRef that cannot be read: while the spec is refused nobody asks which model it means."""
_SIZE = {"replicas", "autoscaling"}


@dataclass(frozen=True, slots=True)
class Refused:
    """The spec cannot be acted on: one line per problem."""

    reason: ServingReason
    problems: tuple[str, ...]

    def told(self, state: str | None = None) -> str:
        """The problems and what follows from them; `state`: what else there is to say now."""
        until = "the spec is valid" if self.reason is ServingReason.INVALID_SPEC else "then"
        return "\n".join((*self.problems, f"No new revision is made until {until}{'; ' + state if state else ''}."))


def salvage(seen: ObservedServing) -> InferenceServiceSpec:
    """All fields of the spec that can be read; for the others what they leave out means, but for the size and the
    Gateways: those stay as they are."""
    spec = _readable(seen)
    if not seen.has_gateway_api:
        return spec.model_copy(update={"gateway": None})
    if spec.gateway is None and seen.gateway_route is not None and seen.service.spec.get("gateway") is not None:
        return spec.model_copy(update={"gateway": seen.gateway_route.gateway})
    return spec


def without_rollout(status: InferenceServiceStatus) -> InferenceServiceStatus:
    """A first revision goes on coming up: there is nothing to go back to."""
    return status.model_copy(update={"rollout": None}) if status.stable else status


def _readable(seen: ObservedServing) -> InferenceServiceSpec:
    document: Mapping[str, Any] = seen.service.spec
    size = max((one.replicas for one in seen.deployments), default=1)
    least = {"modelRef": _SOME_MODEL, "replicas": size}
    wrong = _wrong_fields(document)
    if wrong & _SIZE:
        wrong |= _SIZE
    readable = {name: value for name, value in document.items() if name not in wrong}
    # Fields that are right one by one may still contradict each other.
    for choice in (document, (least if wrong & _SIZE else {"modelRef": _SOME_MODEL}) | readable):
        try:
            return InferenceServiceSpec.parse(choice)
        except ValidationError:
            continue
    return InferenceServiceSpec.parse(least)


def _wrong_fields(document: Mapping[str, Any]) -> set[str]:
    try:
        InferenceServiceSpec.parse(document)
    except ValidationError as error:
        return {str(detail["loc"][0]) for detail in error.errors(include_url=False) if detail["loc"]}
    return set()
