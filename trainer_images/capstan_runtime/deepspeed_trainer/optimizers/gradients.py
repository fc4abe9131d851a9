"""What is done to gradients before an optimizer takes them."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from capstan_runtime.contract.training import AdaptiveClip


def centralize_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """From now on, the gradient of each matrix and kernel comes without its mean over each output, the first dimension.

    It is taken off in every micro-step, while the gradient is still whole: sums over micro-steps and ranks, and ZeRO's
    cuts, come after it and change nothing, because it is linear.
    """
    for parameter in parameters:
        if parameter.ndim > 1:
            parameter.register_hook(_centralized)


def _centralized(gradient: Tensor) -> Tensor:
    return gradient - gradient.mean(dim=tuple(range(1, gradient.ndim)), keepdim=True)


def clip_by_unit(config: AdaptiveClip, parameters: Iterable[nn.Parameter]) -> None:
    """Scales each unit's gradient down to `factor` of its weights' norm, if it is larger. Of whole parameters."""
    tiny = torch.finfo(torch.float32).tiny  # keeps a gradient of 0 from being divided by itself
    for parameter in parameters:
        if parameter.grad is not None:
            largest = config.factor * _unit_norms(parameter.detach()).clamp_(min=config.epsilon)
            parameter.grad.mul_((largest / _unit_norms(parameter.grad).clamp_(min=tiny)).clamp_(max=1.0))


def _unit_norms(tensor: Tensor) -> Tensor:
    """Of each row or filter, or of a whole gain or bias, in a shape that broadcasts over it."""
    return torch.linalg.vector_norm(tensor, dim=tuple(range(min(1, tensor.ndim - 1), tensor.ndim)), keepdim=True)
