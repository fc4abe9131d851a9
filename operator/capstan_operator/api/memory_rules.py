"""What of precision and memory goes together with what else of a run."""

from typing import Any

_NO_BLOCKS = (
    "training: activationCheckpointing repeats what happens in blocks, of which only cnn and transformer have any; "
    "remove it, or choose one of those models"
)
_OF_16_BITS = ("bf16", "fp16")


_UNSCALED = (
    "training: precision fp16 cannot train with regularization.adversarial: gradients of the inputs are not scaled, "
    "and too small for it; choose bf16 or fp32"
)

_UNSCALED_SAMPLES = (
    "training: precision fp16 cannot train with optimizer sophia: the gradients that it samples are not scaled, "
    "and too small for it; choose bf16 or fp32"
)


def _stage_too_low(precision: str) -> str:
    return f"framework: deepspeed.zeroStage 0 cannot train in precision {precision}; choose zeroStage 1, 2 or 3"


_OF_WHOLE_PARAMETERS = (
    "optimizer.novograd",
    "optimizer.sophia",
    "training.adaptiveClip",
    "training.centralizeGradients",
)


def _cut_up(field: str) -> str:
    return f"framework: flax.fsdp cannot train with {field}: it needs whole parameters, which are cut up; remove either"


MEMORY_RULES: tuple[tuple[str, str], ...] = (
    *(
        (
            "!(has(self.framework.deepspeed) && self.framework.deepspeed.zeroStage == 0"
            f" && self.training.precision == '{precision}')",
            f"'{_stage_too_low(precision)}'",
        )
        for precision in _OF_16_BITS
    ),
    (
        "!(has(self.regularization) && has(self.regularization.adversarial) && self.training.precision == 'fp16')",
        f"'{_UNSCALED}'",
    ),
    *(
        (f"!(has(self.framework.flax) && has(self.framework.flax.fsdp) && has(self.{field}))", f"'{_cut_up(field)}'")
        for field in _OF_WHOLE_PARAMETERS
    ),
    (
        "!(has(self.optimizer.sophia) && self.training.precision == 'fp16')",
        f"'{_UNSCALED_SAMPLES}'",
    ),
    (
        "!has(self.training.activationCheckpointing) || has(self.model.cnn) || has(self.model.transformer)",
        f"'{_NO_BLOCKS}'",
    ),
)
"""The twins of `require_memory_fits` in CEL."""


def require_memory_fits(spec: Any) -> None:
    """Raises ValueError when the parts of `spec`, a Run, do not go together."""
    deepspeed, training = spec.framework.deepspeed, spec.training
    if deepspeed and deepspeed.zero_stage == 0 and training.precision in _OF_16_BITS:
        raise ValueError(_stage_too_low(training.precision))
    if training.precision == "fp16" and spec.regularization is not None and spec.regularization.adversarial is not None:
        raise ValueError(_UNSCALED)
    given = (spec.optimizer.novograd, spec.optimizer.sophia, training.adaptive_clip, training.centralize_gradients)
    for field, value in zip(_OF_WHOLE_PARAMETERS, given, strict=True):
        if value is not None and spec.framework.flax is not None and spec.framework.flax.fsdp is not None:
            raise ValueError(_cut_up(field))
    if training.precision == "fp16" and spec.optimizer.sophia is not None:
        raise ValueError(_UNSCALED_SAMPLES)
    if training.activation_checkpointing is not None and not (spec.model.cnn or spec.model.transformer):
        raise ValueError(_NO_BLOCKS)
