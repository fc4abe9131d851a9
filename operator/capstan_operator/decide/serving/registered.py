"""Which checkpoint a name in a registry means: a pod that can see the store finds out, and says so with its last words.

For a version one pod asks once. For a stage there is always one, which knows what the stage meant when it was made and
ends as soon as it means something else; the next pod knows that.
"""

from dataclasses import dataclass
from hashlib import sha256

from capstan_operator.api.inference_service import InferenceServiceSpec, RegisteredModel
from capstan_operator.api.inference_service_status import ModelStatus
from capstan_operator.build.pod_patch import PodPatchError
from capstan_operator.build.registry_pod import build_registry_pod
from capstan_operator.decide.blueprint import Refusal
from capstan_operator.decide.serving.model import RUNTIME_OF
from capstan_operator.decide.serving.reasons import ServingReason
from capstan_operator.decide.serving.types import NoModel
from capstan_operator.decide.types import Manifest, PodDeletion
from capstan_operator.observe_serving import ObservedResolver, ObservedServing

AGAIN_SECONDS = 60.0
"""From one pod that found out nothing to the next: a node that evicts whatever comes is not asked in a loop."""


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What is to be done so that the registry's answer is known."""

    asker: str | None = None
    """Name of the pod that asks; None: nothing is to be asked."""
    create: tuple[Manifest, ...] = ()
    delete: tuple[PodDeletion, ...] = ()
    look_after: float | None = None
    """Seconds until there is something to be done although nothing has happened; None: then there is nothing."""


def resolve_registered(ref: RegisteredModel, seen: ObservedServing, asker: str | None) -> ModelStatus | NoModel:
    """The checkpoint. `asker`: name of the pod that asks now; None: nothing is asked."""
    known = known_model(ref, seen)
    pod = next((one for one in seen.resolvers if one.name == asker), None)
    if pod is not None and pod.answer is not None and pod.answer.name == ref.name:
        answer = pod.answer
        return ModelStatus(
            source=_source(ref),
            run=answer.run,
            digest=answer.digest,
            version=f"{answer.name} {answer.version}",
            step=answer.step,
            framework=RUNTIME_OF[answer.framework],
            store=ref.store,
        )
    return known or NoModel(ServingReason.REGISTRY_ASKED, _waits(ref, asker, pod))


def known_model(ref: RegisteredModel, seen: ObservedServing) -> ModelStatus | None:
    """What was found for the same question before; None: nothing was."""
    model = seen.service.status.model
    return model if model is not None and (model.source, model.store) == (_source(ref), ref.store) else None


def inquire(seen: ObservedServing, spec: InferenceServiceSpec, now: float) -> Inquiry | Refusal:
    """The pod that asks, if something is to be asked and none does; and those that ask nothing of use any more."""
    ref = spec.model_ref.registry
    wanted = None
    if ref is not None:
        try:
            wanted = _asking_pod(ref, seen, spec)
        except PodPatchError as error:
            return Refusal(tuple(sorted(f"spec.{problem}" for problem in error.problems)))
    name = wanted["metadata"]["name"] if wanted is not None else None
    failed = next((one for one in seen.resolvers if one.name == name and one.is_over and one.answer is None), None)
    pause = failed.created_at + AGAIN_SECONDS - now if failed is not None else 0.0
    useless = [one for one in seen.resolvers if one.name != name or (one is failed and pause <= 0.0)]
    is_there = any(one.name == name for one in seen.resolvers)
    return Inquiry(
        asker=name,
        create=(wanted,) if wanted is not None and not is_there else (),
        delete=tuple(PodDeletion(one.name, one.uid) for one in useless if not one.is_deleting),
        look_after=pause if pause > 0.0 else None,
    )


def _asking_pod(ref: RegisteredModel, seen: ObservedServing, spec: InferenceServiceSpec) -> Manifest | None:
    """None: all is known for good."""
    known = known_model(ref, seen)
    if ref.version is not None and known is not None:
        return None
    version = known.version.rpartition(" ")[2] if known is not None and known.version else None
    return build_registry_pod(seen.service, spec, ref, version, seen.settings)


def _source(ref: RegisteredModel) -> str:
    """What is asked, in words. One that was found under another key is not known to be signed by this one."""
    signed = f", signed by {sha256(ref.public_key.encode()).hexdigest()[:12]}" if ref.public_key else ""
    return f"registry {ref.name}@{ref.version or ref.stage}{signed}"


def _waits(ref: RegisteredModel, asker: str | None, pod: ObservedResolver | None) -> str:
    what = f"{ref.name}@{ref.version or ref.stage}"
    why = (pod.problem or pod.waiting) if pod is not None else None
    says = f" ({why})" if why else f"; kubectl logs {asker} says what it sees"
    return f"pod {asker} waits until {what} is in the registry, which is served then{says}"
