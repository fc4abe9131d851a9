"""What is done to gradients before an optimizer takes them."""

import functools
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from capstan_runtime.contract.training import AdaptiveClip
from capstan_runtime.model_spec import ParameterSpec


def centralize_gradients(parameters: Mapping[str, nn.Parameter], table: Iterable[ParameterSpec]) -> None:
    """From now on, the gradient of each matrix and kernel comes without its mean over each unit.

    It is taken off in every micro-step, while the gradient is still whole: sums over micro-steps and ranks, and ZeRO's
    cuts, come after it and change nothing, because it is linear.
    """
    for spec in table:
        if len(spec.shape) > 1:
            parameters[spec.name].register_hook(functools.partial(_centralized, dims=spec.dims_within_units))


def _centralized(gradient: Tensor, dims: tuple[int, ...]) -> Tensor:
    return gradient - gradient.mean(dim=dims, keepdim=True)


def clip_by_unit(config: AdaptiveClip, parameters: Iterable[tuple[nn.Parameter, ParameterSpec]]) -> None:
    """Scales each unit's gradient down to `factor` of its weights' norm, if it is larger. Of whole parameters."""
    tiny = torch.finfo(torch.float32).tiny  # keeps a gradient of 0 from being divided by itself
    for parameter, spec in parameters:
        if parameter.grad is not None:
            largest = config.factor * _norms(parameter.detach(), spec).clamp_(min=config.epsilon)
            parameter.grad.mul_((largest / _norms(parameter.grad, spec).clamp_(min=tiny)).clamp_(max=1.0))


def _norms(tensor: Tensor, spec: ParameterSpec) -> Tensor:
    """Of each unit, in a shape that broadcasts over it."""
    return torch.linalg.vector_norm(tensor, dim=spec.dims_within_units, keepdim=True)
