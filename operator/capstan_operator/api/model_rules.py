"""What of a model's components goes together with what else of a run."""

from typing import Any

from capstan_operator.api.replicas import CEL_RANKS
from capstan_runtime.contract.models import CEL_BATCH_STATISTICS, CEL_TAKES_CONDITIONS

_TOO_FEW = "is fewer than 2 samples for norm batch or mix to take statistics of; choose a larger batch or fewer ranks"
_REVERSIBLE = (
    "framework: deepspeed.zeroStage 3 cannot train model.transformer.reversible, whose layers need their whole weights "
    "again when they run backwards; choose zeroStage 0, 1 or 2"
)
_COMPUTED_AGAIN = (
    "training: activationCheckpointing keeps or computes again what model.transformer.reversible does not keep anyway; "
    "remove one of the two"
)
_ROUTED_AGAIN = (
    "model: transformer.reversible computes the inputs of each layer again, equal but for the last bits, and its "
    "router would choose other experts by these than in the forward pass; remove one of the two"
)
_HAS_CONDITION = "(has(self.data.arrays) && has(self.data.arrays.condition))"
_NO_CONDITION = (
    "model: conditionalScaling and adaptiveNorm need a condition for each sample, and there is none; set "
    "data.arrays.condition, or remove them"
)
_UNUSED_CONDITION = (
    "data.arrays.condition: nothing in the model looks at it; give the model conditionalScaling or adaptiveNorm, or "
    "remove it"
)
_MIXED_CONDITIONS = (
    "regularization: mixup and cutmix make one sample of two, which have two conditions; remove them, or "
    "data.arrays.condition"
)

MODEL_RULES: tuple[tuple[str, str], ...] = (
    (
        f"!{CEL_BATCH_STATISTICS} || {CEL_RANKS} < 1 || self.training.globalBatchSize / {CEL_RANKS} >= 2",
        "'training: globalBatchSize ' + string(self.training.globalBatchSize) + ' over virtualRanks '"
        f" + string({CEL_RANKS}) + ' {_TOO_FEW}'",
    ),
    (
        "!(has(self.framework.deepspeed) && self.framework.deepspeed.zeroStage == 3"
        " && has(self.model.transformer) && has(self.model.transformer.reversible))",
        f"'{_REVERSIBLE}'",
    ),
    (
        "!(has(self.training.activationCheckpointing)"
        " && has(self.model.transformer) && has(self.model.transformer.reversible))",
        f"'{_COMPUTED_AGAIN}'",
    ),
    (
        "!(has(self.model.transformer) && has(self.model.transformer.reversible)"
        " && has(self.model.transformer.experts))",
        f"'{_ROUTED_AGAIN}'",
    ),
    (f"!{CEL_TAKES_CONDITIONS} || {_HAS_CONDITION}", f"'{_NO_CONDITION}'"),
    (f"!{_HAS_CONDITION} || {CEL_TAKES_CONDITIONS}", f"'{_UNUSED_CONDITION}'"),
    (
        f"!{_HAS_CONDITION} || !has(self.regularization)"
        " || !(has(self.regularization.mixup) || has(self.regularization.cutmix))",
        f"'{_MIXED_CONDITIONS}'",
    ),
)
"""The twins of `require_model_fits` in CEL."""


def require_model_fits(spec: Any) -> None:
    """Raises ValueError when the model of `spec`, a Run, does not go together with the rest."""
    batch, ranks = spec.training.global_batch_size, spec.virtual_ranks
    if spec.model.batch_statistics is not None and batch // ranks < 2:
        raise ValueError(f"training: globalBatchSize {batch} over virtualRanks {ranks} {_TOO_FEW}")
    has_condition = spec.data.arrays is not None and spec.data.arrays.condition is not None
    if spec.model.takes_conditions and not has_condition:
        raise ValueError(_NO_CONDITION)
    if has_condition and not spec.model.takes_conditions:
        raise ValueError(_UNUSED_CONDITION)
    mixing = spec.regularization
    if has_condition and mixing is not None and (mixing.mixup is not None or mixing.cutmix is not None):
        raise ValueError(_MIXED_CONDITIONS)
    deepspeed, decoder = spec.framework.deepspeed, spec.model.transformer
    if decoder is None or decoder.reversible is None:
        return
    if deepspeed is not None and deepspeed.zero_stage == 3:
        raise ValueError(_REVERSIBLE)
    if spec.training.activation_checkpointing is not None:
        raise ValueError(_COMPUTED_AGAIN)
    if decoder.experts is not None:
        raise ValueError(_ROUTED_AGAIN)
