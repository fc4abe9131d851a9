"""The norm of the whole gradient, on ranks that have a part of it."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from capstan_runtime.deepspeed_trainer.parallel.experts import is_shared
from capstan_runtime.deepspeed_trainer.parallel.groups import Groups


def total_norm(parameters: Sequence[nn.Parameter], groups: Groups | None) -> Tensor:
    """Of the gradients of `parameters`, the same on every rank; what several ranks have alike counts once. Without
    waiting for the device."""
    if groups is None or groups.replica.size == groups.experts.size == 1:
        return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    counts_copies = groups.tensor.position == 0
    counted = [p for p in parameters if counts_copies or getattr(p, "model_parallel", False)]
    counted = [p for p in counted if not getattr(p, "ds_pipe_replicated", False)]
    total = _sum_of_squares([p for p in counted if not is_shared(p)])
    if groups.experts.size > 1:
        of_experts = _sum_of_squares([p for p in counted if is_shared(p)])
        dist.all_reduce(of_experts, group=groups.experts.process_group)
        total += of_experts
    dist.all_reduce(total, group=groups.replica.process_group)
    return total.sqrt()


def _sum_of_squares(parameters: Sequence[nn.Parameter]) -> Tensor:
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]).square()
