"""What every kind that makes pods lets its user say of their room: resources, and the nodes they may go to."""

from typing import Annotated

from pydantic import Field

from capstan_runtime.contract.base import Record

Quantity = Annotated[
    str,
    Field(
        pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$",
        description="A Kubernetes quantity such as 500m, 2 or 4Gi.",
    ),
]


class Toleration(Record):
    """A taint the pods tolerate; the fields mean what they mean on a Pod."""

    key: Annotated[str | None, Field(description="Taint key; left out with operator Exists: all taints.")] = None
    operator: Annotated[str | None, Field(description="Exists or Equal.")] = None
    value: Annotated[str | None, Field(description="Taint value, for operator Equal.")] = None
    effect: Annotated[str | None, Field(description="NoSchedule, PreferNoSchedule or NoExecute; left out: all.")] = None
    toleration_seconds: Annotated[int | None, Field(description="For NoExecute: seconds until eviction.")] = None


class Placement(Record):
    """How much of a node a pod takes, and of which nodes."""

    resources: Annotated[
        dict[str, Quantity],
        Field(description="Requests, and limits of the same size, by resource name. nvidia.com/gpu comes from gpus."),
    ] = {}
    node_selector: Annotated[dict[str, str], Field(description="Labels a node must carry.")] = {}
    tolerations: Annotated[list[Toleration], Field(description="Taints the pods tolerate.")] = []
