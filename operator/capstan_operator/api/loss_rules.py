"""What binds loss and regularisation to model and batch: in CEL for the API server, and in Python, with one verdict."""

from collections.abc import Iterator
from typing import Protocol, get_args

from capstan_operator.api.replicas import CEL_RANKS
from capstan_runtime.contract.framework import Framework
from capstan_runtime.contract.losses import Loss, Regularization
from capstan_runtime.contract.models import Model
from capstan_runtime.contract.training import Training


class _Run(Protocol):
    """What the rules look at of a `training_job.Run`."""

    @property
    def framework(self) -> Framework: ...
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

_ATTACKED_IN_PARTS = (
    "regularization: adversarial takes gradients past DeepSpeed, which needs whole weights, and deepspeed.zeroStage 3 "
    "cuts them up; choose zeroStage 0, 1 or 2"
)

_CHANCES = ("dropout", "spatial_dropout", "temporal_dropout", "adaptive_dropout", "token_dropout", "stochastic_depth")
"""Components that make two passes over the same samples differ."""


def _chances() -> Iterator[tuple[str, str, str, str]]:
    """Those of every architecture: its name and the component's, each in Python and in JSON."""
    for name, field in Model.model_fields.items():
        architecture = next(each for each in get_args(field.annotation) if each is not type(None))
        for chance in _CHANCES:
            if chance in architecture.model_fields:
                yield name, field.alias or name, chance, architecture.model_fields[chance].alias or chance


# Of a module of the user's own, only the user knows.
_IS_LEFT_TO_CHANCE = " || ".join(
    ["has(self.model.custom)"]
    + [f"(has(self.model.{alias}) && has(self.model.{alias}.{chance}))" for _, alias, _, chance in _chances()]
)
_NOTHING_LEFT_TO_CHANCE = (
    "regularization: consistency compares two passes that dropout makes different, and the model has none; add dropout "
    "or stochasticDepth to it"
)

LOSS_RULES = (
    (
        f"!(has(self.regularization) && has(self.regularization.consistency)) || {_IS_LEFT_TO_CHANCE}",
        f"'{_NOTHING_LEFT_TO_CHANCE}'",
    ),
    (
        "!(has(self.regularization) && has(self.regularization.adversarial) && has(self.framework.deepspeed)"
        " && self.framework.deepspeed.zeroStage == 3)",
        f"'{_ATTACKED_IN_PARTS}'",
    ),
    (
        f"!({_MIXES} && has(self.model.transformer))",
        "'regularization: mixup and cutmix blend inputs, which tokens cannot be; remove them'",
    ),
    (
        "!(has(self.regularization) && has(self.regularization.cutmix) && has(self.model.mlp))",
        "'regularization: cutmix pastes boxes of images, and model mlp sees none; choose mixup, or model cnn'",
    ),
    (
        f"!({_MIXES}) || {CEL_RANKS} < 1 || self.training.globalBatchSize / {CEL_RANKS} >= 2",
        "'regularization: mixup and cutmix take two samples of one virtual rank, which has ' +"
        f" string(self.training.globalBatchSize / {CEL_RANKS}) + '; raise globalBatchSize, or lower virtualRanks'",
    ),
)


def require_loss_fits(spec: _Run) -> None:
    """Raises ValueError where LOSS_RULES do not hold."""
    regularization = spec.regularization
    if regularization is None:
        return
    if regularization.consistency is not None and not _is_left_to_chance(spec.model):
        raise ValueError(_NOTHING_LEFT_TO_CHANCE)
    deepspeed = spec.framework.deepspeed
    if regularization.adversarial is not None and deepspeed is not None and deepspeed.zero_stage == 3:
        raise ValueError(_ATTACKED_IN_PARTS)
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


def _is_left_to_chance(model: Model) -> bool:
    given = ((getattr(model, name), chance) for name, _, chance, _ in _chances())
    return model.custom is not None or any(
        architecture is not None and getattr(architecture, chance) is not None for architecture, chance in given
    )
