"""What of optimizers, changes of gradients and schedules goes together with what else of a run."""

from typing import Any

_CUT_UP = "it needs whole parameters, which ZeRO cuts up; choose zeroStage 0"
_OF_WHOLE_PARAMETERS = ("optimizer.novograd", "training.adaptiveClip")
"""What takes norms over parameters, or over rows of them."""
_NO_SECOND_GRADIENT = (
    "framework: deepspeed.zeroStage 3 cannot train with optimizer.sophia: its second backward pass needs whole "
    "parameters; choose zeroStage 0, 1 or 2"
)
_NOTHING_TO_FOLLOW = "schedule: plateau follows evaluations, and there are none; set training.evaluation"

UPDATE_RULES: tuple[tuple[str, str], ...] = (
    *(
        (
            f"!(has(self.framework.deepspeed) && self.framework.deepspeed.zeroStage > 0 && has(self.{field}))",
            "'framework: deepspeed.zeroStage ' + string(self.framework.deepspeed.zeroStage)"
            f" + ' cannot train with {field}: {_CUT_UP}'",
        )
        for field in _OF_WHOLE_PARAMETERS
    ),
    (
        "!(has(self.framework.deepspeed) && self.framework.deepspeed.zeroStage == 3 && has(self.optimizer.sophia))",
        f"'{_NO_SECOND_GRADIENT}'",
    ),
    ("!has(self.schedule.plateau) || has(self.training.evaluation)", f"'{_NOTHING_TO_FOLLOW}'"),
)
"""The twins of `require_update_fits` in CEL."""


def require_update_fits(spec: Any) -> None:
    """Raises ValueError when the parts of `spec`, a Run, do not go together."""
    given = {"optimizer.novograd": spec.optimizer.novograd, "training.adaptiveClip": spec.training.adaptive_clip}
    deepspeed = spec.framework.deepspeed
    for field in _OF_WHOLE_PARAMETERS:
        if deepspeed and deepspeed.zero_stage > 0 and given[field] is not None:
            raise ValueError(
                f"framework: deepspeed.zeroStage {deepspeed.zero_stage} cannot train with {field}: {_CUT_UP}"
            )
    if deepspeed and deepspeed.zero_stage == 3 and spec.optimizer.sophia is not None:
        raise ValueError(_NO_SECOND_GRADIENT)
    if spec.schedule.plateau is not None and spec.training.evaluation is None:
        raise ValueError(_NOTHING_TO_FOLLOW)
