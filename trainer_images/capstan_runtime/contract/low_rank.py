"""A model whose matrices are products of two smaller ones."""

from typing import Annotated

from pydantic import Field

from capstan_runtime.contract.base import Record
from capstan_runtime.contract.trained_model import TrainedModel


class LowRank(Record):
    """Of each matrix and kernel that prune would take, and that becomes smaller by it, two are trained, saved and
    served: what comes in goes through one to `rank` units, and through the other on."""

    rank: Annotated[int, Field(ge=1, description="Units between the two. One that makes no matrix smaller is refused.")]
    origin: Annotated[
        TrainedModel | None,
        Field(
            alias="from",
            description="Begin with the best approximation, by singular values, of this model, which is of the same "
            "architecture. It is fixed by digest before the first step. Left out: by chance.",
        ),
    ] = None
