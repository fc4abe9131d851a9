"""The torch optimizers, with weight decay that is decoupled and spares gains and biases."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from capstan_runtime.contract.optimizers import AdamW, Optimizer, Sgd

MOMENT_KEYS = {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq", "momentum": "momentum_buffer"}
"""What torch calls the kinds of state that `model_spec.moments` names."""


class DecoupledSgd(torch.optim.SGD):
    """SGD whose weight decay is scaled by the learning rate alone (Loshchilov and Hutter, 1711.05101), as AdamW's."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        for group in self.param_groups:
            updated = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["decoupled_decay"] and updated:
                torch._foreach_mul_(updated, 1.0 - group["lr"] * group["decoupled_decay"])
        loss: float | None = super().step(closure)
        return loss


def build_optimizer(
    optimizer: Optimizer, decaying: list[nn.Parameter], others: list[nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer over two groups of parameters, of which only the first decays. The loop sets `lr` every step."""
    decay = optimizer.value.weight_decay
    match optimizer.value:
        case AdamW() as config:
            groups: list[dict[str, Any]] = [
                {"params": decaying, "weight_decay": decay},
                {"params": others, "weight_decay": 0.0},
            ]
            return torch.optim.AdamW(
                groups,
                lr=config.learning_rate,
                betas=(config.beta1, config.beta2),
                eps=config.epsilon,
                fused=device.type == "cuda",
            )
        case Sgd() as config:
            groups = [{"params": decaying, "decoupled_decay": decay}, {"params": others, "decoupled_decay": 0.0}]
            return DecoupledSgd(
                groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.nesterov, weight_decay=0.0
            )
        case other:  # pragma: no cover - a new kind of optimizer
            raise TypeError(f"no torch optimizer for {type(other).__name__}")


def set_state(
    optimizer: torch.optim.Optimizer, flat_parameter: Tensor, kinds: tuple[str, ...], step: int
) -> dict[str | None, Tensor]:
    """Gives `flat_parameter` its moments, zero unless it has them already, and the number of steps done.

    torch makes them at the first step; made before, they can be filled from a checkpoint. Returns the moments by kind.
    """
    state = optimizer.state[flat_parameter]
    if isinstance(optimizer, torch.optim.AdamW):
        on_device = optimizer.defaults["fused"]
        state["step"] = torch.tensor(float(step), device=flat_parameter.device if on_device else "cpu")
    for kind in kinds:
        state.setdefault(MOMENT_KEYS[kind], torch.zeros_like(flat_parameter, requires_grad=False))
    return {kind: state[MOMENT_KEYS[kind]] for kind in kinds}


def count_step(optimizer: torch.optim.Optimizer) -> None:
    """Counts a step whose update was dropped."""
    for state in optimizer.state.values():
        if "step" in state:
            state["step"] += 1
