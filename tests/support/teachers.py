"""Trained models that runs begin from or learn from: checkpoints that nobody has trained, in a registry."""

from pathlib import Path

from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.layout import SaveName
from capstan_runtime.contract.signature import Signature
from capstan_runtime.model_signature import data_spec_of
from capstan_runtime.model_spec import initial_parameter, parameter_table
from capstan_runtime.registry.registering import Candidate, Wanted, register
from capstan_runtime.registry.registry import Registry
from tests.support.checkpoints import RUN, Arrays, save


def values_of(signature: Signature, seed: int) -> Arrays:
    """The model's first values, by the names that checkpoints have for them."""
    table = parameter_table(signature.model, data_spec_of(signature))
    return {spec.tensor_name(): initial_parameter(spec, seed) for spec in table}


def run_of_teacher(name: str) -> str:
    return f"default/{name}/{RUN}"


def write_teacher(
    place: Path,
    signature: Signature | None,
    arrays: Arrays,
    name: str = "teacher",
    version: str = "1.0.0",
    step: int = 10,
) -> str:
    """The root of a checkpoint in the store at `place`, which is registered as `version` of `name`."""
    run_store = FolderStore(place / run_of_teacher(name))
    saved = save(run_store, step, arrays=arrays, signature=signature)
    found = max(each for text in run_store.children() if (each := SaveName.parse(text)) is not None)
    candidate = Candidate(run_store, run_of_teacher(name), found)
    register(Registry(FolderStore(place), {}), candidate, Wanted(name=name, version=version, bump=None, by="a test"))
    return saved.root
