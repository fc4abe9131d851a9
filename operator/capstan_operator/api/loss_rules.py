"""What binds loss and regularisation to model and batch: in CEL for the API server, and in Python, with one verdict."""

from typing import Protocol

from capstan_runtime.contract.losses import Loss, Regularization
from capstan_runtime.contract.models import Model
from capstan_runtime.contract.training import Training


class _Run(Protocol):
    """What the rules look at of a `training_job.Run`."""

    @property
    def model(self) -> Model: ...
    @property
    def training(self) -> Training: ...
    @property
    def loss(self) -> Loss | None: ...
    @property
    def regularization(self) -> Regularization | None: ...
    @property
    def virtual_ranks(self) -> int: ...


_MIXES = "has(self.regularization) && (has(self.regularization.mixup) || has(self.regularization.cutmix))"
_RANKS = "(has(self.training.virtualRanks) ? self.training.virtualRanks : self.workers.max)"

LOSS_RULES = (
    (
        f"!({_MIXES} && has(self.model.transformer))",
        "'regularization: mixup and cutmix blend inputs, which tokens cannot be; remove them'",
    ),
    (
        "!(has(self.regularization) && has(self.regularization.cutmix) && has(self.model.mlp))",
        "'regularization: cutmix pastes boxes of images, and model mlp sees none; choose mixup, or model cnn'",
    ),
    (
        f"!({_MIXES}) || {_RANKS} < 1 || self.training.globalBatchSize / {_RANKS} >= 2",
        "'regularization: mixup and cutmix take two samples of one virtual rank, which has ' +"
        f" string(self.training.globalBatchSize / {_RANKS}) + '; raise globalBatchSize, or lower virtualRanks'",
    ),
)


def require_loss_fits(spec: _Run) -> None:
    """Raises ValueError where LOSS_RULES do not hold."""
    regularization = spec.regularization
    if regularization is None:
        return
    if regularization.cutmix is not None and spec.model.mlp is not None:
        raise ValueError(
            "regularization: cutmix pastes boxes of images, and model mlp sees none; choose mixup, or model cnn"
        )
    if regularization.mixup is None and regularization.cutmix is None:
        return
    if spec.model.transformer is not None:
        raise ValueError("regularization: mixup and cutmix blend inputs, which tokens cannot be; remove them")
    samples = spec.training.global_batch_size // spec.virtual_ranks
    if samples < 2:
        raise ValueError(
            f"regularization: mixup and cutmix take two samples of one virtual rank, which has {samples}; "
            "raise globalBatchSize, or lower virtualRanks"
        )
