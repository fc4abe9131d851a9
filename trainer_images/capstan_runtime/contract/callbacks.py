"""What follows a run and may end it or look at it.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

from typing import Annotated, Literal

from pydantic import Field

from capstan_runtime.contract.base import OneOf, Record

EvaluationMetric = Literal["validation_loss", "accuracy"]


class EarlyStopping(Record):
    """Ends the run, as a success, once evaluations find the model no better any more."""

    metric: Annotated[EvaluationMetric, Field(description="What evaluations measure that is to get better.")] = (
        "validation_loss"
    )
    mode: Annotated[
        Literal["min", "max"] | None,
        Field(
            description="Whether less or more of the metric is better. Left out: min for validation_loss, max for "
            "accuracy."
        ),
    ] = None
    patience: Annotated[
        int, Field(ge=1, le=1_000_000, description="Evaluations in a row without a better value that end the run.")
    ]
    min_delta: Annotated[
        float, Field(ge=0.0, description="A value is better only if it beats the best one by more than this.")
    ] = 0.0

    @property
    def more_is_better(self) -> bool:
        """`mode`, or its default."""
        return (self.mode or ("max" if self.metric == "accuracy" else "min")) == "max"


class SystemMonitor(Record):
    """Watches what each worker uses of its machine."""

    every_seconds: Annotated[
        float, Field(ge=1.0, le=3600.0, description="Seconds between two looks at CPU, memory and GPUs.")
    ] = 15.0


class Window(Record):
    """A window of steps, by their numbers."""

    first: Annotated[int, Field(ge=1, description="The first step that is traced, counted from 1.")]
    count: Annotated[int, Field(ge=1, le=1000, description="Steps that are traced.")]


class OnRequest(Record):
    """A window of steps for each new value of the TrainingJob's annotation capstan.dev/profile."""

    count: Annotated[int, Field(ge=1, le=1000, description="Steps that are traced.")]


class Profiler(OneOf):
    """When steps are traced. Set exactly one key."""

    steps: Annotated[Window | None, Field(description="Once, at these steps.")] = None
    annotation: Annotated[
        OnRequest | None,
        Field(description="Whenever annotation capstan.dev/profile of the TrainingJob is set to another value."),
    ] = None


class Callbacks(Record):
    """What follows the run. Each is there if it is named."""

    early_stopping: Annotated[
        EarlyStopping | None,
        Field(
            description="Left out: the run makes all its steps. Needs training.evaluation. Beside compression "
            "evaluations before its last cut, or before passes see integers, count for nothing: they measure a model "
            "that will not be."
        ),
    ] = None
    system_monitor: Annotated[
        SystemMonitor | None,
        Field(
            description="What each worker uses of CPU, memory and GPUs, on its /metrics; what rank 0 uses also to "
            "spec.tracking. Left out: not looked at."
        ),
    ] = None
    profiler: Annotated[
        Profiler | None,
        Field(
            description="Traces steps of rank 0 with its framework's profiler, into profile/ beside the checkpoints; "
            "status.profile says where. Left out: no step is traced."
        ),
    ] = None
