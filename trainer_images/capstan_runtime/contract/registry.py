"""Names in a model registry, and what a run is asked to register: the same words in specs, pods and commands.

The registry is in the checkpoint store, so that what it names is where it says, and lives as long.
"""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from capstan_runtime.contract.base import Record, cel

REGISTRY = "CAPSTAN_REGISTRY"
"""Environment variable: the store in which the registry is, as `env.STORE` names one. Set for runs that register or
begin from trained models, and for pods that resolve a reference."""
RESOLVE = "CAPSTAN_RESOLVE"
"""Environment variable: JSON of a ResolveTask."""

MODEL_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
"""A label of RFC 1123, as Kubernetes has it."""
STAGE_NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
"""It begins with a letter, so that no stage looks like a version."""
_IDENTIFIER = r"(0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)"
SEMANTIC_VERSION = r"^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)" + rf"(-{_IDENTIFIER}(\.{_IDENTIFIER})*)?$"
"""Semantic Versioning 2.0.0 without build metadata: versions that differ in that alone have the same precedence, and a
registry could not say which one is newer."""

RUN_FOLDER = r"^[A-Za-z0-9][^/]*/[A-Za-z0-9][^/]*/[A-Za-z0-9][^/]*$"
"""Of a run in a store, `<namespace>/<job>/<uid>`. Each part begins with a letter or digit, so none is `.` or `..`."""

ModelName = Annotated[
    str,
    Field(
        pattern=MODEL_NAME,
        max_length=63,
        description="Name of the model in the registry: a-z, 0-9 and -, with a letter or digit first and last.",
    ),
]
ModelVersion = Annotated[
    str,
    Field(
        pattern=SEMANTIC_VERSION,
        max_length=128,
        description="Semantic version such as 1.4.0 or 2.0.0-rc.1, without build metadata (+…).",
    ),
]
StageName = Annotated[
    str,
    Field(
        pattern=STAGE_NAME,
        max_length=63,
        description="A name that promotions move from version to version, such as staging or production.",
    ),
]
Bump = Literal["major", "minor", "patch"]


def is_version(text: str) -> bool:
    """Whether `text` is a version that a registry takes.

    >>> [is_version(text) for text in ("1.4.0", "2.0.0-rc.1", "v1.4.0", "1.4", "1.4.0+gpu", "01.4.0")]
    [True, True, False, False, False, False]
    """
    return re.fullmatch(SEMANTIC_VERSION, text) is not None and len(text) <= 128


def is_stage(text: str) -> bool:
    """Whether `text` may name a stage."""
    return re.fullmatch(STAGE_NAME, text) is not None and len(text) <= 63


class Register(Record):
    """Registers what the run ends with, once its last checkpoint was read back."""

    model_config = cel(
        (
            "has(self.version) != has(self.bump)",
            "'register: give version, or bump to have it counted up from the newest; exactly one of the two'",
        ),
    )

    name: ModelName
    version: Annotated[
        ModelVersion | None,
        Field(
            description="Version to register. One that another run has registered fails the job: versions never change."
        ),
    ] = None
    bump: Annotated[
        Bump | None,
        Field(
            description="Part of the newest registered version that is counted up; without any, from 0.0.0. A run that "
            "restarts registers once."
        ),
    ] = None
    stage: Annotated[
        StageName | None, Field(description="Promote the version to this stage. Left out: somebody else does.")
    ] = None

    @model_validator(mode="after")
    def _one_names_the_version(self) -> Self:
        if (self.version is None) == (self.bump is None):
            raise ValueError(
                "register: give version, or bump to have it counted up from the newest; exactly one of the two"
            )
        return self


class Registered(Record):
    """What a run has registered."""

    name: str
    version: str
    root: str
    """Digest of the registered checkpoint's manifest, `blake3:<64 hex>`."""


class ResolveTask(Record):
    """What a pod is to find out: which checkpoint a reference means."""

    name: ModelName
    version: ModelVersion | None = None
    stage: StageName | None = None
    """Exactly one of the two is set."""
    known: str | None = None
    """Version that the operator knows the stage by: only another one is an answer. None: any is."""
    public_key: str | None = None
    """PEM. Given: only an entry signed by this key's owner is an answer."""


class Resolved(Record):
    """The answer, the pod's last words."""

    format: Literal["capstan-resolved/1"] = "capstan-resolved/1"
    name: ModelName
    version: ModelVersion
    digest: Annotated[str, Field(pattern=r"^blake3:[0-9a-f]{64}$")]
    """Of the checkpoint's manifest."""
    run: Annotated[str, Field(pattern=RUN_FOLDER, max_length=512)]
    """Folder of its run in the store."""
    step: Annotated[int, Field(ge=0)]
    framework: Literal["flax", "deepspeed"]
    """Which trainer made it."""
