"""How many pods serve, when their requests decide."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from capstan_runtime.contract.base import Record, cel

Delay = Annotated[int, Field(ge=0, le=3600)]


class Autoscaling(Record):
    """The size of a service follows the requests it has. Names mean what they do in Ray Serve's autoscaling_config."""

    model_config = cel(
        (
            "self.minReplicas <= self.maxReplicas",
            "'minReplicas ' + string(self.minReplicas) + ' is above maxReplicas ' + string(self.maxReplicas)"
            " + '; lower minReplicas'",
        )
    )

    min_replicas: Annotated[int, Field(ge=1, le=1000, description="Pods there are at least.")] = 1
    max_replicas: Annotated[int, Field(ge=1, le=1000, description="Pods there are at most.")]
    target_ongoing_requests: Annotated[
        int,
        Field(
            ge=1,
            description="Requests that a pod is to have at a time, worked on or waiting. The default is half of a "
            "batch and a quarter of queue.maxOngoingRequests, so that pods come up before requests wait.",
        ),
    ] = 16
    upscale_delay_seconds: Annotated[
        Delay, Field(description="How long more pods must have been asked for, all the time, until there are more.")
    ] = 10
    downscale_delay_seconds: Annotated[
        Delay, Field(description="How long fewer pods must have been enough, all the time, until there are fewer.")
    ] = 300

    def clamp(self, replicas: int) -> int:
        """`replicas`, or the nearest number that is allowed."""
        return min(self.max_replicas, max(self.min_replicas, replicas))

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"minReplicas {self.min_replicas} is above maxReplicas {self.max_replicas}; lower minReplicas"
            )
        return self
