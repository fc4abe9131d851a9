"""How many pods a job has, and what each of them gets."""

from typing import Annotated, Any

from pydantic import Field

from capstan_operator.api.gang import Gang
from capstan_operator.api.placement import Placement
from capstan_runtime.contract.base import Positive


class Workers(Placement):
    """How many pods train together and what each of them gets."""

    max: Annotated[int, Field(ge=1, le=16384, description="Workers to run with when all can be had.")]
    min: Annotated[
        Positive | None, Field(description="Fewest workers to go on with. Left out: max, the size is fixed.")
    ] = None
    gpus: Annotated[int, Field(ge=0, le=16, description="NVIDIA GPUs per worker; 0 trains on the CPU.")] = 0
    image: Annotated[
        str | None,
        Field(min_length=1, description="Container image. Left out: the operator's image for the framework."),
    ] = None
    pod_patch: Annotated[
        dict[str, Any] | None,
        Field(
            description="Merged into every pod (strategic merge: containers by name, volumes by name). The trainer's "
            "container is called trainer.",
            json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
        ),
    ] = None
    gang: Annotated[
        Gang | None,
        Field(
            description="Place the fewest workers to go on with together, or none of them. Needs a scheduler that can. "
            "Left out: the cluster's scheduler places each pod by itself."
        ),
    ] = None
