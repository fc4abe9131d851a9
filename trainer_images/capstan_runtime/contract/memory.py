"""What a run may be told in order to need less memory, for more time.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

from typing import Annotated, Literal

from pydantic import Field

from capstan_runtime.contract.base import OneOf, Record


class ActivationCheckpointing(Record):
    """Activation checkpointing (Chen et al., 1604.06174): the backward pass computes what happened inside a block again
    instead of keeping it. Losses and gradients stay the same; nothing in a block is left to chance that cannot be
    repeated."""

    policy: Annotated[
        Literal["full", "dots"],
        Field(
            description="full keeps only what goes into each block, and computes everything in it twice. dots also "
            "keeps the results of products with weights (linear layers, convolutions), which cost most to repeat."
        ),
    ] = "full"


class HostMemory(Record):
    """The memory of the worker's host, which its GPU reaches over the bus."""


class NodeDisk(Record):
    """Files in the pod's volume `scratch`, an emptyDir unless workers.podPatch has another of that name. Those of an
    emptyDir count against no limit of the pod."""


class HostTarget(OneOf):
    """Where something is kept while it is not used. Set exactly one key."""

    cpu: Annotated[HostMemory | None, Field(description="In the host's memory.")] = None


class OffloadTarget(OneOf):
    """Where something is kept while it is not used. Set exactly one key."""

    cpu: Annotated[HostMemory | None, Field(description="In the host's memory.")] = None
    nvme: Annotated[
        NodeDisk | None, Field(description="On a disk of the node: more than fits into the host's memory.")
    ] = None
