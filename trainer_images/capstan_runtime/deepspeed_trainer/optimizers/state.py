"""The state of a torch optimizer, made before its first step, so that it can be filled from a checkpoint."""

from collections.abc import Iterable

import torch
from torch import Tensor

from capstan_runtime.deepspeed_trainer.disk import Keep, as_it_is
from capstan_runtime.updates import StateKind


def make_state(
    optimizer: torch.optim.Optimizer,
    flat_parameter: Tensor,
    kinds: Iterable[StateKind],
    step: int,
    keep: Keep = as_it_is,
) -> dict[StateKind, Tensor]:
    """The state of `flat_parameter`, by kind; what it did not have yet is as before the first step, and kept as `keep`
    says. `step`: steps done, which torch's AdamW counts by itself."""
    state = optimizer.state[flat_parameter]
    if isinstance(optimizer, torch.optim.AdamW):
        on_device = optimizer.defaults["fused"]
        state["step"] = torch.tensor(float(step), device=flat_parameter.device if on_device else "cpu")
    for kind in kinds:
        if kind.name not in state:
            state[kind.name] = keep(_first_value(flat_parameter.detach(), kind))
    return {kind: state[kind.name] for kind in kinds}


def _first_value(flat_parameter: Tensor, kind: StateKind) -> Tensor:
    if kind.first is None:
        return flat_parameter.clone()
    if kind.per_parameter:
        return flat_parameter.new_full((), kind.first)
    return torch.full_like(flat_parameter, kind.first)


def count_step(optimizer: torch.optim.Optimizer) -> None:
    """Counts a step whose update was dropped."""
    if isinstance(optimizer, torch.optim.AdamW):
        for state in optimizer.state.values():
            state["step"] += 1
