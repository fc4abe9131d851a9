"""The diagonal of the Gauss-Newton matrix, as Gauss-Newton-Bartlett estimates it (Liu et al., 2305.14342).

Axes: B samples, K classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from capstan_runtime.deepspeed_trainer import random
from capstan_runtime.deepspeed_trainer.forward_pass import Pass
from capstan_runtime.deepspeed_trainer.objective import Model, cross_entropy
from capstan_runtime.engine import Batch


def hessian_diagonal(
    model: Model, parameters: Sequence[nn.Parameter], calls: Sequence[tuple[Batch[Tensor], Pass]], group: Any = None
) -> list[Tensor]:
    """An estimate for each of `parameters`, whole on every rank, from this rank's micro-steps and all others' of
    `group`, those that compute with the same parameters; None: all do. Collective.

    The second backward pass goes past DeepSpeed: its hooks are where gradients are accumulated, and these are not. So
    the weights have to be whole; for as long as it takes, there is a second gradient.
    """
    sums = [torch.zeros_like(parameter, requires_grad=False) for parameter in parameters]
    for batch, here in calls:
        loss = sampled_objective(model, batch, here)
        torch._foreach_add_(
            sums, list(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))
        )
    for each in sums:
        dist.all_reduce(each, group=group)
    world = dist.get_world_size(group)
    targets = sum(batch.targets.numel() for batch, _ in calls) * world
    torch._foreach_div_(sums, len(calls) * world)
    torch._foreach_mul_(sums, sums)
    torch._foreach_mul_(sums, float(targets))
    return sums


def sampled_objective(model: Model, batch: Batch[Tensor], here: Pass) -> Tensor:
    """The mean loss of targets that are drawn from what the model says, fp32 scalar: the square of its gradient, times
    the number of targets, estimates the diagonal."""
    assert batch.keys is not None
    logits = model(batch.inputs, here)
    return cross_entropy(logits, sampled_targets(logits.detach(), batch.keys, here.first)).mean()


def sampled_targets(logits: Tensor, keys_B: Tensor, first: int = 0) -> Tensor:
    """A class for each row of [B, …, K], drawn with the probabilities of its logits, int64 [B, …]: the largest logit
    after Gumbel noise. `first`: the number of the first row of each sample."""
    chance = random.uniform(random.named(keys_B, "hessian"), *logits.shape[1:], first=first * logits.shape[-1])
    return (logits.float() - torch.log(-torch.log(chance))).argmax(dim=-1)
