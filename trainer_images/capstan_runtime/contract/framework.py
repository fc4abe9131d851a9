"""Which trainer runs a job, and what only that one can be told.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from capstan_runtime.contract.base import OneOf, Record, cel
from capstan_runtime.contract.memory import HostTarget, OffloadTarget

_NOTHING_OFFLOADED = "offload names nothing; set optimizer, parameters or both, or remove it"
_NOT_CUT_UP = "zeroStage 0 cannot offload: DeepSpeed does from stage 1 on; choose zeroStage 1, 2 or 3"
_PARAMETERS_WHOLE = (
    "offload.parameters needs zeroStage 3: below it, every worker uses all parameters all the time; set zeroStage to 3"
)


class FullySharded(Record):
    """Fully sharded data parallelism (Zhao et al., 2304.11277; ZeRO stage 3: 1910.02054): each device keeps a part of
    parameters, gradients and optimizer state, and gathers parameters to use them: of a transformer one layer at a time,
    of other models all at once."""


class FlaxOffload(Record):
    """What Flax keeps outside of the GPU's memory. It is brought there for the update alone, and computed as ever."""

    optimizer: Annotated[HostTarget, Field(description="Optimizer state, averages of the weights included.")]


class Flax(Record):
    """Flax NNX on JAX: one compiled step, data parallel over the job's processes."""

    fsdp: Annotated[
        FullySharded | None,
        Field(
            description="Cut parameters and optimizer state evenly over all devices of the job. Left out: each has all "
            "of them."
        ),
    ] = None
    offload: Annotated[
        FlaxOffload | None, Field(description="What is kept in the host's memory. Left out: nothing is.")
    ] = None


class DeepSpeedOffload(Record):
    """What DeepSpeed keeps outside of the GPU's memory (ZeRO-Offload, 2101.06840; ZeRO-Infinity, 2104.07857)."""

    model_config = cel(("has(self.optimizer) || has(self.parameters)", f"'{_NOTHING_OFFLOADED}'"))

    optimizer: Annotated[
        OffloadTarget | None,
        Field(
            description="Optimizer state and fp32 master weights, which are updated there, by the CPU. Needs zeroStage "
            "1, 2 or 3."
        ),
    ] = None
    parameters: Annotated[
        OffloadTarget | None,
        Field(description="Parameters between their uses. Needs zeroStage 3."),
    ] = None

    @property
    def needs_disk(self) -> bool:
        return any(target is not None and target.nvme is not None for target in (self.optimizer, self.parameters))

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.optimizer is None and self.parameters is None:
            raise ValueError(_NOTHING_OFFLOADED)
        return self


class DeepSpeed(Record):
    """DeepSpeed on PyTorch."""

    model_config = cel(
        ("!has(self.offload) || self.zeroStage > 0", f"'{_NOT_CUT_UP}'"),
        ("!has(self.offload) || !has(self.offload.parameters) || self.zeroStage == 3", f"'{_PARAMETERS_WHOLE}'"),
    )

    zero_stage: Annotated[
        int,
        Field(
            ge=0,
            le=3,
            description="ZeRO stage: 0 replicates everything, 1 shards optimizer state, 2 also gradients, "
            "3 also parameters. bf16 and fp16 need stage 1 or higher.",
        ),
    ] = 1
    offload: Annotated[
        DeepSpeedOffload | None,
        Field(description="What is kept in the host's memory, or on its disk. Left out: nothing is."),
    ] = None

    @model_validator(mode="after")
    def _stage_offloads(self) -> Self:
        if self.offload is not None and self.zero_stage == 0:
            raise ValueError(_NOT_CUT_UP)
        if self.offload is not None and self.offload.parameters is not None and self.zero_stage < 3:
            raise ValueError(_PARAMETERS_WHOLE)
        return self


class Framework(OneOf):
    """Which trainer runs the job. Set exactly one key."""

    flax: Annotated[Flax | None, Field(description="Train with Flax NNX on JAX.")] = None
    deepspeed: Annotated[DeepSpeed | None, Field(description="Train with DeepSpeed on PyTorch.")] = None
