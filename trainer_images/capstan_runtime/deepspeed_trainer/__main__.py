"""`python -m capstan_runtime.deepspeed_trainer`: one rank of a DeepSpeed run, started by the supervisor."""

from typing import TYPE_CHECKING

from capstan_runtime.entry import begin

if TYPE_CHECKING:
    from capstan_runtime.loop import MakeEngine


def load() -> "MakeEngine":
    """Imports torch, DeepSpeed and all of this trainer. Makes no CUDA context: choosing a device would."""
    import torch
    import torch._dynamo  # the optimizer's first step would, and half of all that a start imports is this

    from capstan_runtime.deepspeed_trainer.engine import DeepSpeedEngine
    from capstan_runtime.deepspeed_trainer.library import load_deepspeed

    load_deepspeed(torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))
    return DeepSpeedEngine


begin(load)
