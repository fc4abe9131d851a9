"""From a revision's configuration to its loaded model: exactly the checkpoint that it names, every byte verified.

The frameworks are imported by name, one of them and only here: a replica's image holds one, and this module knows none.
"""

import importlib
from collections.abc import Callable
from typing import cast

from capstan_runtime.checkpoint.candidates import look_at
from capstan_runtime.checkpoint.layout import SaveName
from capstan_runtime.checkpoint.reader import OpenCheckpoint, open_checkpoint, read_note
from capstan_runtime.checkpoint.store import ObjectMissing, Store, is_of_one_folder
from capstan_runtime.contract.serving import ServeConfig, ServedModel
from capstan_runtime.contract.signature import Signature
from capstan_runtime.engine import TensorSource
from capstan_runtime.errors import ConfigError, CorruptCheckpoint, StoreUnavailable
from capstan_runtime.serving.normalizing import Normalizing
from capstan_runtime.serving.predictor import Classifier, Decoder

Build = Callable[[Signature, TensorSource, int], Classifier | Decoder]

_MODULES = {
    "flax": "capstan_runtime.flax_trainer.predict",
    "torch": "capstan_runtime.deepspeed_trainer.predict",
}


def load(config: ServeConfig, store: Store) -> Classifier | Decoder:
    """The model of the checkpoint `config.model.root`, its parameters verified as they were read, not warm yet.

    `store` is where the run of that model keeps its checkpoints. All that is read is hashed, whatever
    `config.model.verify.level` says: a level is for runs that read the same checkpoint again and again. A decoder has a
    slot for each sample of a batch.

    Raises CorruptCheckpoint, also for one that is quarantined or lacks the signature that `verify.publicKey` asks for;
    ConfigError when there is no such checkpoint of that run, when it cannot be served, and when the framework is not
    installed; StoreUnavailable, GpuOutOfMemory.
    """
    opened = find_checkpoint(config.model, store)
    signature = opened.manifest.signature
    if signature is None:
        raise ConfigError(
            f"model.root: {_named(config.model)}, of step {opened.manifest.step}, does not say what model it is: it "
            "is of the user's own code, which only that can serve, or was saved by an older version of Capstan, whose "
            "TrainingJob can save one more with this version"
        )
    batching = config.guards.batching
    model = builder(config.runtime)(signature, opened.tensors(), 1 if batching is None else batching.max_batch_size)
    if signature.normalize is None:
        return model
    return Normalizing(cast(Classifier, model), signature.normalize)  # nothing normalises tokens


def find_checkpoint(model: ServedModel, store: Store) -> OpenCheckpoint:
    """The one that `model` names and no other, with everything verified but the tensors' bytes. Raises as `load`."""
    try:
        return _found(model, store)
    except OSError as error:
        raise StoreUnavailable(f"checkpoint store: {error}") from error


def _found(model: ServedModel, store: Store) -> OpenCheckpoint:
    problems: list[str] = []
    for text in reversed(store.children()):
        name = SaveName.parse(text)
        if name is None:
            continue
        try:
            root = read_note(store, name).root
        except (CorruptCheckpoint, StoreUnavailable) as error:
            if isinstance(error, StoreUnavailable) and not is_of_one_folder(error):
                raise
            if not isinstance(error.__cause__, ObjectMissing):  # what was never committed is nobody's
                problems.append(str(error))
            continue
        if root == model.root:
            return _opened(model, store, name)
    if problems:
        raise CorruptCheckpoint(
            f"{_named(model)} is not among the checkpoints in {store.place} that can be read; {len(problems)} cannot: "
            f"{problems[0]}"
        )
    raise ConfigError(
        f"model.root: {store.place} holds no checkpoint {_named(model)}; it may have been removed by its retention: "
        "name one that is there (capstan checkpoint ls), and pin it"
    )


def _opened(model: ServedModel, store: Store, name: SaveName) -> OpenCheckpoint:
    opened = open_checkpoint(store, name, model.verify.public_key)
    if opened.manifest.run != model.run:
        raise ConfigError(
            f"model.run: checkpoint {model.root} in {store.place} is of run {opened.manifest.run}, not of {model.run}; "
            "name the run that made it"
        )
    _, candidate = look_at(store, name)
    if candidate is not None and candidate.problem is not None:
        raise CorruptCheckpoint(f"{name}: {candidate.problem}")
    return opened


def builder(runtime: str) -> Build:
    """What makes a predictor in `runtime`, flax or torch. Raises ConfigError where that is not installed."""
    try:
        build: Build = importlib.import_module(_MODULES[runtime]).build
    except ImportError as error:
        raise ConfigError(
            f"runtime: {runtime} is not installed here ({error}); use the image that has it, or the other runtime: a "
            "checkpoint of either framework loads into both"
        ) from error
    return build


def _named(model: ServedModel) -> str:
    return f"{model.root} of run {model.run}"
