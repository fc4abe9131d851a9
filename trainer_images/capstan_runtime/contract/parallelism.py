"""How one model is spread over several devices.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

from typing import Annotated

from pydantic import Field

from capstan_runtime.contract.base import Record


class Parallelism(Record):
    """Degrees of parallelism besides that over data. Tensor x sequence x pipeline devices hold one replica of the
    model, and there is one replica for each such group of devices. Checkpoints do not depend on it."""

    tensor: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="Devices over which the matrices of each layer are cut (Shoeybi et al., 1909.08053).",
        ),
    ] = 1
    sequence: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="Devices over which each sequence is cut, outside of attention (Ulysses, 2309.14509).",
        ),
    ] = 1
    pipeline: Annotated[
        int, Field(ge=1, le=64, description="Devices over which the layers are cut (GPipe, 1811.06965).")
    ] = 1
    expert: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="Replicas among which experts are divided (GShard, 2006.16668); it divides their number.",
        ),
    ] = 1

    @property
    def devices(self) -> int:
        """How many hold and compute one replica of the model."""
        return self.tensor * self.sequence * self.pipeline
