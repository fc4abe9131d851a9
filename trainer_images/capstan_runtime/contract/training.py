"""Length, batch, precision and randomness of a run.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from capstan_runtime.contract.base import Positive, Record, cel


class Evaluation(Record):
    """When the model is measured on the held-out samples. The last step is always evaluated."""

    every_steps: Annotated[int, Field(ge=1, description="Steps between two evaluations.")]


class Training(Record):
    """Length, batch, precision and randomness of the run. None of it depends on the number of workers."""

    model_config = cel(("has(self.steps) != has(self.epochs)", "'set exactly one of steps, epochs'"))

    steps: Annotated[Positive | None, Field(description="Optimizer steps. Set this or epochs.")] = None
    epochs: Annotated[Positive | None, Field(description="Passes over the training samples. Set this or steps.")] = None
    global_batch_size: Annotated[
        int, Field(ge=1, description="Samples per optimizer step over all workers; virtualRanks must divide it.")
    ]
    virtual_ranks: Annotated[
        Positive | None,
        Field(
            description="Slices the global batch is always cut into. A number of workers is valid when it divides "
            "virtualRanks, so data order and batch stay the same at every size. Left out: workers.max."
        ),
    ] = None
    precision: Annotated[
        Literal["fp32", "bf16"],
        Field(description="Arithmetic of the forward and backward pass; master weights are fp32."),
    ] = "fp32"
    gradient_clip: Annotated[
        float | None, Field(gt=0.0, description="Largest global L2 norm of the gradient. Left out: no clipping.")
    ] = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, description="Seed of initial weights and data order.")] = 0
    evaluation: Annotated[Evaluation | None, Field(description="Left out: evaluated only after the last step.")] = None
    log_every_steps: Annotated[int, Field(ge=1, description="Steps between two reports of loss and throughput.")] = 10

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("set exactly one of steps, epochs")
        return self
