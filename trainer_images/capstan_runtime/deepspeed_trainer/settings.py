"""What DeepSpeed is told of a run."""

from typing import Any

import torch

from capstan_runtime.context import TrainContext
from capstan_runtime.contract.framework import DeepSpeed, DeepSpeedOffload


def settings_of(context: TrainContext, device: torch.device) -> dict[str, Any]:
    """Its configuration on such a device, in its own words."""
    settings = context.run.framework.value
    assert isinstance(settings, DeepSpeed)
    stage = settings.zero_stage
    return {
        "train_micro_batch_size_per_gpu": context.samples_per_micro_step,
        # The engine says when an optimizer step is due, because M may change from attempt to attempt.
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "zero_optimization": {"stage": stage, "overlap_comm": False, **_offloads(settings, device)},
        "zero_allow_untested_optimizer": True,
        # Its own would be compiled at run time, and knows Adam alone.
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 0.0 if stage == 0 else context.run.training.gradient_clip or 0.0,
    }


def _offloads(settings: DeepSpeed, device: torch.device) -> dict[str, Any]:
    """The host's memory is page-locked, where that makes a difference. What goes to a disk is there at first, too."""
    wanted = settings.offload or DeepSpeedOffload.model_construct()
    given = {"offload_optimizer": wanted.optimizer, "offload_param": wanted.parameters}
    return {
        name: {"device": "cpu", "pin_memory": target.cpu is not None and device.type == "cuda"}
        for name, target in given.items()
        if target is not None
    }
