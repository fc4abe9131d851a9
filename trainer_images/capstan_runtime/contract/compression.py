"""How a model is made smaller while it is trained.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, model_validator

from capstan_runtime.contract.base import OneOf, Record, cel
from capstan_runtime.contract.distillation import Distill
from capstan_runtime.contract.low_rank import LowRank
from capstan_runtime.contract.trained_model import TrainedModel

_NOTHING_LEFT_OUT = "prune.nm: n must be below m, or nothing is left out; lower n, such as 2 of 4"
_NO_TIME = (
    "prune.magnitude: endStep must be beginStep plus a multiple of everySteps, so that the last cut is at endStep"
)


class Magnitude(Record):
    """Gradual magnitude pruning (Zhu and Gupta, 1710.01878): of each matrix and kernel, the weights that are smallest
    by magnitude are set to 0, more and more of them: 0 at beginStep, `sparsity` from endStep on, and between them
    sparsity * (1 - (1 - t)^3), where t is the share of the way. What is 0 stays 0."""

    model_config = cel(
        (
            "self.everySteps < 1 || (self.endStep > self.beginStep"
            " && (self.endStep - self.beginStep) % self.everySteps == 0)",
            f"'{_NO_TIME}'",
        ),
    )

    sparsity: Annotated[float, Field(gt=0.0, lt=1.0, description="Share of the weights that are 0 in the end.")]
    begin_step: Annotated[int, Field(ge=0, description="Optimizer step after which pruning begins.")] = 0
    end_step: Annotated[int, Field(ge=1, description="Step of the last cut; training may go on after it.")]
    every_steps: Annotated[
        int, Field(ge=1, description="Steps between two cuts, which the others need to make up for what is gone.")
    ] = 100

    @property
    def last_cut(self) -> int:
        """Optimizer step after which no more weights are set to 0."""
        return self.end_step

    @model_validator(mode="after")
    def _ends_with_a_cut(self) -> Self:
        if self.end_step <= self.begin_step or (self.end_step - self.begin_step) % self.every_steps:
            raise ValueError(_NO_TIME)
        return self


class Nm(Record):
    """N:M sparsity (Zhou et al., 2102.04010): of each m weights that follow each other along the inputs of a matrix or
    the channels of a kernel, the n largest by magnitude stay. 2 of 4 is what NVIDIA's sparse tensor cores take. What is
    0 stays 0."""

    model_config = cel(("self.n < self.m", f"'{_NOTHING_LEFT_OUT}'"))

    n: Annotated[int, Field(ge=1, le=31, description="Weights of each group that stay.")]
    m: Annotated[int, Field(ge=2, le=32, description="Weights of a group.")]
    begin_step: Annotated[int, Field(ge=0, description="Optimizer step after which the others are 0.")] = 0

    @property
    def last_cut(self) -> int:
        """Optimizer step after which no more weights are set to 0."""
        return self.begin_step + 1

    @model_validator(mode="after")
    def _leaves_something_out(self) -> Self:
        if self.n >= self.m:
            raise ValueError(_NOTHING_LEFT_OUT)
        return self


class Prune(OneOf):
    """Which weights are set to 0. Embeddings, the output layer, what routes to experts, what maps a condition to
    scales and shifts, gains and biases are left as they are."""

    magnitude: Annotated[Magnitude | None, Field(description="The smallest of each matrix, more and more.")] = None
    nm: Annotated[Nm | None, Field(description="All but n of each m neighbours.")] = None


def _some_rule(schema: dict[str, Any]) -> None:
    """The twin of `Compression._some` in CEL."""
    names = list(schema["properties"])
    given = " || ".join(f"has(self.{name})" for name in names)
    message = f"'got none: set at least one of {', '.join(names)}'"
    schema["x-kubernetes-validations"] = [{"rule": given, "messageExpression": message}]


class Compression(Record):
    """What makes the model smaller. Every field is optional and defaults to None; at least one is set."""

    model_config = ConfigDict(json_schema_extra=_some_rule)

    prune: Annotated[
        Prune | None,
        Field(
            description="Set weights to 0: of matrices and kernels, each expert's too, but not of embeddings, of the "
            "output layer, of what routes to experts or of what maps a condition to scales and shifts. With DeepSpeed "
            "it needs zeroStage 0: it takes whole parameters. Not with training.ema: an average of weights is not as "
            "sparse as they are."
        ),
    ] = None
    distill: Annotated[
        Distill | None,
        Field(description="Learn from a larger model that is trained already. Evaluation is of this model alone."),
    ] = None
    low_rank: Annotated[
        LowRank | None, Field(description="Products of two small matrices in the place of large ones.")
    ] = None

    @property
    def models(self) -> dict[str, TrainedModel]:
        """The trained models that the run needs, by the field that names them."""
        named = {} if self.distill is None else {"distill.teacher": self.distill.teacher}
        if self.low_rank is not None and self.low_rank.origin is not None:
            named["lowRank.from"] = self.low_rank.origin
        return named

    @property
    def settled_from(self) -> int:
        """Optimizer step from which on evaluations are of the kind of model that the run ends with."""
        return 0 if self.prune is None else self.prune.value.last_cut

    @model_validator(mode="after")
    def _some(self) -> Self:
        fields = type(self).model_fields
        if all(getattr(self, name) is None for name in fields):
            names = ", ".join(field.alias or name for name, field in fields.items())
            raise ValueError(f"got none: set at least one of {names}")
        return self
