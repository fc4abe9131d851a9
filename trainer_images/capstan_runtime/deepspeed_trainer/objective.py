"""What a training step makes small, of one micro-step. Axes: B samples, T time, K classes."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from capstan_runtime.deepspeed_trainer.forward_pass import Pass
from capstan_runtime.engine import Batch

Model = Callable[[Tensor, Pass], Tensor]


def objective(model: Model, batch: Batch[Tensor], here: Pass) -> Tensor:
    """The mean over the samples, or over their tokens, and what modules add to it; fp32 scalar."""
    loss = cross_entropy(model(batch.inputs, here), batch.targets).mean()
    return sum(here.losses.values(), loss)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of each target, in fp32: [..., K] and [...] to [...]."""
    flat = F.cross_entropy(logits.float().flatten(0, -2), targets.flatten().long(), reduction="none")
    return flat.view(targets.shape)
