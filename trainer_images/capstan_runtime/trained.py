"""A trained model that a run learns or begins from: which checkpoint it is, decided once, and where its tensors are.

The first rank that finds it writes its digest beside the run's own checkpoints (`layout.TEACHER`, `layout.ORIGIN`), by
a write of which one wins; whoever comes later, in this attempt or after a restart, takes what is written there. So all
ranks have the same bytes for as long as the run lives, whatever a stage of the registry has come to mean.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from capstan_runtime.checkpoint.marks import is_pinned, pin
from capstan_runtime.checkpoint.open import open_store
from capstan_runtime.checkpoint.reader import OpenCheckpoint
from capstan_runtime.checkpoint.safetensors import item_bytes
from capstan_runtime.checkpoint.store import ObjectMissing, Store
from capstan_runtime.context import TrainContext
from capstan_runtime.contract.base import Record
from capstan_runtime.contract.registry import REGISTRY, RUN_FOLDER
from capstan_runtime.contract.saving import Verification
from capstan_runtime.contract.serving import ServedModel
from capstan_runtime.contract.trained_model import RegisteredVersion, StoredCheckpoint, TrainedModel
from capstan_runtime.engine import Trained
from capstan_runtime.errors import ConfigError, StoreUnavailable
from capstan_runtime.integers import INTEGERS, SCALES
from capstan_runtime.registry.entry import sealed, unsealed
from capstan_runtime.registry.registry import NotRegistered, Registry
from capstan_runtime.registry.verifying import require_signed
from capstan_runtime.serving.load import find_checkpoint
from capstan_runtime.voice import Voice

_WEIGHTS = ("params/", INTEGERS, SCALES)


class Decided(Record):
    """Which checkpoint a reference means for one run, for good."""

    format: Literal["capstan-trained/1"] = "capstan-trained/1"
    asked: str
    """The reference, in words."""
    run: Annotated[str, Field(pattern=RUN_FOLDER)]
    """Folder of the run that made it, in the same store."""
    root: str


def find_trained(
    model: TrainedModel, context: TrainContext, store: Store, voice: Voice, key: str, field: str
) -> Trained:
    """The model, the same for all ranks and all attempts of the run, whose own `store` has the decision at `key`.
    `field` is where the spec names it. Rank 0 pins its checkpoint, so that no retention removes it.

    Raises ConfigError where there is none, or none that can be built; CorruptCheckpoint; StoreUnavailable.
    """
    try:
        above = store_above(store, context.environ)
        decided = _decision(store, key)
        if decided is None:
            store.put_new(key, sealed(_decide(model, above, context, field)))
            decided = _decision(store, key)  # perhaps another rank's
            assert decided is not None
        run_store = open_store(f"{above.place.rstrip('/')}/{decided.run}", context.environ)
        found = _open(decided, model, run_store, field)
        if context.membership.rank == 0:
            _keep(found, run_store, voice)
    except OSError as error:
        raise StoreUnavailable(f"{field}: {error}") from error
    signature = found.manifest.signature
    if signature is None:
        raise ConfigError(
            f"{field}: {decided.asked} does not say what model it is: it is of the user's own code, or was saved by an "
            "older version of Capstan; name one that Capstan's own trainers have saved since"
        )
    voice.say(f"{field}: {decided.asked} is {found.root[:23]}, step {found.manifest.step} of {decided.run}")
    saved = [tensor for tensor in found.manifest.tensors if tensor.name.startswith(_WEIGHTS)]
    size = sum(math.prod(tensor.shape) * item_bytes(tensor.dtype) for tensor in saved)
    return Trained(signature, found.root, found.tensors(), found.manifest.step, size)


def store_above(store: Store, environ: Mapping[str, str]) -> Store:
    """All of the store in which `store` is that of a run. Raises ConfigError."""
    place = environ.get(REGISTRY)
    if not place or not store.place.startswith(place.rstrip("/")):
        raise ConfigError(f"{REGISTRY}: {place} is not the store above {store.place}; the operator sets both")
    return open_store(place, environ)


def _decision(store: Store, key: str) -> Decided | None:
    """None: nobody has decided yet. Raises CorruptCheckpoint, LaterFormat, OSError."""
    try:
        return unsealed(Decided, key, store.get(key))[0]
    except ObjectMissing:
        return None


def _decide(model: TrainedModel, above: Store, context: TrainContext, field: str) -> Decided:
    match model.value:
        case RegisteredVersion() as ref:
            return _registered(ref, Registry(above, context.environ), str(model), field)
        case StoredCheckpoint() as ref:
            namespace = context.run.job.partition("/")[0]
            if not ref.run.startswith(f"{namespace}/"):
                raise ConfigError(
                    f"{field}.checkpoint.run: {ref.run} is of another namespace than {namespace}; name a run of "
                    f"{namespace}, or a registered version (registry)"
                )
            return Decided(asked=str(model), run=ref.run, root=ref.digest)
        case other:  # pragma: no cover - a new kind of reference
            raise TypeError(f"nobody has said where a {type(other).__name__} is")


def _registered(ref: RegisteredVersion, registry: Registry, asked: str, field: str) -> Decided:
    try:
        version = ref.version
        if version is None:
            assert ref.stage is not None
            version = registry.promoted(ref.name, ref.stage).version
        entry = registry.entry(ref.name, version)
    except NotRegistered as error:
        raise ConfigError(f"{field}.registry.{error}") from error
    if ref.public_key is not None:
        require_signed(registry, entry, ref.public_key)
    try:
        return Decided(asked=f"{entry.name}@{entry.version}", run=entry.run, root=entry.root)
    except ValidationError as error:
        raise ConfigError(
            f"{field}.registry: {entry.name} {entry.version} is of run {entry.run!r}, which is no folder of a run in "
            f"{registry.store.place}; register it from one"
        ) from error


def _open(decided: Decided, model: TrainedModel, run_store: Store, field: str) -> OpenCheckpoint:
    """The signature of a registered version is over its entry, which vouches for the digest."""
    _, job, uid = decided.run.split("/")
    key = model.checkpoint.public_key if model.checkpoint is not None else None
    asked = ServedModel(name=job, version=job, run=uid, root=decided.root, verify=Verification(public_key=key))
    try:
        return find_checkpoint(asked, run_store)
    except ConfigError as error:
        raise ConfigError(f"{field}: {str(error).removeprefix('model.root: ').removeprefix('model.run: ')}") from error


def _keep(found: OpenCheckpoint, run_store: Store, voice: Voice) -> None:
    try:
        if not is_pinned(run_store, found.name):
            pin(run_store, found.name)
    except OSError as error:
        voice.warn(f"{run_store.place}/{found.name} cannot be pinned, and its retention may remove it: {error}")
