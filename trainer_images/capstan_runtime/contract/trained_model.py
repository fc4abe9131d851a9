"""How a run names a trained model that it learns from: a checkpoint, or a version in the registry, of its own store."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from capstan_runtime.contract.base import OneOf, Record, cel
from capstan_runtime.contract.registry import RUN_FOLDER, ModelName, ModelVersion, StageName

_ONE_VERSION = "registry: give version, which never changes, or stage, of which the meaning now holds; exactly one"

TrainedKey = Annotated[str | None, Field(min_length=1, description="PEM of a public key that it must be signed with.")]


class StoredCheckpoint(Record):
    """A checkpoint in the store that the run saves to."""

    run: Annotated[
        str,
        Field(
            pattern=RUN_FOLDER, max_length=512, description="Its folder: <namespace>/<job>/<uid>, of this namespace."
        ),
    ]
    digest: Annotated[str, Field(pattern=r"^blake3:[0-9a-f]{64}$", description="The checkpoint's digest.")]
    public_key: TrainedKey = None


class RegisteredVersion(Record):
    """A version of a model in the registry of the store that the run saves to."""

    model_config = cel(("has(self.version) != has(self.stage)", f"'{_ONE_VERSION}'"))

    name: ModelName
    version: ModelVersion | None = None
    stage: StageName | None = None
    public_key: TrainedKey = None

    @model_validator(mode="after")
    def _one_version(self) -> Self:
        if (self.version is None) == (self.stage is None):
            raise ValueError(_ONE_VERSION)
        return self


class TrainedModel(OneOf):
    """A model that is trained already, by one of Capstan's own trainers."""

    checkpoint: Annotated[StoredCheckpoint | None, Field(description="A checkpoint in checkpoint.store.")] = None
    registry: Annotated[
        RegisteredVersion | None, Field(description="A registered model in checkpoint.store: capstan model list.")
    ] = None

    def __str__(self) -> str:
        if self.registry is not None:
            return f"{self.registry.name}@{self.registry.version or self.registry.stage}"
        assert self.checkpoint is not None
        return f"{self.checkpoint.digest[:23]} of {self.checkpoint.run}"
