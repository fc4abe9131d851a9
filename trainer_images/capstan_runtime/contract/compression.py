"""How a model is made smaller while it is trained.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from capstan_runtime.contract.base import OneOf, Record, cel
from capstan_runtime.contract.distillation import Distill
from capstan_runtime.contract.low_rank import LowRank
from capstan_runtime.contract.trained_model import TrainedModel


class Magnitude(Record):
    """Gradual magnitude pruning (Zhu and Gupta, 1710.01878): of each matrix and kernel, the weights that are smallest
    by magnitude are set to 0, more and more of them: 0 at beginStep, `sparsity` from endStep on, and between them
    sparsity * (1 - (1 - t)^3), where t is the share of the way. What is 0 stays 0."""

    model_config = cel(
        (
            "self.everySteps < 1 || (self.endStep > self.beginStep"
            " && (self.endStep - self.beginStep) % self.everySteps == 0)",
            "'prune.magnitude: endStep ' + string(self.endStep) + ' must be beginStep ' + string(self.beginStep)"
            " + ' plus a multiple of everySteps ' + string(self.everySteps)"
            " + ', for the last cut to be there; choose another'",
        ),
    )

    sparsity: Annotated[float, Field(gt=0.0, lt=1.0, description="Share of the weights that are 0 in the end.")]
    begin_step: Annotated[int, Field(ge=0, description="Optimizer step after which pruning begins.")] = 0
    end_step: Annotated[int, Field(ge=1, description="Step of the last cut; training may go on after it.")]
    every_steps: Annotated[
        int, Field(ge=1, description="Steps between two cuts, which the others need to make up for what is gone.")
    ] = 100

    @property
    def first_cut(self) -> int:
        """Optimizer step after which weights are set to 0 for the first time."""
        return self.begin_step + self.every_steps

    @property
    def last_cut(self) -> int:
        """Optimizer step after which no more weights are set to 0."""
        return self.end_step

    @model_validator(mode="after")
    def _ends_with_a_cut(self) -> Self:
        if self.end_step <= self.begin_step or (self.end_step - self.begin_step) % self.every_steps:
            raise ValueError(
                f"prune.magnitude: endStep {self.end_step} must be beginStep {self.begin_step} plus a multiple of "
                f"everySteps {self.every_steps}, for the last cut to be there; choose another"
            )
        return self


class Nm(Record):
    """N:M sparsity (Zhou et al., 2102.04010): of weights that follow each other along the inputs of a matrix or the
    channels of a kernel, the largest by magnitude stay: keep 2 of 4 is what NVIDIA's sparse tensor cores take. What is
    0 stays 0."""

    model_config = cel(
        (
            "self.keep < self.of",
            "'prune.nm: keep ' + string(self.keep) + ' of ' + string(self.of)"
            " + ' leaves nothing out; lower keep, such as 2 of 4'",
        )
    )

    # Not n and m: YAML 1.1, which kubectl reads, takes a bare n for false.
    keep: Annotated[int, Field(ge=1, le=31, description="Weights of each group that stay.")]
    of: Annotated[int, Field(ge=2, le=32, description="Weights of a group.")]
    begin_step: Annotated[int, Field(ge=0, description="Optimizer step after which the others are 0.")] = 0

    @property
    def first_cut(self) -> int:
        """Optimizer step after which weights are set to 0 for the first time."""
        return self.begin_step + 1

    @property
    def last_cut(self) -> int:
        """Optimizer step after which no more weights are set to 0."""
        return self.first_cut

    @model_validator(mode="after")
    def _leaves_something_out(self) -> Self:
        if self.keep >= self.of:
            raise ValueError(f"prune.nm: keep {self.keep} of {self.of} leaves nothing out; lower keep, such as 2 of 4")
        return self


class Prune(OneOf):
    """Which weights are set to 0. Embeddings, the output layer, what routes to experts, what maps a condition to
    scales and shifts, gains and biases are left as they are."""

    magnitude: Annotated[Magnitude | None, Field(description="The smallest of each matrix, more and more.")] = None
    nm: Annotated[Nm | None, Field(description="All but the largest of neighbours: keep 2 of 4.")] = None


class Aware(Record):
    """Training that is aware of it (Jacob et al., 1712.05877): forward and backward passes take the weights as what
    their integers stand for, and the gradient of those is taken for that of the fp32 weights, which are what is updated
    (straight through: Bengio et al., 1308.3432)."""

    begin_step: Annotated[int, Field(ge=0, description="Optimizer step after which passes see integers.")] = 0


class Quantize(Record):
    """Weights as integers, symmetric about 0, with one fp32 scale per output channel: the largest of a channel becomes
    127, or 7 with 4 bits. Embeddings, the output layer, what routes to experts, what maps a condition to scales and
    shifts, gains and biases stay fp32."""

    bits: Annotated[Literal[8, 4], Field(description="Of an integer. Of 4 bits two are kept in a byte.")] = 8
    aware: Annotated[
        Aware | None,
        Field(description="The run trains with what will be lost. Left out: it is lost once, after the last step."),
    ] = None


class ModelFigures(Record):
    """A model as it was measured."""

    step: Annotated[int, Field(description="Optimizer steps done.")]
    loss: Annotated[float | None, Field(description="On the held-out samples; absent: no finite number.")] = None
    accuracy: Annotated[float | None, Field(description="On the held-out samples; absent: no finite number.")] = None
    bytes: Annotated[int, Field(description="Of the weights as they are saved: zeros are, too.")]
    sparsity: Annotated[
        float | None, Field(description="Of the weights that prune may set to 0, the share that is; absent: no prune.")
    ] = None


class CompressionReport(Record):
    """What compression has cost and brought."""

    before: Annotated[
        ModelFigures | None,
        Field(
            description="The last model that was not compressed: of distill the teacher, else of lowRank the one that "
            "it begins from; of prune before its first cut, of quantize.aware at its beginStep, else the weights of "
            "the last step before they become integers; of several the first. Absent: not there yet, or there was none."
        ),
    ] = None
    after: Annotated[
        ModelFigures | None, Field(description="The model that the run ended with; absent: it has not.")
    ] = None


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
    quantize: Annotated[
        Quantize | None,
        Field(
            description="End with a model of integers: of the matrices and kernels that prune takes. The last "
            "checkpoint is the model alone, without optimizer state; it is evaluated, registered and served as it is. "
            "With DeepSpeed it needs zeroStage 0 to 2: it takes whole channels."
        ),
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
        aware = self.quantize.aware if self.quantize is not None else None
        last_cut = 0 if self.prune is None else int(self.prune.value.last_cut)
        return max(last_cut, 0 if aware is None else aware.begin_step + 1)

    @property
    def begins_after(self) -> int | None:
        """Optimizer steps done by the last model that is not compressed. None: as many as the run makes."""
        if self.distill is not None or self.low_rank is not None:
            return 0
        aware = self.quantize.aware if self.quantize is not None else None
        first = [] if self.prune is None else [int(self.prune.value.first_cut) - 1]
        return min([*first, *([] if aware is None else [aware.begin_step])], default=None)

    @model_validator(mode="after")
    def _some(self) -> Self:
        fields = type(self).model_fields
        if all(getattr(self, name) is None for name in fields):
            names = ", ".join(field.alias or name for name, field in fields.items())
            raise ValueError(f"got none: set at least one of {names}")
        return self
