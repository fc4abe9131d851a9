"""Which trainer runs a job, and what only that one can be told.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

from typing import Annotated

from pydantic import Field

from capstan_runtime.contract.base import OneOf, Record


class Flax(Record):
    """Flax NNX on JAX: one compiled step, data parallel over the job's processes."""


class DeepSpeed(Record):
    """DeepSpeed on PyTorch."""

    zero_stage: Annotated[
        int,
        Field(
            ge=0,
            le=3,
            description="ZeRO stage: 0 replicates everything, 1 shards optimizer state, 2 also gradients, "
            "3 also parameters. bf16 needs stage 1 or higher.",
        ),
    ] = 1


class Framework(OneOf):
    """Which trainer runs the job. Set exactly one key."""

    flax: Annotated[Flax | None, Field(description="Train with Flax NNX on JAX.")] = None
    deepspeed: Annotated[DeepSpeed | None, Field(description="Train with DeepSpeed on PyTorch.")] = None
